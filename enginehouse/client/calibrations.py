"""Calibration tables: those of engines, and those that were made elsewhere."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

from enginehouse.calibration import CalibrationTable, read_cache, read_table, table_text
from enginehouse.client.blobs import AsyncBlobs
from enginehouse.client.portal import Portal
from enginehouse.client.values import Alias, Engine
from enginehouse.errors import InvalidArgumentError, NotFoundError

# A tensor takes about 150 bytes.
_LARGEST_BYTES = 64 << 20
_TENSORRT = b"TRT-"


def read_file(path: str | Path) -> CalibrationTable:
    """A table from its file: Enginehouse's JSON, or TensorRT's calibration cache.

    Raises:
        InvalidArgumentError: there is no such file, or it is neither; the message says what is wrong with it.
    """
    source = Path(path)
    if not source.is_file():
        raise InvalidArgumentError(
            f"there is no file {source}: expected a calibration table, or the digest of one (sha256:...)"
        )
    if source.stat().st_size > _LARGEST_BYTES:
        raise InvalidArgumentError(f"{source} has more than {_LARGEST_BYTES} bytes: it is no calibration table")
    data = source.read_bytes()
    if not data.startswith(_TENSORRT):
        return read_table(data)
    try:
        return read_cache(data.decode())
    except UnicodeDecodeError as error:
        raise InvalidArgumentError(f"{source} is no calibration cache: {error}") from None


class AsyncCalibrations:
    """The calibration tables of a project. `engine` finds an engine by its name, id or alias."""

    def __init__(self, blobs: AsyncBlobs, engine: Callable[[Engine | Alias | str], Awaitable[Engine]]) -> None:
        self._blobs = blobs
        self._engine = engine

    async def get(self, engine: Engine | Alias | str) -> CalibrationTable:
        """The table that an engine was quantized by.

        Raises:
            NotFoundError: there is no such engine, or it is not quantized.
        """
        found = engine if isinstance(engine, Engine) else await self._engine(engine)
        if not found.calibration_digest:
            raise NotFoundError(f"engine {found.id} has no calibration table: it is not quantized")
        return read_table(await self._blobs.read(found.calibration_digest))

    async def upload(self, table: CalibrationTable | str | Path) -> str:
        """Upload a table; returns the digest that `Calibration(table=...)` takes.

        Args:
            table: a table, or a file: Enginehouse's JSON or TensorRT's calibration cache.

        Raises:
            InvalidArgumentError: the file is neither.
        """
        value = table if isinstance(table, CalibrationTable) else await asyncio.to_thread(read_file, table)
        with tempfile.TemporaryDirectory(prefix="enginehouse-upload-") as folder:
            path = Path(folder) / "calibration.json"
            path.write_text(table_text(value))
            return await self._blobs.upload(path)


class Calibrations:
    """The calibration tables of a project. See `AsyncCalibrations` for what each method does."""

    def __init__(self, portal: Portal, inner: AsyncCalibrations) -> None:
        self._portal = portal
        self._inner = inner

    def get(self, engine: Engine | Alias | str) -> CalibrationTable:
        """The table that an engine was quantized by."""
        return self._portal.run(self._inner.get(engine))

    def upload(self, table: CalibrationTable | str | Path) -> str:
        """Upload a table or its file; returns the digest that `Calibration(table=...)` takes."""
        return self._portal.run(self._inner.upload(table))
