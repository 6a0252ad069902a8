"""models upload, zoo, list, show, delete."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from enginehouse.cli import completion
from enginehouse.cli.context import connected
from enginehouse.cli.options import Labels, pairs
from enginehouse.cli.output import Json, print_fields, print_json, print_table, say, size
from enginehouse.cli.preprocessing import (
    Bgr,
    CentralFraction,
    Deviation,
    Mean,
    PreprocessingFile,
    Resampling,
    read_preprocessing,
)
from enginehouse.cli.transfer import shown
from enginehouse.client.values import ImportOptions

app = typer.Typer(help="Trained networks.", no_args_is_help=True)
ModelId = Annotated[str, typer.Argument(help="A model's id or name.", autocompletion=completion.models)]


@app.command(epilog="Example: enginehouse models upload net.onnx --name mine --label stage=test")
def upload(
    path: Annotated[
        Path,
        typer.Argument(
            help="A .keras, .h5, .pb or .onnx file, a SavedModel's folder, or a .zip, .tar or .tar.gz of a SavedModel "
            "or of an ONNX model with its data."
        ),
    ],
    name: Annotated[str | None, typer.Option(help="Its id; made from the file's name when absent.")] = None,
    format_name: Annotated[
        str | None,
        typer.Option("--format", help="keras, keras_hdf5, saved_model, frozen_graph or onnx; found out when absent."),
    ] = None,
    inputs: Annotated[
        list[str] | None, typer.Option(help="An input tensor of a frozen graph; may be repeated.")
    ] = None,
    outputs: Annotated[
        list[str] | None, typer.Option(help="An output tensor of a frozen graph; may be repeated.")
    ] = None,
    signature: Annotated[str, typer.Option(help="A SavedModel's signature; serving_default when absent.")] = "",
    preprocessing: PreprocessingFile = None,
    mean: Mean = None,
    deviation: Deviation = None,
    bgr: Bgr = False,
    central_fraction: CentralFraction = None,
    resampling: Resampling = None,
    label: Labels = None,
    replace: Annotated[bool, typer.Option("--replace", help="Replace a model of that id.")] = False,
    json: Json = False,
) -> None:
    """Upload a model. An upload that broke goes on where it stopped."""
    prepared = read_preprocessing(preprocessing, mean, deviation, bgr, central_fraction, resampling)
    options = ImportOptions(tuple(inputs or ()), tuple(outputs or ()), signature)
    with connected() as client, shown(path.name) as progress:
        model = client.models.upload(
            path,
            name,
            format=format_name,
            import_options=options if options != ImportOptions() else None,
            preprocessing=prepared,
            labels=pairs(label, "--label"),
            replace=replace,
            progress=progress,
        )
    print_json(model) if json else say(f"uploaded {model.id} ({model.format}, {size(model.size_bytes)})")


@app.command(epilog="Example: enginehouse models zoo resnet_v1_50 --name flowers --weights flowers.h5 --classes 5")
def zoo(
    architecture: Annotated[str, typer.Argument(help="Such as vgg16, inception_v3 or resnet_v1_50.")],
    name: Annotated[str | None, typer.Option(help="Its id; the architecture's name when absent.")] = None,
    weights: Annotated[
        str | None, typer.Option(help="A Keras weights file (uploaded), or the digest of one that is uploaded.")
    ] = None,
    classes: Annotated[int, typer.Option(min=0, help="Number of classes; the architecture's own when 0.")] = 0,
    seed: Annotated[int, typer.Option(help="Of random weights, when no others are given.")] = 0,
    preprocessing: PreprocessingFile = None,
    mean: Mean = None,
    deviation: Deviation = None,
    bgr: Bgr = False,
    central_fraction: CentralFraction = None,
    resampling: Resampling = None,
    label: Labels = None,
    json: Json = False,
) -> None:
    """Register an architecture of the optimizer's zoo, with weights of a file or random ones."""
    prepared = read_preprocessing(preprocessing, mean, deviation, bgr, central_fraction, resampling)
    with connected() as client, shown(architecture) as progress:
        model = client.models.create_zoo(
            name or architecture,
            architecture,
            seed,
            weights=weights,
            classes=classes,
            preprocessing=prepared,
            labels=pairs(label, "--label"),
            progress=progress,
        )
    print_json(model) if json else say(f"made {model.id} of the zoo")


@app.command("list")
def list_(json: Json = False) -> None:
    """List the models."""
    with connected() as client:
        models = client.models.list()
    if json:
        print_json(models)
        return
    rows = [(m.id, m.format, size(m.size_bytes) if m.size_bytes else "-", m.create_time, m.file_name) for m in models]
    print_table(
        ("MODEL", "FORMAT", "SIZE", "CREATED", "FILE"),
        rows,
        empty="no models: `enginehouse models upload FILE` adds one",
    )


@app.command()
def show(model: ModelId, json: Json = False) -> None:
    """Show a model."""
    with connected() as client:
        found = client.models.get(model)
    print_json(found) if json else print_fields(found)


@app.command()
def delete(model: ModelId) -> None:
    """Delete a model; its engines stay."""
    with connected() as client:
        client.models.delete(model)
    say(f"deleted {model}")
