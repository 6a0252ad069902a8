"""Tokens in a file, by their digests: nobody who reads the file can call with what it says."""

from __future__ import annotations

import hashlib
import re
import secrets

from enginehouse.errors import InvalidArgumentError
from enginehouse.rpc.authorization import Principal

# A guessable token would be found from its digest: ours have 256 bits of chance, and what is given must be as long as
# 128 bits in base64.
TOKEN_BYTES = 32
MIN_CHARACTERS = 22

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_NAME = re.compile(r"[!-~]+")  # no spaces, which separate the fields


def new_token() -> str:
    """A fresh token: 43 characters that mean nothing."""
    return secrets.token_urlsafe(TOKEN_BYTES)


def digest_of(token: str) -> str:
    """How a token stands in the file. It is random and long, so one round of SHA-256 is enough."""
    return f"sha256:{hashlib.sha256(token.encode()).hexdigest()}"


def token_line(token: str, name: str, groups: tuple[str, ...] = ()) -> str:
    """A token's line in the file.

    Raises:
        InvalidArgumentError: the token is short enough to be guessed, or a name has characters that it may not have.
    """
    if len(token) < MIN_CHARACTERS or not _NAME.fullmatch(token):
        raise InvalidArgumentError(
            f"the token has {len(token)} characters, or spaces in it: expected at least {MIN_CHARACTERS} random "
            "characters, such as `enginehouse auth token` makes"
        )
    for text in (name, *groups):
        if not _NAME.fullmatch(text) or "," in text or text.startswith("#"):
            raise InvalidArgumentError(f"{text!r} is not valid: expected a name without spaces and commas")
    return " ".join([digest_of(token), name, ",".join(groups)]).rstrip()


def parse_tokens(content: bytes) -> dict[str, Principal]:
    """The principals of a token file, by their tokens' digests.

    A line is `sha256:DIGEST NAME [GROUP,GROUP]`; empty lines and those that begin with # say nothing.

    Raises:
        InvalidArgumentError: naming the line that is wrong, without what it says.
    """
    found: dict[str, Principal] = {}
    for number, line in enumerate(content.decode(errors="replace").splitlines(), start=1):
        parts = line.split()
        if not parts or parts[0].startswith("#"):
            continue
        if len(parts) > 3 or len(parts) < 2 or not _DIGEST.fullmatch(parts[0]):
            raise InvalidArgumentError(
                f"line {number}: expected sha256:DIGEST NAME [GROUP,GROUP], as `enginehouse auth hash` prints it"
            )
        if parts[0] in found:
            raise InvalidArgumentError(f"line {number}: the token of {parts[1]} is that of an earlier line")
        groups = tuple(group for group in parts[2].split(",") if group) if len(parts) == 3 else ()
        found[parts[0]] = Principal(parts[1], authenticated=True, groups=groups)
    return found
