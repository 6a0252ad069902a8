"""A running inference server for tests, and short ways to talk to it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import tritonclient.grpc as triton

START_SECONDS = 60.0
# Enough that no test waits for it on a busy machine, unless the thing it waits for never comes.
WAIT_SECONDS = 60.0
# The loop model's steps: about a second, and for ever.
LONG, ENDLESS = 700_000, 10**12


class Server:
    """A running `enginehouse-inference`."""

    def __init__(self, folder: Path, **settings: str) -> None:
        self._announce = folder / "announce.json"
        self._log = folder / "log"
        self.cache = folder / "cache"
        variables = {
            **os.environ,
            "ENGINEHOUSE_PORT": "0",
            "ENGINEHOUSE_ANNOUNCE_FILE": str(self._announce),
            "ENGINEHOUSE_CACHE_DIR": str(self.cache),
            "ENGINEHOUSE_DRAIN_SECONDS": "20",
            **{f"ENGINEHOUSE_{key.upper()}": value for key, value in settings.items()},
        }
        folder.mkdir(parents=True, exist_ok=True)
        self._announce.unlink(missing_ok=True)
        with self._log.open("ab") as log:
            self.process = subprocess.Popen([sys.executable, "-m", "enginehouse_inference"], env=variables, stderr=log)
        wait_for(lambda: self._announce.exists() or self.process.poll() is not None, START_SECONDS)
        assert self.process.poll() is None, self.log()
        self.ports: dict[str, int] = json.loads(self._announce.read_text())
        self.port = self.ports["port"]
        self.address = f"127.0.0.1:{self.port}"

    def log(self) -> str:
        return self._log.read_text()

    def client(self) -> Any:
        return triton.InferenceServerClient(self.address)

    def workers(self) -> list[psutil.Process]:
        return self._children("enginehouse_worker")

    def fronts(self) -> list[psutil.Process]:
        """The processes that share the port; none where the server itself listens."""
        return self._children("enginehouse_inference.fronts")

    def _children(self, module: str) -> list[psutil.Process]:
        found = []
        for child in psutil.Process(self.process.pid).children():
            with contextlib.suppress(psutil.Error):
                if module in child.cmdline():
                    found.append(child)
        return found

    def stop(self) -> int:
        """SIGTERM and wait; returns the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(WAIT_SECONDS)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def wait_for(condition: Callable[[], Any], seconds: float = WAIT_SECONDS) -> Any:
    """Wait until the condition holds; returns what it returned."""
    end = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.02)
    return result


def load(client: Any, models: Path, model: str, name: str = "", **config: Any) -> None:
    """Load an engine directory by hand, with one thread so that tests do not fight for cores."""
    config = {"engine_directory": str(models / model), "options": {"intra_op_threads": "1"}, **config}
    client.load_model(name or model, config=json.dumps(config))


def tensor(name: str, array: Any, dtype: str) -> Any:
    """A tritonclient input with its data."""
    item = triton.InferInput(name, list(array.shape), dtype)
    item.set_data_from_numpy(array)
    return item


def floats(rows: int, columns: int = 4, start: int = 0) -> Any:
    """Distinct numbers, so that rows cannot be exchanged unnoticed."""
    return (np.arange(rows * columns, dtype=np.float32) + start).reshape(rows, columns)


def steps(count: int, rows: int = 1) -> Any:
    """Input of the loop model."""
    return tensor("steps", np.full((rows, 1), count, dtype=np.int64), "INT64")
