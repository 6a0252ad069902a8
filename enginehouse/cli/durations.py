"""Times as people write them."""

from __future__ import annotations

import re

from enginehouse.errors import InvalidArgumentError

_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def seconds(text: str, option: str, *, unit: str = "s") -> float:
    """ "15ms", "1.5s", "5m" or "2h" as seconds; a bare number is in `unit`.

    Raises:
        InvalidArgumentError: it is none of these, or not more than 0; it names the option.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(us|ms|s|m|h)?\s*", text)
    if match is None or float(match.group(1)) <= 0:
        raise InvalidArgumentError(f"{option} {text!r} is not valid: expected a time such as 800us, 15ms, 2s or 5m")
    return float(match.group(1)) * _UNITS[match.group(2) or unit]
