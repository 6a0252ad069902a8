"""Which optimizers use an object store, and which store a data folder's blobs are in.

    {url}/optimizers/{id}.json   one for each data folder that uses the store
    {data_dir}/store.json        the id of this data folder, and the URL that its blobs are in

Any number of optimizers may write to one URL: equal bytes are one object. But only the database of each knows what its
models, jobs and stage results need, so one that is not alone there collects no garbage.
"""

from __future__ import annotations

import json
import socket
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from uuid import uuid4

from enginehouse.errors import FailedPreconditionError
from enginehouse_optimizer.storage.objects import ObjectStore

_PREFIX = "optimizers"


class Tenancy:
    """This data folder's place in an object store, if it has one. Asks the network: call its methods from a thread."""

    def __init__(self, data_dir: Path, objects: ObjectStore | None) -> None:
        self._file = data_dir / "store.json"
        self._objects = objects
        self._id = ""

    def enter(self) -> bool:
        """Make us known; returns whether the blobs that are local so far must be moved to the object store.

        Raises:
            FailedPreconditionError: the data folder's blobs are in another place than the settings say.
        """
        known = self._read()
        url = self._objects.url if self._objects else ""
        before = str(known.get("url", ""))
        if before not in ("", url):
            raise FailedPreconditionError(
                f"the blobs of {self._file.parent} are in {before}, but ENGINEHOUSE_STORE_URL is {url or 'not set'}: "
                f"set it to {before}; or copy all objects there and delete {self._file}"
            )
        if self._objects is None:
            return False
        self._id = str(known.get("id") or uuid4().hex)
        self._write(before)  # so that a crash from here on does not make us two
        self._objects.put_json(
            self._key(),
            {
                "host": socket.gethostname(),
                "data_dir": str(self._file.parent),
                "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            },
        )
        return before == ""

    def settle(self) -> None:
        """All blobs are where the settings say: remember it."""
        if self._objects is not None:
            self._write(self._objects.url)

    def check_alone(self) -> None:
        """Raises FailedPreconditionError when another data folder uses the object store."""
        if self._objects is None:
            return
        others = [found.key for found in self._objects.objects(_PREFIX) if found.key != self._key()]
        if others:
            about = self._objects.get_json(others[0]) or {}
            raise FailedPreconditionError(
                f"{self._objects.url} is also used by the optimizer of {about.get('data_dir', '?')} on "
                f"{about.get('host', '?')} (started {about.get('started', '?')}), whose models and jobs are not known "
                f"here: nothing was collected. If it is gone for good, delete {self._objects.url}/{others[0]}"
            )

    def _key(self) -> str:
        return f"{_PREFIX}/{self._id}.json"

    def _write(self, url: str) -> None:
        beside = self._file.with_suffix(".tmp")
        beside.write_text(json.dumps({"id": self._id, "url": url}))
        beside.replace(self._file)

    def _read(self) -> dict[str, Any]:
        try:
            value = json.loads(self._file.read_text())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise FailedPreconditionError(f"{self._file} cannot be read: {error}") from None
        return value if isinstance(value, dict) else {}
