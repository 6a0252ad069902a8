"""calibration show, export, import, diff."""

from __future__ import annotations

import sys
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from enginehouse.calibration import CalibrationTable, cache_text, differences, table_text
from enginehouse.calibration.tensorrt import HEADER
from enginehouse.cli import completion
from enginehouse.cli.context import connected
from enginehouse.cli.output import Json, out, print_json, print_table, say
from enginehouse.client.calibrations import read_file

app = typer.Typer(help="Calibration tables: the ranges that INT8 engines quantize by.", no_args_is_help=True)
Source = Annotated[
    str,
    typer.Argument(help="An engine, or a table's file (JSON or TensorRT's cache).", autocompletion=completion.engines),
]


class Format(str, Enum):
    """What `export` writes."""

    JSON = "json"
    TENSORRT = "tensorrt"


@app.command(epilog="Example: enginehouse calibration show calibration.json")
def show(source: Source, json: Json = False) -> None:
    """Show a table: each tensor's range, in the graph's order."""
    table = _table(source)
    if json:
        sys.stdout.write(table_text(table))
        return
    method = table.method if table.percentile is None else f"{table.method} {table.percentile:g}"
    origin = ", ".join(f"{name}={value}" for name, value in sorted(table.data.items())) or "unknown data"
    out().print(f"{method}, {table.samples} samples, {origin}", markup=False)
    out().print(f"model {table.model_digest or 'unknown'}", markup=False)
    rows = [
        (n, *(f"{v:.6g}" for v in (r.minimum, r.maximum, r.amax, r.rmin, r.rmax))) for n, r in table.tensors.items()
    ]
    print_table(("TENSOR", "MIN", "MAX", "AMAX", "RMIN", "RMAX"), rows, empty="no tensors")


@app.command(epilog="Example: enginehouse calibration export ENGINE --format tensorrt -o calibration.cache")
def export(
    source: Source,
    format: Annotated[  # noqa: A002 - the option's name
        Format, typer.Option(help="json (the table itself) or tensorrt (a calibration cache's text).")
    ] = Format.JSON,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The file to write; standard output when absent.")
    ] = None,
    header: Annotated[
        str, typer.Option(help="A cache's first line, with the TensorRT version and calibrator that are to read it.")
    ] = HEADER,
) -> None:
    """Write a table as a file, for a person, another model or TensorRT."""
    table = _table(source)
    text = table_text(table) if format is Format.JSON else cache_text(table, header)
    if output is None:
        sys.stdout.write(text)
        return
    output.write_text(text)
    say(f"wrote {output} ({len(table.tensors)} tensors)")


@app.command("import", epilog="Example: enginehouse calibration import calibration.cache")
def import_(
    file: Annotated[Path, typer.Argument(help="A table's JSON, or TensorRT's calibration cache.")],
    json: Json = False,
) -> None:
    """Upload a table and print its digest, which `optimize --calibration-table` takes."""
    table = read_file(file)
    with connected() as client:
        digest = client.calibrations.upload(table)
    if json:
        print_json({"digest": digest, "method": table.method, "tensors": len(table.tensors)})
        return
    print(digest)
    say(f"uploaded {len(table.tensors)} tensors; use it: optimize MODEL --precision int8 --calibration-table {digest}")


@app.command(epilog="Example: enginehouse calibration diff ENGINE calibration.cache")
def diff(
    first: Source,
    second: Source,
    limit: Annotated[int, typer.Option(min=0, help="At most so many tensors; 0: all.")] = 0,
    json: Json = False,
) -> None:
    """Compare two tables: the second's ranges over the first's, the largest difference first."""
    found = differences(_table(first), _table(second))
    equal = sum(difference.size == 0.0 for difference in found)
    shown = [difference for difference in found if difference.size > 0.0][: limit or None]
    if json:
        print_json({"equal": equal, "different": shown})
        return
    rows = []
    for d in shown:
        ends = [None if r is None else f"{r.amax:.6g}" for r in (d.first, d.second)]
        rows.append((d.tensor, *ends, d.symmetric, d.asymmetric))
    columns = ("TENSOR", "AMAX", "SECOND'S", "RATIO", "RATIO OF RMAX-RMIN")
    print_table(columns, rows, empty=f"the tables are equal ({equal} tensors)")
    if rows and equal:
        say(f"{equal} more tensors are equal")


def _table(source: str) -> CalibrationTable:
    """A file where there is one of that name, else an engine's table."""
    if Path(source).is_file():
        return read_file(source)
    with connected() as client:
        return client.calibrations.get(source)
