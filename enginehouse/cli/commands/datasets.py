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
from enginehouse.client.values import Dataset, TfRecordFeatures

app = typer.Typer(help="Samples to calibrate and verify with.", no_args_is_help=True)
DatasetId = Annotated[str, typer.Argument(help="A dataset's id or name.", autocompletion=completion.datasets)]


@app.command(
    epilog="Examples: enginehouse datasets upload calibration.npz; enginehouse datasets upload photos/ --name cats; "
    "enginehouse datasets upload validation.tfrecord --label-offset 1"
)
def upload(
    path: Annotated[
        Path,
        typer.Argument(
            help="An .npz (an array for each model input, and `labels`); a folder of images, or a .zip, .tar or "
            ".tar.gz of one (classes: a folder each, or labels.csv of paths and class indices); or a TFRecord."
        ),
    ],
    name: Annotated[str | None, typer.Option(help="Its id; made from the file's name when absent.")] = None,
    format_name: Annotated[
        str | None, typer.Option("--format", help="npz, images or tfrecord; found out by the name when absent.")
    ] = None,
    image_feature: Annotated[
        str, typer.Option(help="The feature of a TFRecord that holds the image; image/encoded when absent.")
    ] = "",
    label_feature: Annotated[
        str, typer.Option(help="The feature of a TFRecord that holds the class; image/class/label when absent.")
    ] = "",
    label_offset: Annotated[
        int, typer.Option(help="Subtracted from a TFRecord's labels: 1 where they count from 1.")
    ] = 0,
    label: Labels = None,
    replace: Annotated[bool, typer.Option("--replace", help="Replace a dataset of that id.")] = False,
    json: Json = False,
) -> None:
    """Upload a dataset. An upload that broke goes on where it stopped."""
    features = TfRecordFeatures(image_feature, label_feature, label_offset)
    with connected() as client, shown(path.name) as progress:
        dataset = client.datasets.upload(
            path,
            name,
            format=format_name,
            tfrecord=features if features != TfRecordFeatures() else None,
            labels=pairs(label, "--label"),
            replace=replace,
            progress=progress,
        )
    print_json(dataset) if json else say(
        f"uploaded {dataset.id} ({dataset.format}, {dataset.samples} samples, {_labelling(dataset)}, "
        f"{size(dataset.size_bytes)})"
    )


@app.command("list")
def list_(json: Json = False) -> None:
    """List the datasets."""
    with connected() as client:
        datasets = client.datasets.list()
    if json:
        print_json(datasets)
        return
    rows = [
        (d.id, d.format, d.samples, d.labelled, len(d.classes) or None, size(d.size_bytes), d.create_time)
        for d in datasets
    ]
    print_table(
        ("DATASET", "FORMAT", "SAMPLES", "LABELLED", "CLASSES", "SIZE", "CREATED"),
        rows,
        empty="no datasets: `enginehouse datasets upload FILE` adds one",
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


def _labelling(dataset: Dataset) -> str:
    if dataset.classes:
        return f"{len(dataset.classes)} classes"
    return "labelled" if dataset.labelled else "no labels"
