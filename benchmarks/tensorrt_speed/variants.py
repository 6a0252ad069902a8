"""What is to be measured: engines, how each is built, and at which batch sizes and scopes. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

KINDS = ("engine", "implicit", "direct", "torch")
SOURCES = ("fp32", "int8", "fp32-uint8", "int8-uint8")
SCOPES = ("engine", "host")


@dataclass(frozen=True)
class Variant:
    """One engine, or what it is compared with.

    Attributes:
        kind: `engine` is built and run by the worker; `implicit` is calibrated by TensorRT itself and run by the
            worker; `direct` is the plan of another variant without anything of ours; `torch` is PyTorch.
        plan: the variant whose plan this one runs; its own when empty.
        options: build options, and for `torch` the `mode` of its compiler.
        load: load options.
        batches: batch sizes to measure.
        scopes: the numbers of instances at once for each scope.
        group: models of one group are measured in turns; a model is a group of its own when empty.
        cold: build without the shared timing cache first, then again with the cache of that build.
    """

    name: str
    model: str
    source: str = "fp32"
    precision: str = "FP16"
    kind: str = "engine"
    plan: str = ""
    profile: Mapping[str, int] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict)
    load: Mapping[str, str] = field(default_factory=dict)
    batches: Sequence[int] = ()
    scopes: Mapping[str, Sequence[int]] = field(default_factory=lambda: {"engine": (1,)})
    group: str = ""
    cold: bool = False

    @property
    def turn(self) -> str:
        """Variants that have the same one are loaded together and measured in turns."""
        return self.group or self.model

    @property
    def built(self) -> bool:
        """Whether a plan of its own is built."""
        return self.kind in ("engine", "implicit") and not self.plan

    @property
    def plan_name(self) -> str:
        """The variant whose plan this one runs."""
        return self.plan or self.name


@dataclass(frozen=True)
class Point:
    """One thing to measure: a variant at a batch size and scope with some instances at once."""

    variant: str
    batch: int
    scope: str
    instances: int


def points(variant: Variant) -> list[Point]:
    """All points of a variant, by batch."""
    return [
        Point(variant.name, batch, scope, instances)
        for batch in variant.batches
        for scope, counts in variant.scopes.items()
        for instances in counts
    ]


def read_variants(path: Path) -> list[Variant]:
    """The variants of a file: `{"defaults": {...}, "variants": [{...}]}`.

    Raises:
        ValueError: naming the variant and what is wrong with it.
    """
    content = json.loads(path.read_text())
    found: list[Variant] = []
    for entry in content["variants"]:
        variant = _variant({**content.get("defaults", {}), **entry})
        if any(other.name == variant.name for other in found):
            raise ValueError(f"variant {variant.name!r} is there twice: expected names of their own")
        plans = [other.name for other in found if other.built]
        if (variant.plan or variant.kind == "direct") and variant.plan not in plans:
            raise ValueError(
                f"variant {variant.name!r} runs the plan {variant.plan!r}; expected one built before it: {plans}"
            )
        found.append(variant)
    return found


def _variant(entry: Mapping[str, Any]) -> Variant:
    name = entry.get("name")
    unknown = sorted(set(entry) - {item.name for item in fields(Variant)})
    if unknown:
        raise ValueError(f"variant {name!r} has {unknown[0]!r}, which is no field of a variant")
    variant = Variant(**entry)
    for what, value, known in (("kind", variant.kind, KINDS), ("source", variant.source, SOURCES)):
        if value not in known:
            raise ValueError(f"variant {name!r}: {what} is {value!r}; expected one of {', '.join(known)}")
    if not variant.batches or any(scope not in SCOPES for scope in variant.scopes):
        raise ValueError(f"variant {name!r}: expected batches, and scopes out of {', '.join(SCOPES)}")
    if variant.built:
        _check_profile(variant)
    return variant


def _check_profile(variant: Variant) -> None:
    if set(variant.profile) != {"min", "opt", "max"}:
        raise ValueError(f"variant {variant.name!r}: profile is {variant.profile!r}; expected min, opt and max")
    low, high = variant.profile["min"], variant.profile["max"]
    outside = [batch for batch in variant.batches if not low <= batch <= high]
    if outside:
        raise ValueError(f"variant {variant.name!r}: batch {outside[0]} is outside of its profile, {low} to {high}")
