"""Digests: "sha256:" and 64 lower-case hexadecimal digits; and the one JSON text of a value, to take digests of."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any, BinaryIO

from enginehouse.errors import InvalidArgumentError

PREFIX = "sha256:"
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_CHUNK = 1 << 20


def parse_digest(digest: str) -> str:
    """The 64 hexadecimal digits of a digest.

    Raises:
        InvalidArgumentError: it is not of the form "sha256:" and 64 lower-case hexadecimal digits.
    """
    match = _DIGEST.fullmatch(digest)
    if match is None:
        raise InvalidArgumentError(
            f'digest {digest!r} is not valid: expected "sha256:" and 64 lower-case hexadecimal digits'
        )
    return match.group(1)


def digest_bytes(data: bytes) -> str:
    """The digest of some bytes."""
    return PREFIX + hashlib.sha256(data).hexdigest()


def digest_stream(stream: BinaryIO) -> str:
    """The digest of what is left of a stream, read a mebibyte at a time."""
    state = hashlib.sha256()
    while chunk := stream.read(_CHUNK):
        state.update(chunk)
    return PREFIX + state.hexdigest()


def digest_file(path: Path) -> str:
    """The digest of a file's bytes.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb", buffering=0) as stream:
        return digest_stream(stream)


def canonical_json(value: Any) -> str:
    """The one JSON text of a value: keys sorted, no spaces, no NaN or infinity.

    Raises:
        InvalidArgumentError: the value is not made of what JSON has.
    """
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(f"a value has no canonical JSON: {error}") from error


def digest_json(value: Any) -> str:
    """The digest of a value's canonical JSON in UTF-8.

    Raises:
        InvalidArgumentError: the value is not made of what JSON has.
    """
    return digest_bytes(canonical_json(value).encode())
