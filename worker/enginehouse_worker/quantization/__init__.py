"""Explicit quantization: where Q/DQ pairs stand (rules, placement), with which scales (scales), and their insertion."""
