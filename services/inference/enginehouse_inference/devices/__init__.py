"""The device side: worker processes, one per device and environment, kept alive."""
