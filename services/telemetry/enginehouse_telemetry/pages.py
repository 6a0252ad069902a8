"""Page tokens: a position that only this process can write, bound to the request that it continues."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
import struct
from typing import Protocol

from google.protobuf.message import Message

from enginehouse.errors import InvalidArgumentError

_MAC_BYTES = 16


class PagedRequest(Protocol):
    """A request of a List method."""

    page_size: int
    page_token: str


class PageTokens:
    """Writes and reads tokens. A restart forgets the key: the samples that a token points into are gone then too."""

    def __init__(self, key: bytes | None = None) -> None:
        self._key = key or secrets.token_bytes(32)

    def write(self, position: tuple[int, int], request: Message) -> str:
        """A token for the page of `request` that begins at `position`."""
        payload = struct.pack(">qq", *position)
        return base64.urlsafe_b64encode(payload + self._mac(payload, request)).decode().rstrip("=")

    def read(self, token: str, request: Message) -> tuple[int, int]:
        """The position in a token.

        Raises:
            InvalidArgumentError: it is not ours, of another request, or of before a restart.
        """
        try:
            data = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
        except (binascii.Error, ValueError):
            data = b""
        payload, mac = data[:-_MAC_BYTES], data[-_MAC_BYTES:]
        # Compared again as text: base64 has several spellings of the same bytes.
        if len(payload) == 16 and hmac.compare_digest(mac, self._mac(payload, request)):
            first, second = struct.unpack(">qq", payload)
            if hmac.compare_digest(self.write((first, second), request).encode(), token.encode()):
                return int(first), int(second)
        raise InvalidArgumentError(
            "page_token is not valid: expected next_page_token of the page before, with all other fields the same and "
            "from a server that has not restarted since; begin again without it"
        )

    def _mac(self, payload: bytes, request: Message) -> bytes:
        scope = type(request)()
        scope.CopyFrom(request)
        scope.ClearField("page_token")
        scope.ClearField("page_size")
        text = scope.DESCRIPTOR.full_name.encode() + b"\0" + scope.SerializeToString(deterministic=True)
        return hmac.new(self._key, payload + hashlib.sha256(text).digest(), hashlib.sha256).digest()[:_MAC_BYTES]


def page_size(asked: int, *, default: int, most: int) -> int:
    """The page size to use: the default for 0, the most for more.

    Raises:
        InvalidArgumentError: it is negative.
    """
    if asked < 0:
        raise InvalidArgumentError(f"page_size {asked} is not valid: expected 0 (for {default}) to {most}")
    return min(asked or default, most)
