"""Pages of a list: a token is the last id of the page before, so pages stay right while rows come and go."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass

from enginehouse.errors import InvalidArgumentError

DEFAULT_PAGE_SIZE = 100
MAX_PAGE_SIZE = 1000


@dataclass(frozen=True)
class Page:
    """What part of a list is wanted: up to `size` rows after the id `after`."""

    size: int
    after: str

    @classmethod
    def of(cls, page_size: int, page_token: str) -> Page:
        """Read a request's fields.

        Raises:
            InvalidArgumentError: a negative size, or a token that we did not make.
        """
        if page_size < 0:
            raise InvalidArgumentError(f"page_size is {page_size}: expected 0 (for {DEFAULT_PAGE_SIZE}) or more")
        size = min(page_size or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)
        if not page_token:
            return cls(size, "")
        try:
            return cls(size, base64.b64decode(page_token.encode("ascii"), altchars=b"-_", validate=True).decode())
        except (ValueError, binascii.Error):
            raise InvalidArgumentError(
                f"page_token {page_token!r} is not valid: expected the next_page_token of an answer"
            ) from None

    def number_after(self, *, default: int) -> int:
        """`after`, where the ids are numbers; `default` on the first page.

        Raises:
            InvalidArgumentError: the token is of another list.
        """
        if not self.after:
            return default
        if not (self.after.isascii() and self.after.isdigit() and len(self.after) < 19):
            raise InvalidArgumentError(
                f"page_token of {self.after!r} is not of this list: expected the next_page_token of an answer"
            )
        return int(self.after)

    def next_token(self, ids: list[str], more: bool) -> str:
        """The token of the page after one that ends with the last of `ids`; empty when there is no more."""
        return base64.urlsafe_b64encode(ids[-1].encode()).decode() if more and ids else ""
