"""models upload, list, show, delete."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from enginehouse.cli import completion
from enginehouse.cli.context import connected
from enginehouse.cli.options import Labels, pairs
from enginehouse.cli.output import Json, print_fields, print_json, print_table, say, size
from enginehouse.cli.transfer import shown

app = typer.Typer(help="Trained networks.", no_args_is_help=True)
ModelId = Annotated[str, typer.Argument(help="A model's id or name.", autocompletion=completion.models)]


@app.command(epilog="Example: enginehouse models upload net.onnx --name mine --label stage=test")
def upload(
    path: Annotated[Path, typer.Argument(help="A .keras, .h5, .onnx or .pb file, or a SavedModel's folder.")],
    name: Annotated[str | None, typer.Option(help="Its id; made from the file's name when absent.")] = None,
    label: Labels = None,
    replace: Annotated[bool, typer.Option("--replace", help="Replace a model of that id.")] = False,
    json: Json = False,
) -> None:
    """Upload a model. An upload that broke goes on where it stopped."""
    with connected() as client, shown(path.name) as progress:
        model = client.models.upload(path, name, labels=pairs(label, "--label"), replace=replace, progress=progress)
    print_json(model) if json else say(f"uploaded {model.id} ({model.format}, {size(model.size_bytes)})")


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
