"""Runs one engine in one mode and times it when told to: TensorFlow's device and its TF32 switch are a process's.

A JSON object a line comes on standard input and one goes back: `{"do": "rate", "batch": 8, "scope": "host",
"seconds": 0.5}` answers `{"rate": images a second}`; see `Server`. What fails answers `{"error": "..."}`.

Scopes: `host` is from an array in host memory to arrays in host memory, by the worker's runtime; `engine` is from a
tensor on the GPU to tensors on the GPU, batches back to back with one wait at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "worker")]

REFERENCE = {"distribution": "images", "samples": 16, "seed": 1}
_WARM_RUNS = 5


class Server:
    """One loaded engine. Its public methods are what may be asked for."""

    def __init__(self, backend: str, folder: Path, device: str, options: dict[str, str]) -> None:
        from enginehouse_worker.backends import registry

        self._engine = registry.get(backend).load(folder, device=device, options=options)
        self._instance: Any = self._engine.new_instance()
        self._spec = self._engine.signature.inputs[0]
        self._seconds: dict[tuple[int, str], float] = {}
        self._inputs: dict[int, Any] = {}
        self._tensors: dict[int, Any] = {}

    def warm(self, batch: int, scope: str) -> dict[str, Any]:
        """Make ready for a batch size."""
        from tensorrt_speed.runners import random_images

        if batch not in self._inputs:
            images = random_images((batch, *self._spec.shape[1:]), self._spec.dtype, batch)
            self._inputs = {batch: {self._spec.name: images}}
            self._tensors = {batch: self._instance.to_tensors(self._inputs[batch])}
        for _ in range(_WARM_RUNS):
            took = self._one(batch, scope)
        self._seconds[batch, scope] = took
        return {}

    def rate(self, batch: int, scope: str, seconds: float) -> dict[str, Any]:
        """Batches back to back for about `seconds`, one at least: `rate` is images a second."""
        from tensorrt_speed.runners import group_size

        group = group_size(self._seconds[batch, scope]) if scope == "engine" else 1
        count, begin = 0, time.perf_counter()
        while not count or time.perf_counter() - begin < seconds:
            if scope == "engine":
                for _ in range(group):
                    self._instance.compute(self._tensors[batch])
                _wait()
            else:
                self._instance.run(self._inputs[batch], ())
            count += group
        return {"rate": count * batch / (time.perf_counter() - begin)}

    def latencies(self, batch: int, scope: str, seconds: float) -> dict[str, Any]:
        """Batches one at a time for about `seconds`, one at least: `ms` of each."""
        found, begin = [], time.perf_counter()
        while not found or time.perf_counter() - begin < seconds:
            found.append(self._one(batch, scope) * 1e3)
        return {"ms": found}

    def reference(self, path: str) -> dict[str, Any]:
        """Keep what this engine makes of some images."""
        images = self._images()
        np.savez(path, input=images, output=self._outputs(images))
        return {}

    def accuracy(self, path: str) -> dict[str, Any]:
        """`sqnr_db` of this engine's outputs for the reference's images."""
        from enginehouse_worker.metrics import Agreement

        kept = np.load(path)
        agreement = Agreement()
        agreement.add(kept["output"], self._outputs(kept["input"]))
        return {} if agreement.sqnr_db is None else {"sqnr_db": round(agreement.sqnr_db, 2)}

    def _one(self, batch: int, scope: str) -> float:
        """Seconds of one batch."""
        begin = time.perf_counter()
        if scope == "engine":
            self._instance.compute(self._tensors[batch])
            _wait()
        else:
            self._instance.run(self._inputs[batch], ())
        return time.perf_counter() - begin

    def _images(self) -> Any:
        from enginehouse_worker.synthetic import SyntheticDataset

        batches = SyntheticDataset(REFERENCE, self._engine.signature, None).batches(16)
        return np.concatenate([batch[self._spec.name] for batch in batches])

    def _outputs(self, images: Any) -> Any:
        name = self._engine.signature.outputs[0].name
        return self._instance.run({self._spec.name: images}, (name,))[name]


def _wait() -> None:
    import tensorflow as tf

    tf.test.experimental.sync_devices()


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--backend", required=True)
    cli.add_argument("--engine", type=Path, required=True)
    cli.add_argument("--device", required=True)
    cli.add_argument("--options", default="{}")
    arguments = cli.parse_args()
    # Frameworks print to standard output as they like: it goes to the log.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    server: Server | None = None
    for line in sys.stdin:
        asked = json.loads(line)
        what = asked.pop("do")
        try:
            if what == "load":
                begin = time.perf_counter()
                server = Server(arguments.backend, arguments.engine, arguments.device, json.loads(arguments.options))
                answer: dict[str, Any] = {"load_seconds": round(time.perf_counter() - begin, 1)}
            else:
                answer = getattr(server, what)(**asked)
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"[:2000]}
        answers.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
