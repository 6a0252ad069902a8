"""up, serve, down, status, version."""

from __future__ import annotations

import platform
import signal
import sys
import threading
from importlib import metadata
from typing import Annotated

import typer

from enginehouse.cli import context
from enginehouse.cli.errors import FAILURE
from enginehouse.cli.output import Json, out, print_json, print_table, say
from enginehouse.errors import InvalidArgumentError
from enginehouse.local.plan import DEFAULT_PORTS, METRICS_PORT, StackOptions
from enginehouse.local.ports import HOST
from enginehouse.local.stack import STOP_SECONDS, down, status, up
from enginehouse.local.supervise import keep_running

Port = Annotated[int | None, typer.Option(min=0, max=65535, help="Its port; 0 takes a free one.")]


Devices = Annotated[
    str | None,
    typer.Option(
        help="all (every GPU), cpu, or a list such as cuda:0,cuda:1: an inference process each. Absent: "
        "ENGINEHOUSE_DEVICE; else every GPU if TensorRT's environment is installed; else cpu."
    ),
]
Timeout = Annotated[float, typer.Option(help="Seconds that a service may take to be ready.")]

SERVE_EXAMPLES = (
    "Examples: enginehouse serve --devices all; enginehouse --optimizer 10.0.0.5:8010 serve --host 0.0.0.0 "
    "--devices cuda:0,cuda:1"
)


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("up", epilog="Example: enginehouse up --ports auto")(_up)
    app.command("serve", epilog=SERVE_EXAMPLES)(_serve)
    app.command("down", epilog="Example: enginehouse down --timeout 10")(_down)
    app.command("status", epilog="Example: enginehouse status --json")(_status)
    app.command("version")(_version)


def _up(
    ports: Annotated[
        str, typer.Option(help='"default" (8010, 8001, 8020), or "auto" for free ones where none is given.')
    ] = "default",
    optimizer_port: Port = None,
    inference_port: Port = None,
    telemetry_port: Port = None,
    metrics_port: Annotated[int | None, typer.Option(min=0, max=65535, help="Of telemetry's metrics.")] = None,
    devices: Devices = None,
    timeout: Timeout = 60.0,
    json: Json = False,
) -> None:
    """Start the optimizer, inference and telemetry on this machine, and return when they are ready.

    Inference has a process for each device, on ports that follow each other; clients spread requests over them.
    """
    if ports not in ("default", "auto"):
        raise InvalidArgumentError(f'--ports {ports!r} is not valid: expected "default" or "auto"')
    auto = ports == "auto"
    given = {"optimizer": optimizer_port, "inference": inference_port, "telemetry": telemetry_port}
    chosen = {name: value if value is not None else 0 if auto else DEFAULT_PORTS[name] for name, value in given.items()}
    metrics = metrics_port if metrics_port is not None else 0 if auto else METRICS_PORT
    state = up(StackOptions(context.home(), chosen, metrics, timeout, devices=devices), say)
    if json:
        print_json({"home": context.home().resolve(), "services": state.services})
    else:
        say(f"state, logs and data are in {context.home()}")


def _serve(
    devices: Devices = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for every one of this machine.")] = HOST,
    inference_port: Annotated[
        int, typer.Option(min=0, max=65535, help="Of the first process; the others take those after it. 0: free ones.")
    ] = DEFAULT_PORTS["inference"],
    fronts: Annotated[
        str | None,
        typer.Option(help="Processes that share each port: a number, or auto. Absent: ENGINEHOUSE_FRONTS, else 1."),
    ] = None,
    timeout: Timeout = 60.0,
) -> None:
    """Serve on this machine's devices until Ctrl-C or SIGTERM: a process each, started again when it ends.

    They follow the optimizer of --optimizer or ENGINEHOUSE_OPTIMIZER; without one they load what clients tell them to.
    """
    optimizer = context.variables().get("ENGINEHOUSE_OPTIMIZER", "")
    options = StackOptions(
        context.home(),
        {"inference": inference_port},
        timeout=timeout,
        variables={} if fronts is None else {"ENGINEHOUSE_FRONTS": _checked_fronts(fronts)},
        devices=devices,
        services=("inference",),
        optimizer=optimizer,
        host=host,
    )
    stop = threading.Event()
    state = up(options, say)
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        say(f"serving at {state.addresses()['inference']}, {f'following {optimizer}' if optimizer else 'on its own'}")
        keep_running(options, stop, say)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        down(options.home, report=say)


def _checked_fronts(fronts: str) -> str:
    if fronts != "auto" and not (fronts.isdecimal() and int(fronts) > 0):
        raise InvalidArgumentError(f'--fronts {fronts!r} is not valid: expected a number from 1 on, or "auto"')
    return fronts


def _down(
    timeout: Annotated[float, typer.Option(help="Seconds to let calls finish before killing.")] = STOP_SECONDS,
    json: Json = False,
) -> None:
    """Stop the services that `up` started, once they finished what they do."""
    stopped = down(context.home(), timeout=timeout, report=say)
    if json:
        print_json([service.name for service in stopped])
    elif not stopped:
        say(f"nothing runs in {context.home()}")


def _status(json: Json = False) -> None:
    """Say how the local stack's services are. Exit status 1 when one is not serving or none was started."""
    found = status(context.home())
    if json:
        print_json(found)
    else:
        rows = [
            (
                s.name,
                "serving" if s.serving else "running" if s.running else "stopped",
                s.address,
                f"{s.device} {s.device_name}".strip() or "-",
                s.pid,
                s.log,
            )
            for s in found
        ]
        nothing = f"no stack was started in {context.home()}: `enginehouse up` starts one"
        print_table(("SERVICE", "STATE", "ADDRESS", "DEVICE", "PID", "LOG"), rows, empty=nothing)
    if not found or not all(service.serving for service in found):
        raise typer.Exit(FAILURE)


def _version(json: Json = False) -> None:
    """Say which Enginehouse, Python and gRPC these are."""
    names = ("enginehouse", "enginehouse-optimizer", "enginehouse-inference", "enginehouse-telemetry", "grpcio")
    versions = {name: version for name in names if (version := _installed(name))}
    versions["python"] = platform.python_version()
    if json:
        print_json({**versions, "executable": sys.executable})
    else:
        out().print("\n".join(f"{name} {version}" for name, version in versions.items()))


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
