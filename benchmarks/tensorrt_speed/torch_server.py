"""PyTorch's ResNet-50 in FP16, channels last, compiled: driven line by line, so that it takes turns with others.

    python torch_server.py --mode reduce-overhead --cache FOLDER [--warm 1 32 128]

Commands on standard input, one a line, answered by a JSON object a line:
`warm BATCH` compiles for a batch size; `window BATCH SECONDS` is images a second, batches back to back; `latency BATCH
SECONDS` is milliseconds of batches one at a time. Images are in device memory. `--warm` compiles, says how long it took
and ends: a later process with the same cache folder compiles faster. Runs with the Python that has PyTorch.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

_IN_FLIGHT = 16


class Server:
    """The compiled network, and images of each batch size."""

    def __init__(self, mode: str) -> None:
        import torch
        import torchvision

        self._torch = torch
        torch.manual_seed(0)
        torch.backends.cudnn.benchmark = True
        self._gpu = torch.cuda.is_available()
        self._device = torch.device("cuda" if self._gpu else "cpu")
        network = torchvision.models.resnet50(weights=None).eval().to(self._device, torch.float16)
        network = network.to(memory_format=torch.channels_last)
        self._network = torch.compile(network, mode=mode, dynamic=False)
        self._images: dict[int, Any] = {}

    def warm(self, batch: int) -> dict[str, Any]:
        begin = time.monotonic()
        images = self._torch.randn(batch, 3, 224, 224, device=self._device, dtype=self._torch.float16)
        self._images[batch] = images.contiguous(memory_format=self._torch.channels_last)
        for _ in range(5):  # with CUDA graphs the second and third calls record
            self._run(batch)
        self._wait()
        return {"compile_seconds": round(time.monotonic() - begin, 1), "torch": self._torch.__version__}

    def window(self, batch: int, seconds: float) -> dict[str, Any]:
        count, begin = 0, time.perf_counter()
        while time.perf_counter() - begin < seconds:
            for _ in range(_IN_FLIGHT):
                self._run(batch)
            self._wait()
            count += _IN_FLIGHT
        return {"rate": count * batch / (time.perf_counter() - begin)}

    def latency(self, batch: int, seconds: float) -> dict[str, Any]:
        found: list[float] = []
        begin = time.perf_counter()
        while time.perf_counter() - begin < seconds:
            start = time.perf_counter()
            self._run(batch)
            self._wait()
            found.append(round((time.perf_counter() - start) * 1e3, 4))
        return {"milliseconds": found}

    def _run(self, batch: int) -> None:
        with self._torch.inference_mode():
            self._network(self._images[batch])

    def _wait(self) -> None:
        if self._gpu:
            self._torch.cuda.synchronize()


def serve(server: Server, answers: TextIO) -> None:
    """Answer commands until the input ends."""
    for line in sys.stdin:
        name, *values = line.split()
        commands: dict[str, Callable[[], dict[str, Any]]] = {
            "warm": lambda values=values: server.warm(int(values[0])),  # type: ignore[misc]
            "window": lambda values=values: server.window(int(values[0]), float(values[1])),  # type: ignore[misc]
            "latency": lambda values=values: server.latency(int(values[0]), float(values[1])),  # type: ignore[misc]
        }
        try:
            answer = commands[name]()
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"[:2000]}
        print(json.dumps(answer), file=answers, flush=True)


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--mode", default="reduce-overhead")
    cli.add_argument("--cache", type=Path, required=True)
    cli.add_argument("--warm", type=int, nargs="*")
    arguments = cli.parse_args()
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(arguments.cache / "inductor"))
    os.environ.setdefault("TRITON_CACHE_DIR", str(arguments.cache / "triton"))
    answers, sys.stdout = sys.stdout, sys.stderr  # whatever else prints must not be taken for an answer
    server = Server(arguments.mode)
    if arguments.warm is not None:
        for batch in arguments.warm:
            print(f"torch {arguments.mode}, batch {batch}: {json.dumps(server.warm(batch))}", file=answers, flush=True)
        return
    serve(server, answers)


if __name__ == "__main__":
    main()
