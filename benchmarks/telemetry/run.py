"""Simulated agents, the aggregator and readers, each in processes of their own on this machine.

    python -m benchmarks.telemetry.run --agents 1000 --gpus 8 --seconds 60 --out results/epyc-2-cores/telemetry

Writes a row for each `--agents` to rows.jsonl: lag, loss, the aggregator's memory and CPU time, and the CPU time of
what loads it, which shares the machine's cores. The aggregator runs with its default settings.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

AGENTS_A_PROCESS = 250
PACKAGES = ("grpcio", "protobuf", "prometheus_client")


@contextlib.contextmanager
def process(*command: str, variables: Mapping[str, str] | None = None) -> Iterator[subprocess.Popen[str]]:
    """A Python module as a process, killed in the end."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ENGINEHOUSE_")}
    running = subprocess.Popen(
        [sys.executable, "-m", *command], env={**kept, **(variables or {})}, stdout=subprocess.PIPE, text=True
    )
    try:
        yield running
    finally:
        running.kill()
        running.wait()


def agent_processes(stack: contextlib.ExitStack, count: int, gpus: int) -> tuple[list[psutil.Process], list[int]]:
    """Processes with `count` agents among them, and the agents' ports."""
    found, ports = [], []
    for first in range(0, count, AGENTS_A_PROCESS):
        size = min(AGENTS_A_PROCESS, count - first)
        words = ("--count", str(size), "--first", str(first), "--gpus", str(gpus))
        started = stack.enter_context(process("benchmarks.telemetry.agents", *words))
        assert started.stdout is not None
        ports += json.loads(started.stdout.readline())
        found.append(psutil.Process(started.pid))
    return found, ports


def aggregator(stack: contextlib.ExitStack, ports: list[int], folder: Path) -> tuple[psutil.Process, int]:
    """The aggregator of these agents, and its port."""
    announced = folder / "announced.json"
    variables = {
        "ENGINEHOUSE_AGENTS": ",".join(f"127.0.0.1:{port}" for port in ports),
        "ENGINEHOUSE_PORT": "0",
        "ENGINEHOUSE_METRICS_PORT": "0",
        "ENGINEHOUSE_LOG_LEVEL": "warning",
        "ENGINEHOUSE_ANNOUNCE_FILE": str(announced),
    }
    started = stack.enter_context(process("enginehouse_telemetry.aggregator", variables=variables))
    while not announced.exists():
        if started.poll() is not None:
            raise SystemExit("the aggregator did not start")
        time.sleep(0.05)
    return psutil.Process(started.pid), int(json.loads(announced.read_text())["port"])


def cpu_seconds(processes: list[psutil.Process]) -> float:
    """CPU time that the processes have used."""
    return sum(sum(one.cpu_times()[:2]) for one in processes)


def _busy(times: Any) -> float:
    """Seconds in which the machine's cores did something."""
    return float(times.user + times.system + times.nice)


def measure(agents: int, gpus: int, seconds: float, readers: int) -> dict[str, Any]:
    """One row."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        loaders, ports = agent_processes(stack, agents, gpus)
        server, port = aggregator(stack, ports, folder)
        words = ("--address", f"127.0.0.1:{port}", "--nodes", str(agents), "--seconds", str(seconds))
        reading = [stack.enter_context(process("benchmarks.telemetry.reader", *words)) for _ in range(readers)]
        everyone = [server, *loaders, *(psutil.Process(one.pid) for one in reading)]
        time.sleep(seconds / 2 + 10)  # in the middle of the readers' measurement, so that start and end do not count
        began, before, whole = time.monotonic(), cpu_seconds([server]), cpu_seconds(everyone)
        memory = [server.memory_info().rss]
        machine = psutil.cpu_times()
        while time.monotonic() - began < seconds / 4:
            time.sleep(1.0)
            memory.append(server.memory_info().rss)
        elapsed = time.monotonic() - began
        used, all_used = cpu_seconds([server]) - before, cpu_seconds(everyone) - whole
        others = max(0.0, _busy(psutil.cpu_times()) - _busy(machine) - all_used)
        seen = []
        for one in reading:
            output, _ = one.communicate(timeout=seconds + 180)
            seen.append(json.loads(output))
        worst = max(seen, key=lambda row: row["lag_ms"]["p99"])
        return {
            "agents": agents,
            "gpus_per_agent": gpus,
            "interval_s": 1.0,
            "readers": readers,
            "seconds": seconds,
            **worst,
            "lost_by_reader": [row["lost"] for row in seen],
            "aggregator_cpu_cores": round(used / elapsed, 3),
            "all_cpu_cores": round(all_used / elapsed, 3),
            # What other work on the machine took of its cores meanwhile.
            "foreign_cpu_cores": round(others / elapsed, 3),
            "aggregator_rss_mib": {"first": round(memory[0] / 2**20, 1), "last": round(memory[-1] / 2**20, 1)},
        }


def environment() -> dict[str, Any]:
    """The machine and the versions."""
    cpu = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.processor(),
    )
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in PACKAGES},
    }


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--agents", type=int, nargs="+", default=[1000])
    cli.add_argument("--gpus", type=int, default=8)
    cli.add_argument("--seconds", type=float, default=60.0)
    cli.add_argument("--readers", type=int, default=1)
    cli.add_argument("--out", type=Path, help="folder for rows.jsonl and environment.json")
    options = cli.parse_args()
    for agents in options.agents:
        row = measure(agents, options.gpus, options.seconds, options.readers)
        row |= {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "command": " ".join(sys.argv[1:])}
        print(json.dumps(row), flush=True)
        if options.out:
            options.out.mkdir(parents=True, exist_ok=True)
            (options.out / "environment.json").write_text(json.dumps(environment(), indent=1) + "\n")
            with (options.out / "rows.jsonl").open("a") as rows:
                rows.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
