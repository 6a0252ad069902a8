"""load, unload, serving."""

from __future__ import annotations

from typing import Annotated

import typer

from enginehouse.cli import batching as batching_options
from enginehouse.cli import completion
from enginehouse.cli.context import connected
from enginehouse.cli.options import pairs
from enginehouse.cli.output import Json, print_json, print_table, say
from enginehouse.client import Client
from enginehouse.client.resources import alias_text
from enginehouse.client.values import Batching, Engine, ModelIndex
from enginehouse.client.values.convert import id_of
from enginehouse.errors import DeadlineExceededError, InvalidArgumentError, NotFoundError, UnavailableError

Name = Annotated[str, typer.Argument(help="The name that clients use.", autocompletion=completion.served)]
Timeout = Annotated[float, typer.Option(help="Seconds to wait for this client's inference process.")]
NoWait = Annotated[bool, typer.Option("--no-wait", help="Return once the configuration is changed.")]


LOAD_EXAMPLES = (
    "Examples: enginehouse load digits --precision int8; enginehouse load resnet ENGINE --instances 2 --max-delay-ms 2;"
    " enginehouse load resnet --engine resnet:prod (follows the alias)"
)


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("load", epilog=LOAD_EXAMPLES)(_load)
    app.command("unload", epilog="Example: enginehouse unload resnet")(_unload)
    app.command("serving", epilog="Example: enginehouse serving --json")(_serving)


def _load(
    name: Name,
    engine: Annotated[
        str | None,
        typer.Argument(
            help="An engine's id or name, or MODEL:ALIAS to follow; the newest of the model NAME when absent.",
            autocompletion=completion.engines,
        ),
    ] = None,
    engine_option: Annotated[
        str | None, typer.Option("--engine", help="The same as an option.", autocompletion=completion.engines)
    ] = None,
    model: Annotated[str | None, typer.Option(help="Take the newest engine of this model.")] = None,
    precision: Annotated[str | None, typer.Option(help="Take the newest engine of this precision.")] = None,
    backend: Annotated[str | None, typer.Option(help="Take the newest engine of this backend.")] = None,
    version: Annotated[int | None, typer.Option(min=1, help="Its version; the next one when absent.")] = None,
    instances: Annotated[int | None, typer.Option(min=1, help="Execution contexts for each device.")] = None,
    max_batch: batching_options.MaxBatch = None,
    max_delay_ms: batching_options.MaxDelay = None,
    prefer: batching_options.Prefer = None,
    max_queue: batching_options.MaxQueue = None,
    queue_timeout_ms: batching_options.QueueTimeout = None,
    on_timeout: batching_options.OnTimeout = None,
    timeout_override: batching_options.TimeoutOverride = None,
    priorities: batching_options.Priorities = None,
    default_priority: batching_options.DefaultPriority = None,
    priority_queue: batching_options.PriorityQueues = None,
    share: batching_options.Share = None,
    cache_mb: batching_options.CacheMb = None,
    option: Annotated[list[str] | None, typer.Option(help="A backend option, NAME=VALUE; may be repeated.")] = None,
    no_wait: NoWait = False,
    timeout: Timeout = 300.0,
    json: Json = False,
) -> None:
    """Serve an engine under a name, in every inference process of the project. What is not given stays as it is."""
    given = batching_options.BatchingOptions(
        max_batch=max_batch,
        max_delay_ms=max_delay_ms,
        prefer=prefer,
        max_queue=max_queue,
        queue_timeout_ms=queue_timeout_ms,
        on_timeout=on_timeout,
        timeout_override=timeout_override,
        priorities=priorities,
        default_priority=default_priority,
        priority_queue=priority_queue,
        share=share,
        cache_mb=cache_mb,
    )
    changes = given.changes()
    options = pairs(option, "--option") if option else None
    if engine is not None and engine_option is not None:
        raise InvalidArgumentError("give the engine once: as an argument or as --engine")
    engine = engine if engine is not None else engine_option
    if engine is not None and (model or precision or backend):
        raise InvalidArgumentError("give an engine, or --model, --precision and --backend to choose one, not both")
    with connected() as client:
        chosen = engine or _newest(client, model or name, precision, backend)
        batching = given.apply(_batching(client, name)) if changes else None
        config = client.load(
            name,
            chosen,
            version=version,
            instances=instances,
            batching=batching,
            options=options,
            wait=not no_wait,
            timeout=timeout,
        )
    if json:
        print_json(config)
        return
    newest = config.newest
    number = version or (newest.version if newest else 0)
    served = next((v for v in config.versions if v.version == number), None)
    what = "" if served is None else id_of(served.engine)
    follows = f" (follows {alias_text(served.alias)})" if served is not None and served.alias else ""
    say(f"{config.id} version {number} {'will be' if no_wait else 'is'} served: {what}{follows}")


def _newest(client: Client, model: str, precision: str | None, backend: str | None) -> Engine:
    """The newest engine of a model, of a precision and a backend where given.

    Raises:
        NotFoundError: there is none.
    """
    found = client.engines.list(model=model, precision=precision, backend=backend or "")
    if not found:
        kind = " ".join(part for part in (backend, precision) if part)
        raise NotFoundError(
            f"the model {model} has no {kind + ' ' if kind else ''}engine: "
            "`enginehouse engines list` shows those there are, `enginehouse optimize` makes them"
        )
    return max(found, key=lambda engine: engine.create_time.timestamp() if engine.create_time else 0.0)


def _batching(client: Client, name: str) -> Batching:
    try:
        return client.serving.get(name).batching
    except NotFoundError:
        return Batching()


def _unload(name: Name, no_wait: NoWait = False, timeout: Timeout = 60.0) -> None:
    """Stop serving a model, in every inference process of the project."""
    with connected() as client:
        client.unload(name, wait=not no_wait, timeout=timeout)
    say(f"{name} is no longer served")


def _index(client: Client) -> list[ModelIndex]:
    """What the inference process has; what is to be served is worth showing without it."""
    try:
        return client.model_index()
    except (UnavailableError, DeadlineExceededError) as error:
        say(f"the states are unknown: {error.message}")
        return []


def _serving(json: Json = False) -> None:
    """List what is to be served, and what the inference process says of it."""
    with connected() as client:
        configs = client.serving.list()
        states = {(entry.name, entry.version): entry for entry in _index(client)} if configs else {}
    if json:
        print_json({"configurations": configs, "index": list(states.values())})
        return
    rows = []
    for config in configs:
        for served in config.served:
            entry = states.get((config.id, str(served.version)))
            state = "-" if entry is None else f"{entry.state} {entry.reason}".strip()
            alias = alias_text(served.alias)
            rows.append((config.id, served.version, id_of(served.engine), alias, config.instances, state))
    print_table(
        ("MODEL", "VERSION", "ENGINE", "ALIAS", "INSTANCES", "STATE"),
        rows,
        empty="nothing is served: `enginehouse load NAME ENGINE` serves an engine",
    )
