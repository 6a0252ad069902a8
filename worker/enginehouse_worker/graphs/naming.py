"""Unique names."""

from __future__ import annotations


def unique_name(wanted: str, taken: set[str]) -> str:
    """`wanted`, or with the first free number behind it; the result is added to `taken`."""
    name, number = wanted, 1
    while name in taken:
        number += 1
        name = f"{wanted}_{number}"
    taken.add(name)
    return name
