"""A real inference server with small models, for as long as a block."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import tritonclient.grpc as triton

from enginehouse.workers.environments import WorkerEnvironments

BUILD = Path(__file__).resolve().parents[2] / "tests" / "integration" / "inference" / "build_models.py"
START_SECONDS = 120.0


@dataclass(frozen=True)
class Running:
    """A server: its process and its port."""

    pid: int
    port: int

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"


@contextmanager
def serving(folder: Path, models: Sequence[str]) -> Iterator[Running]:
    """A server on the CPU with those of the models of `BUILD`; at the end it is drained.

    Raises:
        RuntimeError: it did not start, or it did not end with status 0.
    """
    folder.mkdir(parents=True, exist_ok=True)
    engines, announced, log = folder / "engines", folder / "announce.json", folder / "log"
    announced.unlink(missing_ok=True)
    if not engines.exists():
        python = WorkerEnvironments.discover().for_backend("onnxruntime").python
        subprocess.run([python, BUILD, engines], check=True)
    variables = {
        **os.environ,
        "ENGINEHOUSE_PORT": "0",
        "ENGINEHOUSE_ANNOUNCE_FILE": str(announced),
        "ENGINEHOUSE_CACHE_DIR": str(folder / "cache"),
        "ENGINEHOUSE_LOG_LEVEL": "warning",
    }
    with log.open("wb") as output:
        process = subprocess.Popen([sys.executable, "-m", "enginehouse_inference"], env=variables, stderr=output)
    try:
        end = time.monotonic() + START_SECONDS
        while not announced.exists():
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"the server did not start: see {log}")
            time.sleep(0.05)
        running = Running(process.pid, json.loads(announced.read_text())["port"])
        client = triton.InferenceServerClient(running.address)
        for name in models:
            config = {
                "engine_directory": str(engines / name),
                "options": {"intra_op_threads": "1", "spinning": "false"},
            }
            client.load_model(name, config=json.dumps(config))
        yield running
        process.send_signal(signal.SIGTERM)
        if status := process.wait(60):
            raise RuntimeError(f"the server ended with {status}: see {log}")
    finally:
        process.kill()
        process.wait()
