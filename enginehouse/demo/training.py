"""Running the demo's training in the tensorflow worker environment, the one place where a framework may be imported."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

from enginehouse.demo.digits import Digits
from enginehouse.errors import InternalError
from enginehouse.workers.environments import WorkerEnvironment

SCRIPT = Path(__file__).with_name("train_digits.py")


def train(environment: WorkerEnvironment, digits: Digits, folder: Path, report: Callable[[str], None]) -> Path:
    """Train on `digits` and return the Keras file, in `folder` beside its data and log; `report` hears of each epoch.

    Raises:
        InternalError: training failed; the message has the end of its log.
    """
    folder.mkdir(parents=True, exist_ok=True)
    data, out, log = folder / "digits.npz", folder / "digits.keras", folder / "training.log"
    digits.save_training(data)
    quiet = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2", "CUDA_VISIBLE_DEVICES": ""}
    command = [str(environment.python), str(SCRIPT), str(data), str(out)]
    with (
        log.open("w") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=quiet) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            report(line.rstrip())
    if process.returncode != 0 or not out.exists():
        end = log.read_text()[-2000:]
        raise InternalError(f"training ended with status {process.returncode}; the end of {log}:\n{end}")
    return out
