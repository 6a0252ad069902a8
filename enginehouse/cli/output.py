"""Results on standard output, as tables or JSON; everything else on standard error."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import PurePath
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from enginehouse.errors import EnginehouseError

Json = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, on standard output.")]

# Wide enough that a table in a file or a pipe is never folded.
_UNLIMITED = 500


def out() -> Console:
    """Standard output."""
    console = Console(highlight=False, soft_wrap=True)
    return console if console.is_terminal else Console(highlight=False, soft_wrap=True, width=_UNLIMITED)


def err() -> Console:
    """Standard error."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def say(line: str) -> None:
    """A line for people."""
    err().print(Text(line))


def plain(value: Any) -> Any:
    """A value as JSON has it: dataclasses as objects (with their id, None left out), times as ISO 8601 in UTC, and what
    is no number as "NaN", "Infinity" and "-Infinity", as protobuf writes them."""
    if isinstance(value, EnginehouseError):
        return {"code": value.reason, "message": value.message, "details": value.details}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        items = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        if "name" in items and hasattr(value, "id"):
            items = {"name": items.pop("name"), "id": value.id, **items}
        return {name: plain(item) for name, item in items.items() if item is not None}
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, datetime):
        return value.astimezone(timezone.utc).isoformat().replace("+00:00", "Z")
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return str(value) if isinstance(value, PurePath | bytes) else value


def print_json(value: Any, *, compact: bool = False) -> None:
    """A value as JSON; on one line when `compact`."""
    text = json.dumps(plain(value), indent=None if compact else 2, ensure_ascii=False, allow_nan=False)
    print(text, flush=compact)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, empty: str) -> None:
    """A table, or on standard error what it means that there is nothing in it."""
    if not rows:
        say(empty)
        return
    texts = [[cell(value) for value in row] for row in rows]
    widths = [max(len(text) for text in column) for column in zip(columns, *texts, strict=True)]
    console = out()
    for place, line in enumerate([list(columns), *texts]):
        padded = "  ".join(f"{text:<{width}}" for text, width in zip(line, widths, strict=True)).rstrip()
        console.print(Text(padded, style="" if place else "bold"))


def print_fields(value: Any) -> None:
    """A value's fields, a line each; empty ones left out."""
    fields = plain(value)
    width = max(len(name) for name in fields)
    for name, item in fields.items():
        if item not in ("", [], {}):
            text = item if isinstance(item, str) else json.dumps(item, ensure_ascii=False)
            out().print(Text(f"{name:<{width}}  {text}"))


def cell(value: object) -> str:
    """A table's cell: "-" for None, times in this machine's zone, four digits of a fraction."""
    if value is None or value == "":
        return "-"
    if isinstance(value, datetime):
        return value.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def size(count: int) -> str:
    """Bytes for people."""
    amount = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024 or unit == "GiB":
            return f"{count} B" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{count} B"
