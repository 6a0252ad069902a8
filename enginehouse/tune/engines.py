"""Which published engines of a model may be tried, and which are not good enough."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from enginehouse.client.values import Engine


@dataclass(frozen=True)
class Accuracy:
    """How an engine's answers compare with FP32's. `measure` says which of verification's figures it is."""

    value: float
    measure: str


@dataclass(frozen=True)
class Candidate:
    """An engine; `refusal` says why it is not tried, and is empty when it is."""

    engine: Engine
    accuracy: Accuracy | None
    refusal: str = ""


def accuracy_of(engine: Engine) -> Accuracy | None:
    """An engine's accuracy relative to FP32, as its verification measured it: of labelled data the quotient of both
    top-1 accuracies, else the part of the samples on which both name the same class. None: neither was measured."""
    found = engine.verification
    if found is None:
        return None
    if found.top1 is not None and found.reference_top1:
        return Accuracy(found.top1 / found.reference_top1, "top-1 relative to FP32")
    if found.top1_agreement is not None:
        return Accuracy(found.top1_agreement, "top-1 agreement with FP32")
    return None


def candidates(
    engines: Sequence[Engine],
    *,
    min_accuracy: float | None = None,
    precisions: Sequence[str] = (),
    backends: Sequence[str] = (),
    device: str = "",
) -> list[Candidate]:
    """The newest engine of each backend, precision and device kind among those asked for, the most accurate first.

    Args:
        min_accuracy: a fraction; engines below it, and those whose accuracy nobody measured, are refused.
        precisions: only these; all when empty. `backends` alike.
        device: "cpu" or "gpu"; both when empty.
    """
    newest: dict[tuple[str, str, str, str], Engine] = {}
    for engine in sorted(engines, key=_created):
        if (
            (not precisions or engine.precision in precisions)
            and (not backends or engine.backend in backends)
            and device in ("", engine.device.kind)
        ):
            newest[engine.backend, engine.precision, engine.device.kind, engine.device.product] = engine
    found = [_judged(engine, min_accuracy) for engine in newest.values()]
    return sorted(found, key=lambda c: (bool(c.refusal), -(c.accuracy.value if c.accuracy else 0.0), c.engine.name))


def _judged(engine: Engine, min_accuracy: float | None) -> Candidate:
    accuracy = accuracy_of(engine)
    refusal = ""
    if min_accuracy is not None and accuracy is None:
        refusal = "its accuracy was not measured"
    elif min_accuracy is not None and accuracy is not None and accuracy.value < min_accuracy:
        refusal = f"{accuracy.measure} {accuracy.value:.4g} is below {min_accuracy:g}"
    return Candidate(engine, accuracy, refusal)


def _created(engine: Engine) -> float:
    return engine.create_time.timestamp() if engine.create_time else 0.0
