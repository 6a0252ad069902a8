"""The command tree and its global options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from enginehouse.cli import context
from enginehouse.cli.commands import (
    auth,
    bench,
    calibration,
    datasets,
    engines,
    infer,
    jobs,
    models,
    optimize,
    serving,
    stack,
    store,
    telemetry,
    tune,
)
from enginehouse.cli.errors import EXIT_HELP

app = typer.Typer(
    name="enginehouse",
    help="Build, store, serve and watch deep-learning inference engines.",
    epilog="First steps: enginehouse up; enginehouse optimize resnet_v1_50 --precision fp32; enginehouse engines list. "
    + EXIT_HELP,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def main(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks (or set ENGINEHOUSE_DEBUG).")] = False,
    directory: Annotated[
        Path | None, typer.Option("--dir", help="The local stack's folder (ENGINEHOUSE_HOME; .enginehouse).")
    ] = None,
    project: Annotated[str | None, typer.Option(help="Project that ids belong to (ENGINEHOUSE_PROJECT).")] = None,
    optimizer: Annotated[str | None, typer.Option(help="The optimizer's host:port (ENGINEHOUSE_OPTIMIZER).")] = None,
    inference: Annotated[str | None, typer.Option(help="Inference's host:port (ENGINEHOUSE_INFERENCE).")] = None,
    telemetry_address: Annotated[
        str | None, typer.Option("--telemetry", help="Telemetry's host:port (ENGINEHOUSE_TELEMETRY).")
    ] = None,
    kubernetes: Annotated[
        str | None,
        typer.Option(
            metavar="NAMESPACE", help="Enginehouse in that namespace of a cluster (ENGINEHOUSE_CLIENT_NAMESPACE)."
        ),
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option(help="File of the token to call with (ENGINEHOUSE_CLIENT_TOKEN_FILE).")
    ] = None,
    ca: Annotated[
        Path | None, typer.Option(help="PEM file of the services' CA, for TLS (ENGINEHOUSE_CLIENT_CA).")
    ] = None,
) -> None:
    """Addresses come from these options, then the environment, then the stack that `up` started, then the defaults."""
    context.current.debug = debug
    context.current.home = directory
    context.current.project = project
    context.current.optimizer = optimizer
    context.current.inference = inference
    context.current.telemetry = telemetry_address
    context.current.client_namespace = kubernetes
    context.current.client_token_file = token_file
    context.current.client_ca = ca


stack.add_to(app)
app.add_typer(models.app, name="models")
app.add_typer(datasets.app, name="datasets")
app.add_typer(calibration.app, name="calibration")
optimize.add_to(app)
app.add_typer(jobs.app, name="jobs")
app.add_typer(engines.app, name="engines")
app.add_typer(store.app, name="store")
serving.add_to(app)
tune.add_to(app)
infer.add_to(app)
app.add_typer(bench.app, name="bench")
bench.add_to(app)
telemetry.add_to(app)
app.add_typer(auth.app, name="auth")
