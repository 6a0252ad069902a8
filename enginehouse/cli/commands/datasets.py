"""datasets upload, list, show, delete."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from enginehouse.cli import completion
from enginehouse.cli.context import connected
from enginehouse.cli.options import Labels, pairs
from enginehouse.cli.output import Json, print_fields, print_json, print_table, say, size
from enginehouse.cli.transfer import shown

app = typer.Typer(help="Samples to calibrate and verify with.", no_args_is_help=True)
DatasetId = Annotated[str, typer.Argument(help="A dataset's id or name.", autocompletion=completion.datasets)]


@app.command(epilog="Example: enginehouse datasets upload calibration.npz")
def upload(
    path: Annotated[Path, typer.Argument(help="An .npz file: an array for each model input, and `labels`.")],
    name: Annotated[str | None, typer.Option(help="Its id; made from the file's name when absent.")] = None,
    label: Labels = None,
    replace: Annotated[bool, typer.Option("--replace", help="Replace a dataset of that id.")] = False,
    json: Json = False,
) -> None:
    """Upload a dataset. An upload that broke goes on where it stopped."""
    with connected() as client, shown(path.name) as progress:
        dataset = client.datasets.upload(path, name, labels=pairs(label, "--label"), replace=replace, progress=progress)
    print_json(dataset) if json else say(
        f"uploaded {dataset.id} ({dataset.samples} samples, {size(dataset.size_bytes)})"
    )


@app.command("list")
def list_(json: Json = False) -> None:
    """List the datasets."""
    with connected() as client:
        datasets = client.datasets.list()
    if json:
        print_json(datasets)
        return
    rows = [(d.id, d.samples, d.labelled, size(d.size_bytes), d.create_time) for d in datasets]
    print_table(
        ("DATASET", "SAMPLES", "LABELLED", "SIZE", "CREATED"),
        rows,
        empty="no datasets: `enginehouse datasets upload FILE.npz` adds one",
    )


@app.command()
def show(dataset: DatasetId, json: Json = False) -> None:
    """Show a dataset."""
    with connected() as client:
        found = client.datasets.get(dataset)
    print_json(found) if json else print_fields(found)


@app.command()
def delete(dataset: DatasetId) -> None:
    """Delete a dataset."""
    with connected() as client:
        client.datasets.delete(dataset)
    say(f"deleted {dataset}")
