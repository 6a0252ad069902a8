"""One run of the benchmark's command: what is to be done, what is done, what failed, and where it runs."""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from tensorrt_speed import rows
from tensorrt_speed.builds import Builds
from tensorrt_speed.runners import GROUP_SECONDS, DirectRunner, EngineRunner, Runner, TorchRunner
from tensorrt_speed.variants import Point, Variant, points

# A build with less than this left is not begun.
FEWEST_SECONDS = 10.0
# What a point takes before its first window.
WARMING_SECONDS = 0.5


class Campaign:
    """One run of the command: its settings, and what failed."""

    def __init__(self, arguments: argparse.Namespace, variants: Sequence[Variant]) -> None:
        self.work: Path = arguments.work
        self.out: Path = arguments.out
        self.rounds: int = arguments.rounds
        self.seconds: float = arguments.seconds
        self.host_python: str = arguments.host_python
        self.variants = variants
        self.begin = time.monotonic()
        self.deadline: float = self.begin + float(arguments.deadline)
        self.failed: dict[str, str] = {}
        self.build_limit: float = arguments.build_limit
        self.builds = Builds(self.work, self.build_limit)
        self.torch_limit: float = arguments.torch_limit
        self.sitting = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        facts = environment()
        self.device = {"device": facts["gpu"]} if "gpu" in facts else {}
        self.environment = rows.add_environment(self.out, facts)
        self.done = rows.measured(rows.read(self.out / "rows.jsonl"))

    def say(self, text: str) -> None:
        """Print with the seconds since the beginning."""
        print(f"[{time.monotonic() - self.begin:6.1f}] {text}", flush=True)

    @property
    def late(self) -> bool:
        """Whether nothing more may be begun."""
        return time.monotonic() >= self.deadline

    def fail(self, name: str, error: BaseException) -> None:
        """Note why a variant failed; it is not tried again in this run."""
        self.failed[name] = f"{type(error).__name__}: {error}"
        rows.append(self.out / "builds.jsonl", {"variant": name, "failed": self.failed[name], "time": self.sitting})
        self.say(f"{name} FAILED: {self.failed[name]}")

    def missing(self, variant: Variant) -> list[Point]:
        """The variant's points without a row."""
        return [point for point in points(variant) if point not in self.done]

    def measuring_seconds(self) -> float:
        """About what measuring takes of the points that are missing: builds leave that much time."""
        count = sum(len(self.missing(variant)) for variant in self.variants)
        return count * (self.rounds * (1.5 * self.seconds + GROUP_SECONDS) + WARMING_SECONDS)

    def build(self) -> None:
        """Build what is missing of the plans that are needed."""
        needed = {variant.plan_name for variant in self.variants if self.missing(variant)}
        last = self.deadline - self.measuring_seconds()
        for variant in self.variants:
            if not variant.built or variant.name not in needed or self.builds.known(variant) is not None:
                continue
            left = last - time.monotonic()
            if left < FEWEST_SECONDS:
                self.fail(variant.name, TimeoutError("no time is left for its build; measuring comes first"))
                continue
            self.builds.limit = min(self.build_limit, left)
            try:
                record = self.builds.build(variant)
            except Exception as error:
                self.fail(variant.name, error)
                continue
            rows.append(self.out / "builds.jsonl", {**record, "time": self.sitting, "environment": self.environment})
            self.say(f"built {record}")
        self.builds.close()  # frees what it holds of the GPU

    def runner(self, variant: Variant) -> Runner:
        """What runs a variant."""
        if variant.kind == "torch":
            mode = variant.options.get("mode", "reduce-overhead")
            return TorchRunner(self.host_python, mode, self.work / "torch", self.torch_limit, self.deadline)
        folder = self.builds.folder(variant.plan_name)
        if variant.kind == "direct":
            return DirectRunner(folder / "model.plan")
        return EngineRunner.load(folder, variant.load)


def environment() -> dict[str, Any]:
    """This machine and the versions in use."""
    names = [text.partition(":")[2].strip() for text in _lines("/proc/cpuinfo") if text.startswith("model name")]
    found: dict[str, Any] = {
        "cpu": names[0] if names else platform.machine(),
        "cores": os.cpu_count(),
        "os": platform.platform(),
        "python": platform.python_version(),
        "numpy": np.__version__,
    }
    for package in ("tensorrt", "cuda-bindings"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    query = ["nvidia-smi", "-i", "0", "--query-gpu=name,driver_version,power.limit", "--format=csv,noheader"]
    try:
        text = subprocess.run(query, capture_output=True, text=True, check=True, timeout=30).stdout
        found["gpu"], found["driver"], found["power_limit"] = (part.strip() for part in text.strip().split(","))
    except (OSError, ValueError, subprocess.SubprocessError):
        pass
    return found


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []
