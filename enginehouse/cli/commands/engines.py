"""engines list, show, download, delete."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from enginehouse.cli import completion
from enginehouse.cli.context import connected
from enginehouse.cli.output import Json, print_fields, print_json, print_table, say, size
from enginehouse.cli.transfer import shown
from enginehouse.client.values import Engine

app = typer.Typer(help="Published engines.", no_args_is_help=True)
EngineId = Annotated[str, typer.Argument(help="An engine's id or name.", autocompletion=completion.engines)]


def print_engines(engines: Sequence[Engine]) -> None:
    """Engines as a table."""
    rows = []
    for engine in engines:
        measured = engine.verification
        rows.append(
            (
                engine.id,
                (engine.backend_version and f"{engine.backend} {engine.backend_version}") or engine.backend,
                engine.precision,
                engine.device.product or engine.device.kind,
                size(engine.size_bytes),
                measured.top1 if measured else None,
                measured.sqnr_db if measured else None,
            )
        )
    columns = ("ENGINE", "BACKEND", "PRECISION", "DEVICE", "SIZE", "TOP-1", "SQNR dB")
    print_table(columns, rows, empty="no engines: `enginehouse optimize` builds some")


@app.command("list", epilog="Example: enginehouse engines list --model resnet_v1_50 --precision int8")
def list_(
    model: Annotated[
        str | None, typer.Option(help="Only engines of this model.", autocompletion=completion.models)
    ] = None,
    backend: Annotated[str, typer.Option(help="Only engines of this backend.")] = "",
    precision: Annotated[str | None, typer.Option(help="Only engines of this precision.")] = None,
    json: Json = False,
) -> None:
    """List the engines."""
    with connected() as client:
        engines = client.engines.list(model=model, backend=backend, precision=precision)
    print_json(engines) if json else print_engines(engines)


@app.command()
def show(
    engine: EngineId,
    manifest: Annotated[bool, typer.Option("--manifest", help="The whole manifest, as JSON.")] = False,
    log: Annotated[bool, typer.Option("--log", help="What the backend said while it built it.")] = False,
    json: Json = False,
) -> None:
    """Show an engine."""
    with connected() as client:
        if manifest:
            print_json(client.engines.manifest(engine))
            return
        if log:
            print(client.engines.build_log(engine), end="")
            return
        found = client.engines.get(engine)
    print_json(found) if json else print_fields(found)


@app.command(epilog="Example: enginehouse engines download ENGINE --out engine/")
def download(
    engine: EngineId,
    directory: Annotated[
        Path | None, typer.Option("--out", help="The folder to make; named as the engine when absent.")
    ] = None,
    json: Json = False,
) -> None:
    """Download an engine's files and manifest, checked against their digests."""
    with connected() as client, shown(engine) as progress:
        path = client.engines.download(engine, directory, progress=progress)
    print_json({"directory": path.resolve()}) if json else say(f"downloaded to {path}")


@app.command()
def delete(engine: EngineId) -> None:
    """Delete an engine that is not served."""
    with connected() as client:
        client.engines.delete(engine)
    say(f"deleted {engine}")
