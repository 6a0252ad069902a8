"""Calibration tables on their way to the server."""

from __future__ import annotations

import dataclasses

from enginehouse.client.calibrations import AsyncCalibrations
from enginehouse.client.values import Calibration

_DIGEST = "sha256:"


async def with_uploaded_table(calibration: Calibration | None, tables: AsyncCalibrations) -> Calibration | None:
    """The calibration with its table's file, Enginehouse's JSON or TensorRT's cache, uploaded and named by digest.

    Raises:
        InvalidArgumentError: the table is no such file and no digest.
    """
    if calibration is None or calibration.table is None:
        return calibration
    if isinstance(calibration.table, str) and calibration.table.startswith(_DIGEST):
        return calibration
    return dataclasses.replace(calibration, table=await tables.upload(calibration.table))
