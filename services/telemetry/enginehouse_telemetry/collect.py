"""The collectors without the service: needs pynvml and psutil, neither gRPC nor pydantic.

    python -m enginehouse_telemetry.collect --seconds 5 --period 0.1 --out samples.jsonl

writes a JSON object a sample, and to standard error the devices, what did not work, how well the period held and how
long each NVML call took.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

from enginehouse_telemetry.host import HostCollector
from enginehouse_telemetry.node import NodeCollector
from enginehouse_telemetry.nvml_collector import NvmlCollector
from enginehouse_telemetry.pace import next_due
from enginehouse_telemetry.readings import NodeReading, as_mapping
from enginehouse_telemetry.timing import Timings


def readings(collector: NodeCollector, seconds: float, period: float) -> Iterator[tuple[NodeReading, float]]:
    """Readings every `period` for `seconds`, each with the seconds that it took."""
    start = due = time.monotonic()
    while due - start < seconds - period / 2:
        time.sleep(max(0.0, due - time.monotonic()))
        began = time.monotonic()
        yield collector.read(), time.monotonic() - began
        due, _ = next_due(due, time.monotonic(), period)


def main(arguments: Sequence[str] | None = None) -> int:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--seconds", type=float, default=5.0)
    cli.add_argument("--period", type=float, default=1.0, help="seconds between samples")
    cli.add_argument("--detail-period", type=float, default=1.0, help="seconds between the slow questions")
    cli.add_argument("--out", type=Path, help="file; standard output when absent")
    options = cli.parse_args(arguments)

    timings = Timings()
    gpus = NvmlCollector(detail_period=options.detail_period, timings=timings)
    collector = NodeCollector(gpus, HostCollector(detail_period=options.detail_period))
    took: list[float] = []
    began: list[float] = []
    with contextlib.ExitStack() as stack:
        stack.callback(collector.close)
        out: TextIO = stack.enter_context(options.out.open("w")) if options.out else sys.stdout
        for reading, seconds in readings(collector, options.seconds, options.period):
            took.append(seconds)
            began.append(reading.monotonic)
            print(json.dumps(as_mapping(reading)), file=out)
        report(gpus, timings, took, began)
    return 0


def report(gpus: NvmlCollector, timings: Timings, took: list[float], began: list[float]) -> None:
    """Say on standard error what was read and how fast."""
    say = sys.stderr.write
    if gpus.message:
        say(f"{gpus.message}\n")
    for status in gpus.statuses:
        say(json.dumps({**as_mapping(status.identity), "lost": status.lost, "message": status.message}) + "\n")
    gaps = [(after - before) * 1e3 for before, after in itertools.pairwise(began)]
    if gaps:
        say(
            f"{len(took)} samples; a reading took {statistics.mean(took) * 1e3:.2f} ms on average, "
            f"{max(took) * 1e3:.2f} at worst; between samples {statistics.mean(gaps):.1f} ms, {max(gaps):.1f} at most\n"
        )
    for name, count, mean, worst in timings.table():
        say(f"{name:32} {count:6} calls  mean {mean:8.3f} ms  worst {worst:8.3f} ms\n")


if __name__ == "__main__":
    sys.exit(main())
