"""TensorFlow's devices and switches, in a process of their own: they are a process's for good."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.tensorflow

# One process for all, for TensorFlow takes seconds to import. The GPU is a stand-in; the switch is TensorFlow's own.
SCRIPT = """
from enginehouse_worker.backends.tensorflow import device
from enginehouse_worker.errors import WorkerError

def told(name, tf32):
    try:
        return str(device.open_device(name, tf32=tf32).to_json())
    except WorkerError as error:
        return f"{error.code}: {error.message}"

switch = device.framework().config.experimental.tensor_float_32_execution_enabled
real = device._choose_gpu
device._choose_gpu = lambda tf, index: device.DeviceFacts("gpu", "stand-in", "9.0")
for name, tf32 in (("cuda:0", None), ("cuda:0", True), ("gpu", None), ("cuda:0", False), ("cuda:1", True)):
    print(switch() if told(name, tf32).startswith("{") else told(name, tf32))
device._choose_gpu, device._opened = real, None
for name, tf32 in (("cuda:3", False), ("tpu", False), ("cpu", True), ("cuda:0", False), ("cpu", False)):
    print(told(name, tf32))
print(switch())
"""


def test_a_process_has_one_device_and_one_switch_for_tf32() -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "CUDA_VISIBLE_DEVICES": "-1"}
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    # Where nobody cares it is off, and open to the first that does.
    assert lines[:3] == ["False", "True", "True"]
    assert lines[3].startswith("FAILED_PRECONDITION") and "with TF32 on already, and not with TF32 off" in lines[3]
    assert lines[4].startswith("FAILED_PRECONDITION") and "on cuda:0 already, and not on cuda:1" in lines[4]
    assert lines[5].startswith("FAILED_PRECONDITION: TensorFlow finds no GPU 3 on this machine (GPUs found: 0)")
    assert lines[6].startswith("INVALID_ARGUMENT: ") and "'tpu'" in lines[6]
    assert "'kind': 'cpu'" in lines[7] and "compute_capability" not in lines[7]
    assert lines[8].startswith("FAILED_PRECONDITION: this process runs TensorFlow on cpu already, and not on cuda:0")
    assert lines[9] == lines[7]
    assert lines[10] == "False"
