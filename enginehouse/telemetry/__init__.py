"""Telemetry as text: samples in the CSV that `nvidia-smi --query-gpu` writes. Needs no NVML."""
