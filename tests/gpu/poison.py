"""Runs a worker whose device context is lost on demand: `python poison.py -m enginehouse_worker serve ...`.

A thread waits for the file that ENGINEHOUSE_TEST_POISON names and takes it away, so that it spoils one worker once. On
a GPU a kernel then writes to address 0 in the process's own context, which no later call survives; a worker of CPUs
ends with the exit status of one that lost its device.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import sys
import threading
import time
from pathlib import Path

PTX = b"""
.version 7.0
.target sm_80
.address_size 64
.visible .entry poison()
{
    .reg .b64 %address;
    .reg .b32 %value;
    mov.u64 %address, 0;
    mov.u32 %value, 1;
    st.global.u32 [%address], %value;
    ret;
}
\0"""
LOST = 70


def spoil() -> None:
    """Lose the device context of this process, whose device is 0."""
    cuda = ctypes.CDLL("libcuda.so.1")
    device, context = ctypes.c_int(), ctypes.c_void_p()
    module, kernel = ctypes.c_void_p(), ctypes.c_void_p()

    def call(name: str, *arguments: object) -> None:
        status = getattr(cuda, name)(*arguments)
        print(f"poison: {name}: {status}", file=sys.stderr, flush=True)

    call("cuInit", 0)
    call("cuDeviceGet", ctypes.byref(device), 0)
    call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
    call("cuCtxSetCurrent", context)
    call("cuModuleLoadData", ctypes.byref(module), PTX)
    call("cuModuleGetFunction", ctypes.byref(kernel), module, b"poison")
    one = ctypes.c_uint(1)
    call("cuLaunchKernel", kernel, one, one, one, one, one, one, ctypes.c_uint(0), None, None, None)
    call("cuCtxSynchronize")


def wait_for(trigger: Path, device: str) -> None:
    while True:
        try:
            trigger.unlink()
        except FileNotFoundError:
            time.sleep(0.02)
            continue
        if device == "cpu":
            os._exit(LOST)
        spoil()
        return


def main() -> None:
    arguments = sys.argv[3:]
    trigger = Path(os.environ["ENGINEHOUSE_TEST_POISON"])
    device = arguments[arguments.index("--device") + 1] if "--device" in arguments else "cpu"
    threading.Thread(target=wait_for, args=(trigger, device), daemon=True).start()
    sys.argv = ["enginehouse_worker", *arguments]
    sys.path.pop(0)  # this folder
    runpy.run_module("enginehouse_worker", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
