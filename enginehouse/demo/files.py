"""The demo's files without the demo: `python -m enginehouse.demo.files FOLDER`.

Trains the digits model in the tensorflow worker environment and writes `digits.keras`, `calibration.npz` (training
images) and `held-out.npz` (images that it never saw, with their labels).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from enginehouse.demo.digits import Digits, load_digits
from enginehouse.demo.training import train
from enginehouse.errors import EnginehouseError
from enginehouse.workers.environments import WorkerEnvironments


def write_files(digits: Digits, folder: Path, report: Callable[[str], None]) -> tuple[Path, Path, Path]:
    """Train on `digits` and write the model, the calibration data and the held-out data; `report` hears of each epoch.

    Raises:
        FailedPreconditionError: the tensorflow worker environment is not installed.
        InternalError: training failed.
    """
    model = train(WorkerEnvironments.discover().environment("tensorflow"), digits, folder, report)
    calibration, held_out = folder / "calibration.npz", folder / "held-out.npz"
    digits.save_calibration(calibration)
    digits.save_verification(held_out)
    return model, calibration, held_out


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m enginehouse.demo.files FOLDER")
    try:
        for file in write_files(load_digits(), Path(sys.argv[1]), print):
            print(file)
    except EnginehouseError as error:
        sys.exit(str(error))
