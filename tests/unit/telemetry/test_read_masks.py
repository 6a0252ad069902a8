"""Read masks pick what they name and nothing else."""

from __future__ import annotations

import pytest
from enginehouse_telemetry.masks import SAMPLE_PATHS, ReadMask
from enginehouse_telemetry.messages import sample_message
from hypothesis import given
from hypothesis import strategies as st

from enginehouse.errors import InvalidArgumentError
from enginehouse.v1 import telemetry_pb2 as pb


@pytest.fixture
def sample(make_reading):  # type: ignore[no-untyped-def]
    return sample_message(make_reading(), "projects/default/nodes/n")


def test_picks_fields_of_each_gpu_and_of_the_host(sample) -> None:  # type: ignore[no-untyped-def]
    part = ReadMask(["gpus.power_draw_watts", "gpus.processes.pid", "host.memory_total_bytes", "time"]).apply(sample)
    assert [gpu.power_draw_watts for gpu in part.gpus] == [70.125, 0.0]
    assert not part.gpus[1].HasField("power_draw_watts")
    assert part.gpus[0].processes[0].pid == 7 and not part.gpus[0].processes[0].HasField("name")
    assert part.gpus[0].uuid == "" and part.node == "" and part.sequence == 0
    assert part.time == sample.time
    assert part.host.memory_total_bytes == 64 and not part.host.HasField("cpu_utilization_percent")


@pytest.mark.parametrize("paths", [[], ["*"], ["time", "*"], ["time", "node", "sequence", "gpus", "host"]])
def test_everything(paths, sample) -> None:  # type: ignore[no-untyped-def]
    assert ReadMask(paths).apply(sample) == sample


@given(st.lists(st.sampled_from(SAMPLE_PATHS), min_size=1))
def test_order_and_repetition_do_not_matter(paths: list[str]) -> None:
    sample = pb.Sample(node="projects/default/nodes/n", sequence=4, host=pb.HostSample(cpu_power_watts=0.0))
    sample.time.FromSeconds(7)
    sample.gpus.add(uuid="GPU-0", pstate=0, power_draw_watts=1.5, processes=[pb.GpuProcess(pid=1, name="x")])
    sample.gpus.add(uuid="GPU-1", throttle_reasons=["gpu_idle"])
    once = ReadMask(paths).apply(sample)
    assert ReadMask([*reversed(paths), *paths]).apply(sample) == once
    assert ReadMask(paths).apply(once) == once


def test_a_zero_that_was_read_is_not_lost(sample) -> None:  # type: ignore[no-untyped-def]
    gpu = ReadMask(["gpus.utilization_memory_percent"]).apply(sample).gpus[0]
    assert gpu.HasField("utilization_memory_percent") and gpu.utilization_memory_percent == 0


@pytest.mark.parametrize(
    ("path", "close"),
    [
        ("power_draw_watts", "gpus.power_draw_watts"),
        ("gpus.power_draw", "gpus.power_draw_watts"),
        ("utilization_gpu_percents", "gpus.utilization_gpu_percent"),
        ("time.seconds", "expected paths within Sample"),
        ("", "expected paths"),
        ("zzz", "expected paths"),
    ],
)
def test_unknown_paths(path: str, close: str) -> None:
    with pytest.raises(InvalidArgumentError, match=close):
        ReadMask([path])
