"""engines list, show, download, export, import, pin, unpin, alias, aliases, unalias, delete."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from enginehouse.cli import completion
from enginehouse.cli.context import connected
from enginehouse.cli.layers import Order, print_accuracy, print_times
from enginehouse.cli.output import Json, print_fields, print_json, print_table, say, size
from enginehouse.cli.transfer import shown
from enginehouse.client import Client
from enginehouse.client.values import Engine
from enginehouse.client.values.convert import id_of

app = typer.Typer(help="Published engines.", no_args_is_help=True)
EngineId = Annotated[
    str, typer.Argument(help="An engine's id or name, or MODEL:ALIAS.", autocompletion=completion.engines)
]
AliasName = Annotated[
    str, typer.Argument(metavar="MODEL:ALIAS", help="Such as resnet:prod.", autocompletion=completion.aliases)
]


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
                ", ".join([*engine.aliases, *(["(pinned)"] if engine.pinned else [])]),
            )
        )
    columns = ("ENGINE", "BACKEND", "PRECISION", "DEVICE", "SIZE", "TOP-1", "SQNR dB", "ALIASES")
    print_table(columns, rows, empty="no engines: `enginehouse optimize` builds some")


def say_unverified(client: Client, engines: Sequence[Engine]) -> None:
    """Why engines were not verified, for those that were not."""
    for engine in engines:
        if engine.verification is None and (why := client.engines.not_verified(engine)):
            say(f"{engine.id} is not verified: {why}")


@app.command("list", epilog="Example: enginehouse engines list --model resnet_v1_50 --precision int8")
def list_(
    model: Annotated[
        str | None, typer.Option(help="Only engines of this model.", autocompletion=completion.models)
    ] = None,
    backend: Annotated[str, typer.Option(help="Only engines of this backend.")] = "",
    precision: Annotated[str | None, typer.Option(help="Only engines of this precision.")] = None,
    device: Annotated[
        str, typer.Option(help='Only engines for this device: cpu, gpu, a product, or a capability such as "9.0".')
    ] = "",
    json: Json = False,
) -> None:
    """List the engines."""
    with connected() as client:
        engines = client.engines.list(model=model, backend=backend, precision=precision, device=device)
    print_json(engines) if json else print_engines(engines)


@app.command()
def show(
    engine: EngineId,
    manifest: Annotated[bool, typer.Option("--manifest", help="The whole manifest, as JSON.")] = False,
    log: Annotated[bool, typer.Option("--log", help="What the backend said while it built it.")] = False,
    layers: Annotated[
        bool,
        typer.Option("--layers", help="What each layer costs of accuracy, how it compares with FP32, and its time."),
    ] = False,
    sort: Annotated[
        Order, typer.Option(help="With --layers: the slowest first, or in the engine's order.")
    ] = Order.TIME,
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
        if layers:
            found = client.engines.get(engine)
            sensitivity, compared = client.engines.sensitivity(found), client.engines.layers(found)
            inspector = client.engines.inspector(found)
            if json:
                print_json({"sensitivity": sensitivity, "layers": compared, "inspector": inspector})
            else:
                print_accuracy(sensitivity, compared)
                print_times(inspector, sort)
            return
        found = client.engines.get(engine)
        say_unverified(client, [found])
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
    """Delete an engine that nothing names and that is not pinned."""
    with connected() as client:
        client.engines.delete(engine)
    say(f"deleted {engine}")


@app.command(epilog="Example: enginehouse engines export resnet:prod -o resnet.engine")
def export(
    engine: EngineId,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The file to make; named as the engine when absent.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file of that name.")] = False,
    json: Json = False,
) -> None:
    """Write an engine with its manifest and all that belongs to it as one file."""
    with connected() as client, shown(engine) as progress:
        path = client.engines.export_file(engine, out, overwrite=force, progress=progress)
    print_json({"file": path.resolve()}) if json else say(f"exported to {path} ({size(path.stat().st_size)})")


@app.command("import", epilog="Example: enginehouse engines import resnet.engine --model resnet")
def import_(
    file: Annotated[Path, typer.Argument(help="What `engines export` wrote.")],
    model: Annotated[
        str | None, typer.Option(help="The model to publish it under; the one that it was built from when absent.")
    ] = None,
    json: Json = False,
) -> None:
    """Publish an exported engine. Importing it again changes nothing."""
    with connected() as client, shown(file.name) as progress:
        engine = client.engines.import_file(file, model_id=model, progress=progress)
    print_json(engine) if json else say(f"imported {engine.id}")


@app.command()
def pin(engine: EngineId) -> None:
    """Keep an engine from being deleted and from being collected as garbage."""
    with connected() as client:
        say(f"pinned {client.engines.pin(engine).id}")


@app.command()
def unpin(engine: EngineId) -> None:
    """Let an engine be deleted again."""
    with connected() as client:
        say(f"unpinned {client.engines.pin(engine, False).id}")


@app.command(epilog="Example: enginehouse engines alias resnet:prod ENGINE")
def alias(name: AliasName, engine: EngineId, json: Json = False) -> None:
    """Make an alias or move it. What `load` serves by it follows, without a gap."""
    with connected() as client:
        found = client.engines.set_alias(name, engine)
    print_json(found) if json else say(f"{found.short} is {id_of(found.engine)}")


@app.command()
def aliases(
    model: Annotated[
        str | None, typer.Argument(help="Only those of this model.", autocompletion=completion.models)
    ] = None,
    json: Json = False,
) -> None:
    """List the aliases."""
    with connected() as client:
        found = client.engines.list_aliases(model)
    if json:
        print_json(found)
        return
    rows = [(each.short, id_of(each.engine), each.update_time) for each in found]
    print_table(
        ("ALIAS", "ENGINE", "SET"), rows, empty="no aliases: `enginehouse engines alias MODEL:ALIAS ENGINE` makes one"
    )


@app.command()
def unalias(name: AliasName) -> None:
    """Forget an alias that is not served; its engine stays."""
    with connected() as client:
        client.engines.delete_alias(name)
    say(f"deleted {name}")
