"""The load of the telemetry benchmark: as large as an agent's, and counted as it should be."""

from __future__ import annotations

import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))

from benchmarks.telemetry.agents import SimulatedAgent, sample_of
from benchmarks.telemetry.reader import Tally
from enginehouse.v1 import telemetry_pb2 as pb

# What an H200 does not report, and what says that something is wrong.
ABSENT = {"state_message", "fan_speed_percent", "mig_instances"}


def test_a_simulated_sample_has_every_field_of_a_real_one() -> None:
    sample = sample_of("n", 8, random.Random(0))
    for gpu in sample.gpus:
        present = {field.name for field, _ in gpu.ListFields()} | {"index"}
        assert set(pb.GpuSample.DESCRIPTOR.fields_by_name) - present == ABSENT
    assert len(sample.gpus) == 8 and len(sample.host.cpu_utilization_percent_per_core) == 64


def test_a_simulated_agent_dates_its_samples_on_its_grid_and_says_what_it_skipped() -> None:
    agent = SimulatedAgent("n", 2)
    first = pb.StreamSamplesResponse.FromString(agent._next(7, 0, 12.5))
    second = pb.StreamSamplesResponse.FromString(agent._next(10, 2, 15.5))
    assert (first.sample.sequence, first.sample.time.ToMilliseconds()) == (7, 12_500)
    assert (second.sample.sequence, second.skipped) == (10, 2)


def test_a_row_has_the_figures_of_what_was_read() -> None:
    tally = Tally(lags=[0.01 * number for number in range(1, 101)], lost=3, skipped=2, messages=50, bytes=4_000_000)
    row = tally.row(2.0, 10)
    assert row["lag_ms"] == {"mean": 505.0, "p50": 505.0, "p90": 901.0, "p99": 990.1, "max": 1000.0}
    assert (row["samples_per_second"], row["lost"], row["megabytes_per_second"]) == (50.0, 3, 2.0)
