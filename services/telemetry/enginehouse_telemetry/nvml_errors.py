"""What NVML's error codes mean to a collector."""

from __future__ import annotations

import pynvml

LOST = frozenset({pynvml.NVML_ERROR_GPU_IS_LOST, pynvml.NVML_ERROR_RESET_REQUIRED, pynvml.NVML_ERROR_GPU_NOT_FOUND})

# The whole library must be initialized again: the driver was reloaded, replaced or is not there.
BROKEN = frozenset(
    {
        pynvml.NVML_ERROR_UNINITIALIZED,
        pynvml.NVML_ERROR_DRIVER_NOT_LOADED,
        pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH,
        pynvml.NVML_ERROR_LIBRARY_NOT_FOUND,
    }
)

# This device or driver will not answer the question later either.
UNSUPPORTED = frozenset(
    {
        pynvml.NVML_ERROR_NOT_SUPPORTED,
        pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,
        pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH,
        pynvml.NVML_ERROR_VGPU_ECC_NOT_SUPPORTED,
        pynvml.NVML_ERROR_DEPRECATED,
    }
)


class DeviceLost(Exception):
    """A GPU fell off the bus or needs a reset."""


class DeviceHidden(DeviceLost):
    """NVML counts a GPU that this process may not use; a container sees its node's other GPUs so."""


class NvmlBroken(Exception):
    """NVML as a whole does not work any more, or not yet."""


def code_of(error: pynvml.NVMLError) -> int:
    """NVML's number for an error."""
    return int(error.value)


def raise_if_fatal(error: pynvml.NVMLError) -> None:
    """Turn an error that is not about one question into ours.

    Raises:
        DeviceLost, NvmlBroken
    """
    code = code_of(error)
    if code in LOST:
        raise DeviceLost(str(error)) from error
    if code in BROKEN:
        raise NvmlBroken(str(error)) from error
