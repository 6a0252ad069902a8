"""Which devices inference processes are started on."""

from __future__ import annotations

from pathlib import Path

import pytest

from enginehouse.errors import FailedPreconditionError, InvalidArgumentError
from enginehouse.local.devices import Gpu, Gpus, LocalDevice, choose_devices, visible
from enginehouse.local.plan import StackOptions, processes_of

TWO = Gpus((Gpu("GPU-aa", "NVIDIA H200"), Gpu("GPU-bb", "NVIDIA H200")))
NONE = Gpus((), "NVML: Driver Not Loaded")
H200S = [LocalDevice("cuda:0", "NVIDIA H200"), LocalDevice("cuda:1", "NVIDIA H200")]
WITH_TENSORRT = {"ENGINEHOUSE_WORKERS": '{"tensorrt": "/bin/true"}'}


def test_all_is_every_gpu_and_names_are_taken_in_their_order() -> None:
    assert choose_devices("all", {}, TWO) == H200S
    assert choose_devices("gpu:1, cuda:0", {}, TWO) == H200S[::-1]
    assert choose_devices("cpu", {}, TWO) == [LocalDevice("cpu")]
    assert choose_devices("cuda", {}, TWO) == H200S[:1]


def test_without_a_choice_gpus_need_the_environment_of_tensorrt() -> None:
    assert choose_devices(None, {"ENGINEHOUSE_WORKERS": "{}"}, TWO) == [LocalDevice("cpu")]
    assert choose_devices(None, WITH_TENSORRT, TWO) == H200S
    assert choose_devices(None, WITH_TENSORRT, NONE) == [LocalDevice("cpu")]
    assert choose_devices(None, {**WITH_TENSORRT, "ENGINEHOUSE_DEVICE": "cuda:1"}, TWO) == H200S[1:]
    assert choose_devices(None, {"ENGINEHOUSE_DEVICE": "cpu"}, TWO) == [LocalDevice("cpu")]


def test_what_is_not_there_is_refused_with_what_is() -> None:
    with pytest.raises(FailedPreconditionError, match=r"no cuda:2 on this machine; its GPUs: cuda:0 \(NVIDIA H200\)"):
        choose_devices("cuda:2", {}, TWO)
    with pytest.raises(FailedPreconditionError, match=r"no GPU to serve on: NVML: Driver Not Loaded"):
        choose_devices("all", {}, NONE)


@pytest.mark.parametrize("text", ["", ",", "cuda:0,cuda:0", "gpu", "cuda:x", "tpu:0"])
def test_what_is_no_list_of_devices_is_refused(text: str) -> None:
    if text == "gpu":
        assert choose_devices(text, {}, TWO) == H200S[:1]
        return
    with pytest.raises(InvalidArgumentError, match="not valid: expected all, cpu, or devices such as"):
        choose_devices(text, {}, TWO)


def test_hidden_gpus_are_not_counted() -> None:
    assert visible(TWO, {}) == TWO
    assert visible(TWO, {"CUDA_VISIBLE_DEVICES": "1"}).found == TWO.found[1:]
    assert visible(TWO, {"CUDA_VISIBLE_DEVICES": "GPU-bb,GPU-aa"}).found == TWO.found[::-1]
    assert visible(TWO, {"CUDA_VISIBLE_DEVICES": "0,-1,1"}).found == TWO.found[:1]
    assert visible(TWO, {"CUDA_VISIBLE_DEVICES": ""}).reason == "CUDA_VISIBLE_DEVICES is ''"


def test_each_device_has_a_process_on_the_next_port(tmp_path: Path) -> None:
    options = StackOptions(tmp_path, {"optimizer": 8010, "inference": 8001, "telemetry": 0})
    inference = [(p.name, p.port, p.device) for p in processes_of(options, H200S) if p.service == "inference"]
    assert inference == [("inference-cuda-0", 8001, H200S[0]), ("inference-cuda-1", 8002, H200S[1])]
    (alone,) = [p for p in processes_of(options, H200S[:1]) if p.service == "inference"]
    assert alone.name == "inference"
