"""Loading NVML, and loading it anew when the driver's version changed under us."""

from __future__ import annotations

import _ctypes

import pynvml as nv

from enginehouse_telemetry.nvml_errors import NvmlBroken, code_of


def open_library() -> int:
    """Load and initialize NVML; returns the number of GPUs.

    Raises:
        NvmlBroken: the library or the driver is not there, or they do not match.
    """
    try:
        nv.nvmlInit()
    except nv.NVMLError as error:
        if code_of(error) == nv.NVML_ERROR_LIB_RM_VERSION_MISMATCH:
            _unload()  # an upgrade has put another library in its place, or will
        raise NvmlBroken(str(error)) from error
    try:
        return int(nv.nvmlDeviceGetCount())
    except nv.NVMLError as error:
        close_library()
        raise NvmlBroken(str(error)) from error


def close_library() -> None:
    """Release NVML. No other thread may be in a call."""
    try:
        nv.nvmlShutdown()
    except nv.NVMLError:
        _unload()  # not even that works: the driver went away, and a new one may come with a library of its own


def _unload() -> None:
    """Unload the library, so that the next use loads what is there then; pynvml alone would keep it for ever."""
    library = nv.nvmlLib
    if library is None:
        return
    nv._nvmlGetFunctionPointer_cache.clear()
    nv.nvmlLib = None
    _ctypes.dlclose(library._handle)
