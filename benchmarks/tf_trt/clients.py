"""The other end of `server.py`: one process a mode, asked line by line."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tf_trt.modes import Mode

ROOT = Path(__file__).resolve().parents[2]


def child_environment(cache: Path) -> dict[str, str]:
    """For processes of this Python: kernels that the driver compiles, 32 s of them on a new chip, are kept."""
    cache.mkdir(parents=True, exist_ok=True)
    paths = os.pathsep.join([str(ROOT / "worker"), *filter(None, [os.environ.get("PYTHONPATH")])])
    kept = {"CUDA_CACHE_PATH": str(cache), "CUDA_CACHE_MAXSIZE": str(4 << 30)}
    return {**os.environ, "PYTHONPATH": paths, "TF_CPP_MIN_LOG_LEVEL": "1", **kept}


class Client:
    """A runner, as `tensorrt_speed.measure.take_turns` wants it, in a process of its own.

    Raises:
        RuntimeError: from every method, when the process answers an error, ends, or does not answer in `limit` seconds.
    """

    def __init__(self, mode: Mode, engine: Path, work: Path, limit: float) -> None:
        self.mode = mode
        self._limit = limit
        self._log = work / "logs" / f"{engine.parent.name}-{mode.name}.log"
        self._log.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, str(Path(__file__).parent / "server.py"), "--backend", mode.backend]
        command += ["--engine", str(engine), "--device", mode.device, "--options", json.dumps(dict(mode.load))]
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=child_environment(work / "cuda-cache"),
                bufsize=0,
            )
        self._pending = b""
        self.send({"do": "load"})

    def warm(self, batch: int, scope: str, instances: int) -> None:
        self.ask({"do": "warm", "batch": batch, "scope": scope})

    def rate(self, batch: int, scope: str, instances: int, seconds: float) -> float:
        return float(self.ask({"do": "rate", "batch": batch, "scope": scope, "seconds": seconds})["rate"])

    def latencies(self, batch: int, scope: str, seconds: float) -> list[float]:
        found: list[float] = self.ask({"do": "latencies", "batch": batch, "scope": scope, "seconds": seconds})["ms"]
        return found

    def close(self) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def ask(self, what: dict[str, Any]) -> dict[str, Any]:
        """Send, and wait for the answer."""
        self.send(what)
        return self.answer()

    def send(self, what: dict[str, Any]) -> None:
        if self._process.stdin is None:
            raise RuntimeError("the process has no input")
        try:
            self._process.stdin.write(json.dumps(what).encode() + b"\n")
        except BrokenPipeError:
            raise RuntimeError(f"{self.mode.name} ended: {self._end_of_log()}") from None

    def answer(self) -> dict[str, Any]:
        """The answer to what was sent first of what has none yet."""
        out, due = self._process.stdout, time.monotonic() + self._limit
        if out is None:
            raise RuntimeError("the process has no output")
        while b"\n" not in self._pending:
            if not select.select([out], [], [], max(0.0, due - time.monotonic()))[0]:
                raise RuntimeError(f"{self.mode.name} did not answer in {self._limit:g} s: {self._end_of_log()}")
            data = os.read(out.fileno(), 1 << 16)
            if not data:
                raise RuntimeError(f"{self.mode.name} ended: {self._end_of_log()}")
            self._pending += data
        line, _, self._pending = self._pending.partition(b"\n")
        found: dict[str, Any] = json.loads(line)
        if "error" in found:
            raise RuntimeError(found["error"])
        return found

    def _end_of_log(self) -> str:
        return self._log.read_text(errors="replace")[-1500:]
