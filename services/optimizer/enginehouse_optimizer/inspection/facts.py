"""What is known of a dataset when it is registered."""

from __future__ import annotations

from dataclasses import dataclass

from enginehouse.errors import InvalidArgumentError


@dataclass(frozen=True)
class DatasetFacts:
    """What a dataset holds; `classes` are the classes' names in the order of their indices, where the file has them."""

    samples: int
    labelled: bool
    classes: tuple[str, ...] = ()


def unusable(message: str) -> InvalidArgumentError:
    """The error about a dataset that no stage could use."""
    return InvalidArgumentError(f"the dataset is not usable: {message}")
