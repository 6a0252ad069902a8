"""What runs batches, all in one form: the worker's runtime, a plan without anything of ours, PyTorch."""

from __future__ import annotations

import json
import math
import os
import select
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "worker")]

# Batches are launched in groups, with a wait after each: about this long, so that the wait weighs nothing.
GROUP_SECONDS = 0.1
FEWEST, MOST = 8, 128


class Runner(Protocol):
    """Runs batches of one variant."""

    def warm(self, batch: int, scope: str, instances: int) -> None:
        """Make ready for a batch size: graphs captured, memory filled with images."""

    def rate(self, batch: int, scope: str, instances: int, seconds: float) -> float:
        """Images a second, batches back to back for about that long."""

    def latencies(self, batch: int, scope: str, seconds: float) -> list[float]:
        """Milliseconds of batches one at a time, one at least."""

    def close(self) -> None: ...


def group_size(seconds: float) -> int:
    """How many batches are launched between waits, when one takes `seconds`."""
    return max(FEWEST, min(MOST, round(GROUP_SECONDS / max(seconds, 1e-6))))


def random_images(shape: tuple[int, ...], dtype: str, seed: int) -> np.ndarray[Any, Any]:
    """Noise, 16 images of it again and again: power depends on what is computed, and zeros take less."""
    random = np.random.default_rng(seed)
    few = (min(shape[0], 16), *shape[1:])
    if dtype == "UINT8":
        return np.resize(random.integers(0, 256, few, np.uint8), shape)
    return np.resize(random.standard_normal(few, np.float32), shape)


class EngineRunner:
    """An engine in the worker's runtime. `engine`: device memory to device memory; `host`: pinned to pinned."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._spec = engine.signature.inputs[0]
        self._instances: list[Any] = []
        self._seconds: dict[tuple[int, str], float] = {}

    @classmethod
    def load(cls, folder: Path, options: Mapping[str, Any]) -> EngineRunner:
        """Load a plan on the first GPU."""
        from enginehouse_worker.backends import registry
        from enginehouse_worker.backends.tensorrt.options import LOAD_OPTIONS

        # A batch size is measured as it is.
        exact = {"padding": "off"} if "padding" in LOAD_OPTIONS else {}
        return cls(registry.get("tensorrt").load(folder, device="cuda:0", options={**exact, **options}))

    def outputs(self, images: np.ndarray[Any, Any], smallest: int, largest: int) -> np.ndarray[Any, Any]:
        """The first output for every image, in batches that the engine takes."""
        name, output = self._spec.name, self._engine.signature.outputs[0].name
        parts = []
        for begin in range(0, len(images), largest):
            part = images[begin : begin + largest]
            filled = np.resize(part, (max(smallest, len(part)), *part.shape[1:]))
            parts.append(self._instance(0).run({name: filled}, ())[output][: len(part)].copy())
        return np.concatenate(parts)

    def warm(self, batch: int, scope: str, instances: int) -> None:
        images = random_images(self._shapes(batch)[0], self._spec.dtype, batch)
        for number in range(instances):
            instance = self._instance(number)
            # Every slot that is launched gets images: the first, or with copies all of the ring.
            slots = instance.ring if scope == "host" else 1
            for ticket in [instance.begin({self._spec.name: images}, {}) for _ in range(slots)]:
                instance.finish(ticket)
            for _ in range(3):
                instance.launch(self._shapes(batch), copies=scope == "host")
            instance.wait()
        self._seconds[batch, scope] = min(self.latencies(batch, scope, 0.05)) / 1e3

    def rate(self, batch: int, scope: str, instances: int, seconds: float) -> float:
        shapes, copies = self._shapes(batch), scope == "host"
        running = [self._instance(number) for number in range(instances)]
        group = -(-group_size(self._seconds[batch, scope]) // instances)
        count, begin = 0, time.perf_counter()
        while time.perf_counter() - begin < seconds:
            for _ in range(group):
                for instance in running:
                    instance.launch(shapes, copies=copies)
            for instance in running:
                instance.wait()
            count += group * instances
        return count * batch / (time.perf_counter() - begin)

    def latencies(self, batch: int, scope: str, seconds: float) -> list[float]:
        shapes, copies, instance = self._shapes(batch), scope == "host", self._instance(0)
        found: list[float] = []
        begin = time.perf_counter()
        while not found or time.perf_counter() - begin < seconds:
            start = time.perf_counter()
            instance.launch(shapes, copies=copies)
            instance.wait()
            found.append((time.perf_counter() - start) * 1e3)
        return found

    def close(self) -> None:
        while self._instances:
            self._instances.pop().close()
        self._engine.close()

    def _shapes(self, batch: int) -> tuple[tuple[int, ...], ...]:
        return ((batch, *self._spec.shape[1:]),)

    def _instance(self, number: int) -> Any:
        while len(self._instances) <= number:
            self._instances.append(self._engine.new_instance())
        return self._instances[number]


class DirectRunner:
    """The same plan without our runtime (`direct.py`), timed by events on the GPU."""

    def __init__(self, plan: Path) -> None:
        from tensorrt_speed.direct import Direct

        self._direct = Direct(plan)
        self._group: dict[int, int] = {}

    def warm(self, batch: int, scope: str, instances: int) -> None:
        self._direct.prepare(batch)
        self._direct.seconds(batch, 3)
        self._group[batch] = group_size(self._direct.seconds(batch, 10) / 10)

    def rate(self, batch: int, scope: str, instances: int, seconds: float) -> float:
        group, count, took = self._group[batch], 0, 0.0
        begin = time.perf_counter()
        while time.perf_counter() - begin < seconds:
            took += self._direct.seconds(batch, group)
            count += group
        return count * batch / took

    def latencies(self, batch: int, scope: str, seconds: float) -> list[float]:
        found: list[float] = []
        begin = time.perf_counter()
        while not found or time.perf_counter() - begin < seconds:
            found.append(self._direct.seconds(batch, 1) * 1e3)
        return found

    def close(self) -> None:
        self._direct.close()


class TorchRunner:
    """PyTorch in a process of its own (`torch_server.py`), idle unless asked.

    An answer may take `limit_seconds`, and none is awaited after `deadline` (monotonic clock).
    """

    def __init__(self, python: str, mode: str, cache: Path, limit_seconds: float, deadline: float = math.inf) -> None:
        command = [python, str(Path(__file__).parent / "torch_server.py"), "--mode", mode, "--cache", str(cache)]
        self._limit, self._deadline = limit_seconds, deadline
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=host_environment(), bufsize=0
        )
        self._pending = b""
        self.facts: dict[str, Any] = {"mode": mode}
        self._warm: set[int] = set()

    def warm(self, batch: int, scope: str, instances: int) -> None:
        if batch in self._warm:
            return
        answer = self._ask(f"warm {batch}")
        self._warm.add(batch)
        self.facts |= answer
        self._ask(f"window {batch} 0.1")

    def rate(self, batch: int, scope: str, instances: int, seconds: float) -> float:
        return float(self._ask(f"window {batch} {seconds}")["rate"])

    def latencies(self, batch: int, scope: str, seconds: float) -> list[float]:
        return [float(value) for value in self._ask(f"latency {batch} {seconds}")["milliseconds"]]

    def close(self) -> None:
        self._process.kill()
        self._process.wait()

    def _ask(self, command: str) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(command.encode() + b"\n")
        except BrokenPipeError:
            raise RuntimeError(f"PyTorch's process ended ({self._process.wait()})") from None
        due = min(time.monotonic() + self._limit, self._deadline)
        while b"\n" not in self._pending:
            left = due - time.monotonic()
            if left <= 0 or not select.select([self._process.stdout], [], [], left)[0]:
                self.close()
                raise RuntimeError(
                    f"PyTorch did not answer {command!r} in time (at most {self._limit:.0f} s) and was ended"
                )
            data = os.read(self._process.stdout.fileno(), 1 << 16)
            if not data:
                raise RuntimeError(f"PyTorch's process ended ({self._process.wait()}) at {command!r}")
            self._pending += data
        line, self._pending = self._pending.split(b"\n", 1)
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise RuntimeError(f"PyTorch: {answer['error']}")
        return answer


def host_environment() -> dict[str, str]:
    """For another Python: without the paths of this one's packages."""
    return {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
