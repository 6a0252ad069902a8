"""Optimization profiles: the range of every input's shape, from batch sizes and options. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from enginehouse_worker.backends.base import BatchProfile, Signature, TensorSpec
from enginehouse_worker.errors import WorkerError

Shape = tuple[int, ...]
_RANGE = re.compile(r"(\d+):(\d+):(\d+)")
MAX_PROFILES = 16


@dataclass(frozen=True)
class ShapeRange:
    """The smallest, usual and largest shape of one input."""

    min: Shape
    opt: Shape
    max: Shape


@dataclass(frozen=True)
class Profile:
    """One optimization profile: the batch sizes it is for and a range for each input."""

    batch: BatchProfile
    inputs: Mapping[str, ShapeRange]


def batch_profiles(profile: BatchProfile, options: Mapping[str, Any]) -> tuple[BatchProfile, ...]:
    """The engine's own profile, then those of the option `profiles`: "1:1:1,1:64:256".

    Raises:
        WorkerError: INVALID_ARGUMENT when the option is not of that form or goes beyond the engine's batch sizes.
    """
    found = [profile]
    for text in filter(None, str(options.get("profiles", "")).split(",")):
        match = _RANGE.fullmatch(text.strip())
        extra = BatchProfile(*(int(group) for group in match.groups())) if match else None
        if extra is None or not profile.min <= extra.min <= extra.opt <= extra.max <= profile.max:
            raise WorkerError(
                "INVALID_ARGUMENT",
                f"option 'profiles' has {text!r}; expected min:opt:max with {profile.min} <= min <= opt <= max <= "
                f"{profile.max}, the batch sizes of the engine, several with commas between",
            )
        if extra not in found:
            found.append(extra)
    if len(found) > MAX_PROFILES:
        raise WorkerError("INVALID_ARGUMENT", f"{len(found)} profiles; expected at most {MAX_PROFILES}")
    return tuple(found)


def parse_shapes(text: str) -> dict[str, tuple[Shape, Shape, Shape]]:
    """The option `shapes`: "ids=16/128/512,mask=16/128/512": dimensions after the batch, as min/opt/max, "x" between.

    Raises:
        WorkerError: INVALID_ARGUMENT when it is not of that form.
    """
    found: dict[str, tuple[Shape, Shape, Shape]] = {}
    for item in filter(None, text.split(",")):
        name, equals, ranges = item.strip().rpartition("=")
        parts = ranges.split("/")
        if not equals or len(parts) != 3 or not all(re.fullmatch(r"\d+(x\d+)*", part) for part in parts):
            raise WorkerError(
                "INVALID_ARGUMENT",
                f"option 'shapes' has {item!r}; expected input=min/opt/max, each the dimensions after the batch with x "
                "between, such as ids=16/128/512",
            )
        low, best, high = (tuple(int(d) for d in part.split("x")) for part in parts)
        found[name] = (low, best, high)
    return found


def make_profiles(
    signature: Signature, batches: Sequence[BatchProfile], shapes: Mapping[str, tuple[Shape, Shape, Shape]]
) -> tuple[Profile, ...]:
    """The profiles of an engine.

    Raises:
        WorkerError: INVALID_ARGUMENT naming an input whose dynamic dimensions have no range, or a range that does not
            fit its input.
    """
    names = {spec.name for spec in signature.inputs}
    unknown = sorted(set(shapes) - names)
    if unknown:
        raise WorkerError(
            "INVALID_ARGUMENT", f"option 'shapes' names {unknown[0]!r}; the model's inputs: {', '.join(sorted(names))}"
        )
    return tuple(
        Profile(batch, {spec.name: _range(spec, signature.batched, batch, shapes) for spec in signature.inputs})
        for batch in batches
    )


def usual_shapes(signature: Signature, profile: Profile) -> Signature:
    """The signature with a profile's usual sizes in place of its inputs' dynamic dimensions, the batch aside."""
    first = 1 if signature.batched else 0
    inputs = tuple(
        replace(spec, shape=(*spec.shape[:first], *profile.inputs[spec.name].opt[first:])) for spec in signature.inputs
    )
    return replace(signature, inputs=inputs)


def _range(
    spec: TensorSpec, batched: bool, batch: BatchProfile, shapes: Mapping[str, tuple[Shape, Shape, Shape]]
) -> ShapeRange:
    rest = spec.shape[1:] if batched else spec.shape
    given = shapes.get(spec.name)
    if given is None:
        if any(d < 0 for d in rest):
            raise WorkerError(
                "INVALID_ARGUMENT",
                f"input {spec.name!r} has dynamic dimensions {list(spec.shape)} without a range: give the option "
                f"shapes={spec.name}=min/opt/max",
            )
        given = (rest, rest, rest)
    for shape in given:
        if len(shape) != len(rest) or any(d >= 0 and d != s for d, s in zip(rest, shape, strict=False)):
            raise WorkerError(
                "INVALID_ARGUMENT",
                f"option 'shapes' gives {list(shape)} for input {spec.name!r}; it takes {list(rest)} after the batch",
            )
    low, best, high = given
    if not all(a <= b <= c for a, b, c in zip(low, best, high, strict=True)):
        raise WorkerError("INVALID_ARGUMENT", f"option 'shapes' of {spec.name!r}: expected min <= opt <= max")
    if not batched:
        return ShapeRange(low, best, high)
    return ShapeRange((batch.min, *low), (batch.opt, *best), (batch.max, *high))


def profile_for(batch: int, profiles: Sequence[BatchProfile]) -> int:
    """The index of the profile whose usual batch is nearest above a batch size, else the one that holds it.

    Raises:
        WorkerError: INVALID_ARGUMENT when no profile holds it.
    """
    fitting = [index for index, profile in enumerate(profiles) if profile.min <= batch <= profile.max]
    if not fitting:
        ranges = ", ".join(f"{p.min} to {p.max}" for p in profiles)
        raise WorkerError("INVALID_ARGUMENT", f"a batch of {batch}; the engine was built for {ranges}")

    def distance(index: int) -> tuple[bool, int, int]:
        profile = profiles[index]
        return (profile.opt < batch, abs(profile.opt - batch), profile.max)

    return min(fitting, key=distance)
