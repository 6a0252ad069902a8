"""Calibration tables on their way to the server."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from enginehouse.client.blobs import AsyncBlobs
from enginehouse.client.values import Calibration
from enginehouse.errors import InvalidArgumentError

_DIGEST = "sha256:"


async def with_uploaded_table(calibration: Calibration | None, blobs: AsyncBlobs) -> Calibration | None:
    """The calibration with its table's file uploaded and named by digest.

    Raises:
        InvalidArgumentError: the table is no file and no digest.
    """
    if calibration is None or calibration.table is None:
        return calibration
    if isinstance(calibration.table, str) and calibration.table.startswith(_DIGEST):
        return calibration
    path = Path(calibration.table)
    if not path.is_file():
        raise InvalidArgumentError(f"the calibration table {path} is no file and no digest ({_DIGEST}...)")
    return dataclasses.replace(calibration, table=await blobs.upload(path))
