"""An object store behind a URL that fsspec knows: small calls that retry, and errors that say what to set.

Keys are relative to the URL. An object appears whole or not at all: stores of objects promise that of a put, and for
folders it is written beside and renamed.
"""

from __future__ import annotations

import errno
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import structlog

from enginehouse.artifacts.digest import digest_stream
from enginehouse.errors import EnginehouseError, FailedPreconditionError, InvalidArgumentError, UnavailableError

T = TypeVar("T")

_log = structlog.get_logger("objects")

# What a put makes visible at once, whole.
_ATOMIC = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "memory"})
# What installs the client of a scheme.
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
_S3_DEFAULTS: Mapping[str, Any] = {
    # Ten parts of 50 MiB at once, its own default, would cost half a GiB an upload.
    "max_concurrency": 2,
    "config_kwargs": {"connect_timeout": 5, "read_timeout": 60, "retries": {"max_attempts": 2}},
}
_LOCAL_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.EROFS)
_CREDENTIAL_ERRORS = ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "RefreshError")
_WAIT_SECONDS = (0.2, 5.0)


@dataclass(frozen=True)
class StoredObject:
    """`size` in bytes, `modified_ns` in Unix nanoseconds by the store's clock."""

    key: str
    size: int
    modified_ns: int


class ObjectStore:
    """The objects under a URL. Every method asks the network: call them from threads.

    Args:
        url: such as s3://bucket/prefix.
        options: what fsspec's file system of that scheme takes, such as endpoint_url for S3.
        retry_seconds: for how long a call that fails is tried again.

    Raises:
        InvalidArgumentError: the URL or the options are malformed.
        FailedPreconditionError: the client of that scheme is not installed. From every method: the store refuses, or
            has no such bucket.
        UnavailableError (from every method): it does not answer, or only with errors.
    """

    def __init__(self, url: str, options: Mapping[str, Any] | None = None, *, retry_seconds: float = 60.0) -> None:
        self.url = url.rstrip("/")
        self._retry_seconds = retry_seconds
        self._scheme = scheme = url.partition("://")[0] if "://" in url else ""
        if not scheme:
            raise InvalidArgumentError(f"ENGINEHOUSE_STORE_URL is {url!r}: expected a URL such as s3://bucket/prefix")
        defaults: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
        if scheme in ("s3", "s3a"):
            defaults.update(_S3_DEFAULTS)
        if scheme in ("file", "local"):
            defaults["auto_mkdir"] = True
        try:
            from fsspec.core import url_to_fs

            self._fs, self._root = url_to_fs(self.url, **{**defaults, **(options or {})})
        except ImportError as error:
            extra = _EXTRAS.get(scheme)
            what = (
                f"pip install 'enginehouse-optimizer[{extra}]'" if extra else f"install the fsspec client of {scheme}"
            )
            raise FailedPreconditionError(f"{self.url}: its client is not installed ({error}): {what}") from None
        except (ValueError, TypeError) as error:
            raise InvalidArgumentError(
                f"{self.url} with ENGINEHOUSE_STORE_OPTIONS {sorted(options or {})} cannot be used: {error}"
            ) from error

    def size(self, key: str) -> int | None:
        """Size in bytes; None when there is no such object."""
        info = self._find(f"looking for {key}", lambda: self._fs.info(self._path(key)))
        return None if info is None else int(info["size"])

    def put_file(self, source: Path, key: str) -> None:
        """Store a file's bytes under a key."""
        self._put(f"storing {key}", key, lambda path: self._fs.put_file(str(source), path))

    def put_json(self, key: str, value: Any) -> None:
        """Store a small JSON value under a key."""
        data = json.dumps(value, sort_keys=True).encode()
        self._put(f"storing {key}", key, lambda path: self._fs.pipe_file(path, data))

    def get_file(self, key: str, target: Path) -> bool:
        """Write an object's bytes to a file; False when there is no such object."""

        def get() -> bool:
            self._fs.get_file(self._path(key), str(target))
            return True

        return self._find(f"fetching {key}", get) or False

    def get_json(self, key: str) -> Any:
        """A small JSON value; None when there is no such object, or it is no JSON."""
        data = self._find(f"reading {key}", lambda: self._fs.cat_file(self._path(key)))
        try:
            return None if data is None else json.loads(data)
        except ValueError:
            _log.warning("not JSON", url=self.url, key=key)
            return None

    def digest(self, key: str) -> str | None:
        """The digest of an object's bytes, read in a stream; None when there is no such object."""

        def read() -> str:
            with self._fs.open(self._path(key), "rb", block_size=8 << 20, cache_type="readahead") as stream:
                return digest_stream(stream)

        return self._find(f"reading {key}", read)

    def objects(self, prefix: str) -> Iterator[StoredObject]:
        """The objects whose keys begin with `prefix` and a slash."""
        found = self._find(f"listing {prefix}", lambda: self._fs.find(self._path(prefix), detail=True)) or {}
        for path, info in found.items():
            if info.get("type") == "file":
                yield StoredObject(self._key(path), int(info["size"]), _modified(info))

    def folders(self, prefix: str) -> list[str]:
        """The names right under a prefix that have objects under them."""
        found = self._find(f"listing {prefix}", lambda: self._fs.ls(self._path(prefix), detail=True)) or []
        return sorted(str(info["name"]).rstrip("/").rsplit("/", 1)[-1] for info in found if info["type"] == "directory")

    def delete(self, keys: Sequence[str]) -> None:
        """Remove objects; those that are gone already are no error."""
        for key in keys:
            self._find(f"deleting {key}", lambda key=key: self._fs.rm_file(self._path(key)) or True)  # type: ignore[misc]

    def move(self, key: str, new: str) -> None:
        """Give an object another key; nothing happens when it is gone."""
        self._find(f"moving {key}", lambda: self._fs.mv(self._path(key), self._path(new)) or True)

    def _put(self, doing: str, key: str, put: Callable[[str], Any]) -> None:
        def atomically() -> bool:
            if self._scheme in _ATOMIC:
                put(self._path(key))
            else:
                beside = self._path(f"{key}.{uuid4().hex}.tmp")
                put(beside)
                self._fs.mv(beside, self._path(key))
            return True

        if self._find(doing, atomically) is None:
            raise FailedPreconditionError(
                f"{self.url}: there is no such bucket or container ({doing}): create it, or set ENGINEHOUSE_STORE_URL"
            )

    def _find(self, doing: str, call: Callable[[], T]) -> T | None:
        """What a call answers, tried again for a while when it fails; None when what it wants is not there."""
        end = time.monotonic() + self._retry_seconds
        wait, longest = _WAIT_SECONDS
        while True:
            try:
                return call()
            except FileNotFoundError:
                return None
            except Exception as error:
                if isinstance(error, OSError) and error.errno in _LOCAL_ERRORS:
                    raise
                refusal = self._refusal(error, doing)
                if refusal is not None:
                    raise refusal from error
                if time.monotonic() + wait > end:
                    raise UnavailableError(
                        f"{self.url} does not answer ({doing}): {type(error).__name__}: {error}. Check "
                        "ENGINEHOUSE_STORE_URL, endpoint_url in ENGINEHOUSE_STORE_OPTIONS, and the network",
                        retry_after_seconds=5.0,
                    ) from error
                _log.warning("trying again", url=self.url, doing=doing, error=f"{type(error).__name__}: {error}")
                time.sleep(wait)
                wait = min(longest, wait * 2)

    def _refusal(self, error: Exception, doing: str) -> EnginehouseError | None:
        """The error of a call that it makes no sense to repeat."""
        if isinstance(error, PermissionError) or type(error).__name__ in _CREDENTIAL_ERRORS:
            return FailedPreconditionError(
                f"{self.url} refuses access ({doing}): {error}. Give this process credentials (for S3: "
                "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile or a role) that may read, write, list, delete"
            )
        if isinstance(error, (ValueError, TypeError, NotImplementedError)):
            return FailedPreconditionError(f"{self.url} cannot be used ({doing}): {type(error).__name__}: {error}")
        return None

    def _path(self, key: str) -> str:
        return f"{self._root.rstrip('/')}/{key}"

    def _key(self, path: str) -> str:
        return path[path.index(self._root.strip("/")) + len(self._root.strip("/")) :].lstrip("/")


def _modified(info: Mapping[str, Any]) -> int:
    """When an object was written; the far future when its store does not say, so that it is never old."""
    for name in ("LastModified", "mtime", "updated", "last_modified", "created"):
        value = info.get(name)
        if isinstance(value, str):
            value = datetime.fromisoformat(value.replace("Z", "+00:00"))
        if isinstance(value, datetime):
            value = (value if value.tzinfo else value.replace(tzinfo=timezone.utc)).timestamp()
        if isinstance(value, (int, float)):
            return int(value * 1e9)
    return 1 << 62
