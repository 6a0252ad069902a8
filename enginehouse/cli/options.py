"""Options that several commands have, and what their texts mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from enginehouse.client.values import BatchProfile
from enginehouse.errors import InvalidArgumentError

Labels = Annotated[list[str] | None, typer.Option(help="A label, NAME=VALUE; may be repeated.")]


def pairs(texts: Sequence[str] | None, option: str) -> dict[str, str]:
    """NAME=VALUE texts as a mapping.

    Raises:
        InvalidArgumentError: one has no "=".
    """
    found: dict[str, str] = {}
    for text in texts or ():
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise InvalidArgumentError(f"{option} {text!r} is not valid: expected NAME=VALUE")
        found[name] = value
    return found


def profile(text: str | None) -> BatchProfile | None:
    """ "MAX" or "MIN:OPT:MAX" as a profile; None stays None.

    Raises:
        InvalidArgumentError: it is neither.
    """
    if text is None:
        return None
    try:
        sizes = [int(part) for part in text.split(":")]
    except ValueError:
        sizes = []
    if len(sizes) == 1:
        return BatchProfile(1, sizes[0], sizes[0])
    if len(sizes) == 3:
        return BatchProfile(*sizes)
    raise InvalidArgumentError(
        f"--batch {text!r} is not valid: expected MAX, such as 64, or MIN:OPT:MAX, such as 1:8:64"
    )
