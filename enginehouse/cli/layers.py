"""The tables of an engine's layers: what they cost of accuracy, how they compare with FP32, how long they take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any

from enginehouse.cli.output import cell, print_table, say

NAME_WIDTH = 72  # `--json` has names in full


class Order(str, Enum):
    """How layers are sorted: the slowest first, or as the engine runs them."""

    TIME = "time"
    GRAPH = "graph"


def print_accuracy(sensitivity: Mapping[str, Any] | None, compared: Mapping[str, Any] | None) -> None:
    """What verification and calibration measured of each layer, or why there is nothing."""
    if sensitivity is None and compared is None:
        say("no layers were measured: `enginehouse optimize --auto-exclude` or `--per-layer` measures them")
    if sensitivity is not None:
        excluded = sensitivity.get("excluded", [])
        say(
            f"quantized outputs: {cell(sensitivity.get('quantized_sqnr_db'))} dB; with {len(excluded)} layers in "
            f"higher precision: {cell(sensitivity.get('reached_sqnr_db'))} dB ({sensitivity.get('samples')} samples)"
        )
        _table(sensitivity, ("name", "type", "sqnr_db", "noise_share", "excluded"))
    if compared is not None:
        say(f"layers against FP32 ({compared.get('samples')} samples)")
        _table(compared, ("name", "type", "sqnr_db", "own_sqnr_db", "cosine"))


def print_times(inspector: Mapping[str, Any] | None, order: Order) -> None:
    """What the backend says of each layer: its type, its precision, its time and its share of all layers' time."""
    if inspector is None:
        say("no times of layers: engines that TensorRT built on a GPU have them, and this one has no inspector.json")
        return
    rows = time_rows(inspector, order)
    total = sum(row[3] for row in rows if row[3] is not None)
    if any(row[3] is not None for row in rows):
        say(
            f"{len(rows)} layers, {cell(total)} ms one after the other "
            f"(batch {inspector.get('batch', '?')}, mean of {inspector.get('runs', '?')} runs)"
        )
    else:
        say(f"{len(rows)} layers; their times were not measured")
    print_table(("LAYER", "TYPE", "PRECISION", "MS", "SHARE"), [_cells(row) for row in rows], empty="no layers")


def time_rows(
    inspector: Mapping[str, Any], order: Order
) -> list[tuple[object, object, object, float | None, float | None]]:
    """(name, type, precision, milliseconds, share in [0, 1]) of each layer; None is not known. Layers of no known time
    come last."""
    layers = [layer for layer in inspector.get("layers", ()) if isinstance(layer, Mapping)]
    times = [_number(layer.get("milliseconds")) for layer in layers]
    total = sum(time for time in times if time is not None)
    rows = [
        (
            layer.get("name"),
            layer.get("type"),
            layer.get("precision"),
            time,
            time / total if time is not None and total > 0 else None,
        )
        for layer, time in zip(layers, times, strict=True)
    ]
    if order is Order.TIME:
        rows.sort(key=lambda row: -1.0 if row[3] is None else row[3], reverse=True)
    return rows


def _cells(row: tuple[object, object, object, float | None, float | None]) -> tuple[object, ...]:
    name, *what, time, share = row
    return (
        shortened(str(name or "")),
        *what,
        None if time is None else f"{time:.4f}",
        None if share is None else f"{share:.1%}",
    )


def shortened(name: str, width: int = NAME_WIDTH) -> str:
    """A name of at most `width` characters, its middle left out: a fused layer's lists all that it was made of."""
    if len(name) <= width:
        return name
    half = (width - 3) // 2
    return f"{name[: width - 3 - half]}...{name[len(name) - half :]}"


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _table(measured: Mapping[str, Any], fields: Sequence[str]) -> None:
    rows = [[layer.get(field) for field in fields] for layer in measured.get("layers", [])]
    rows = [["yes" if value is True else "" if value is False else value for value in row] for row in rows]
    print_table([field.upper().replace("_DB", " dB").replace("_", " ") for field in fields], rows, empty="no layers")
