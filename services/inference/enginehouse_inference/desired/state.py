"""The last desired state on disk, for when the optimizer is away."""

from __future__ import annotations

import os
from pathlib import Path

import structlog
from google.protobuf.message import DecodeError

from enginehouse.v1 import serving_pb2

_log = structlog.get_logger("desired")


class StateFile:
    """One project's last `WatchServingConfigsResponse`."""

    def __init__(self, cache_dir: Path, project: str) -> None:
        self._path = cache_dir / "desired" / f"{project}.pb"

    def read(self) -> serving_pb2.WatchServingConfigsResponse | None:
        """What was last written; None when nothing was, or it cannot be read."""
        try:
            return serving_pb2.WatchServingConfigsResponse.FromString(self._path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, DecodeError) as error:
            _log.error("the last desired state cannot be read", path=str(self._path), reason=str(error))
            return None

    def write(self, state: serving_pb2.WatchServingConfigsResponse) -> None:
        """Replace it, in one step."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        beside = self._path.with_suffix(f".{os.getpid()}.partial")
        with beside.open("wb") as file:
            file.write(state.SerializeToString())
            file.flush()
            os.fsync(file.fileno())
        beside.replace(self._path)
