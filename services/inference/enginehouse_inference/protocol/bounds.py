"""Whether bytes lie in a region of shared memory."""

from __future__ import annotations

from enginehouse.errors import InvalidArgumentError


def check_bounds(region: str, total: int, offset: int, size: int, what: str) -> None:
    """Check `size` bytes from `offset` on of a region of `total` bytes.

    Raises:
        InvalidArgumentError: naming `what` they are for.
    """
    if offset + size > total:
        raise InvalidArgumentError(
            f"{what}: {size} bytes from {offset} on of shared memory region {region!r}, which has {total}"
        )
