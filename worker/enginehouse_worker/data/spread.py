"""An order of samples of which every beginning is spread evenly, over classes and over their files."""

from __future__ import annotations

from collections.abc import Sequence


def spread(count: int) -> list[int]:
    """0 to count - 1 in bit-reversed order: the first half of it is every second number, the first quarter every
    fourth, and so on.
    """
    bits = max(1, (count - 1).bit_length())
    return sorted(range(count), key=lambda number: int(f"{number:0{bits}b}"[::-1], 2))


def spread_over(labels: Sequence[int] | None, count: int) -> list[int]:
    """The numbers of `count` samples in turns: one of each class, then the next of each; within a class, and from class
    to class, as `spread` orders them. Without labels all are one class.
    """
    members: dict[int, list[int]] = {}
    for number in range(count):
        members.setdefault(labels[number] if labels is not None else 0, []).append(number)
    classes = [members[label] for label in sorted(members)]
    turns = {}
    for turn, place in enumerate(spread(len(classes))):
        for round_, inner in enumerate(spread(len(classes[place]))):
            turns[classes[place][inner]] = (round_, turn)
    return sorted(range(count), key=turns.__getitem__)
