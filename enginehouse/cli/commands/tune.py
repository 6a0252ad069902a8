"""tune: search for a serving configuration against the running service."""

from __future__ import annotations

import asyncio
import shlex
import sys
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Any

import typer

from enginehouse.bench.inputs import random_inputs
from enginehouse.cli import completion, context
from enginehouse.cli.commands.infer import read_inputs
from enginehouse.cli.durations import seconds
from enginehouse.cli.errors import FAILURE
from enginehouse.cli.output import Json, print_json, print_table, say
from enginehouse.client import AsyncClient
from enginehouse.client.balancing.policy import Balancing, Retry
from enginehouse.client.values import ServingConfig
from enginehouse.client.values.convert import id_of
from enginehouse.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError
from enginehouse.tune import report
from enginehouse.tune.engines import Candidate, candidates
from enginehouse.tune.goal import Goal, Trial
from enginehouse.tune.levels import rising
from enginehouse.tune.load import Window
from enginehouse.tune.report import Tuning
from enginehouse.tune.run import tune
from enginehouse.tune.service import Inputs, LiveService, Load
from enginehouse.tune.space import DELAYS_MS, INSTANCES, Space, batch_sizes

EXAMPLES = (
    "Examples: enginehouse tune resnet --latency-p99 15ms --min-accuracy 0.99; enginehouse tune resnet --latency-p99 "
    "15ms --rate 400 --objective latency --output resnet.json --apply"
)


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command("tune", epilog=EXAMPLES)(_tune)


@dataclass(frozen=True)
class Options:
    """What was asked for, checked."""

    model: str
    served: str
    goal: Goal
    min_accuracy: float | None
    precisions: tuple[str, ...]
    backends: tuple[str, ...]
    device: str
    rows: int
    inputs: Inputs | None
    concurrency: tuple[int, ...]
    rate: float | None
    batches: tuple[int, ...]
    delays_ms: tuple[float, ...]
    instances: tuple[int, ...]
    window: Window
    budget: float
    load_seconds: float


def _tune(
    model: Annotated[str, typer.Argument(help="A model with engines.", autocompletion=completion.models)],
    latency_p99: Annotated[str | None, typer.Option(help="Limit of the 99th percentile, such as 15ms.")] = None,
    min_accuracy: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Of an engine, relative to FP32, as its verification measured it."),
    ] = None,
    objective: Annotated[
        str, typer.Option(help="throughput: the most inferences/s; latency: the lowest p99.")
    ] = "throughput",
    min_throughput: Annotated[float, typer.Option(min=0, help="Inferences/s, at least.")] = 0.0,
    name: Annotated[str | None, typer.Option(help="The served name to configure; the model's when absent.")] = None,
    precision: Annotated[list[str] | None, typer.Option(help="Only this precision; may be repeated.")] = None,
    backend: Annotated[list[str] | None, typer.Option(help="Only this backend; may be repeated.")] = None,
    device: Annotated[str, typer.Option(help="cpu or gpu: only engines for it.")] = "",
    rows: Annotated[int, typer.Option(min=1, help="Of each request.")] = 1,
    input: Annotated[  # noqa: A002 - the option's name
        list[str] | None, typer.Option(help="A request, as `infer` takes it; random numbers when absent.")
    ] = None,
    concurrency: Annotated[
        str, typer.Option(help="Requests in flight: LOWEST:HIGHEST, doubled, or one number.")
    ] = "1:64",
    rate: Annotated[
        float | None, typer.Option(help="Requests offered a second (Poisson), in place of --concurrency.")
    ] = None,
    max_batch: Annotated[
        list[int] | None, typer.Option(min=1, help="A batch limit to try; may be repeated. Powers of two when absent.")
    ] = None,
    delay_ms: Annotated[list[float] | None, typer.Option(min=0, help="A queue delay to try; may be repeated.")] = None,
    instances: Annotated[
        list[int] | None, typer.Option(min=1, help="A number of instances to try; may be repeated.")
    ] = None,
    budget: Annotated[str, typer.Option(help="How long the search may take.")] = "5m",
    window: Annotated[str, typer.Option(help="How long each load is measured, at least.")] = "1s",
    load_timeout: Annotated[float, typer.Option(help="Seconds that an engine may take to load.")] = 120.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be tried, and serve nothing.")] = False,
    apply: Annotated[bool, typer.Option("--apply", help="Serve what was found.")] = False,
    output: Annotated[
        Path | None,
        typer.Option(help="Write the configuration here (JSON), and the table and rows beside it (.md, .jsonl)."),
    ] = None,
    json: Json = False,
) -> None:
    """Find the engine, batch, queue delay and instances that serve a model best.

    Configurations are served under a name of their own, MODEL-tuning, and measured over the network. What clients use
    is not touched without --apply. Ctrl-C takes away what was served for the search. Exit status 1 when nothing does.
    """
    if objective not in ("throughput", "latency"):
        raise InvalidArgumentError(f"--objective {objective!r} is not valid: expected throughput or latency")
    if device not in ("", "cpu", "gpu"):
        raise InvalidArgumentError(f"--device {device!r} is not valid: expected cpu or gpu")
    if rate is not None and rate <= 0:
        raise InvalidArgumentError(f"--rate {rate:g} is not valid: expected more than 0")
    p99 = None if latency_p99 is None else seconds(latency_p99, "--latency-p99", unit="ms") * 1e3
    length = seconds(window, "--window")
    given = read_inputs(input) if input else None
    if given is not None and not isinstance(given, dict):
        raise InvalidArgumentError("--input: give the array a name, NAME=FILE.npy, or use a .npz")
    options = Options(
        model=model,
        served=name or model,
        goal=Goal(objective, p99, min_throughput),  # type: ignore[arg-type]
        min_accuracy=min_accuracy,
        precisions=tuple(precision or ()),
        backends=tuple(backend or ()),
        device=device,
        rows=rows if given is None else len(next(iter(given.values()))),
        inputs=given,
        concurrency=_levels(concurrency),
        rate=rate,
        batches=tuple(sorted(set(max_batch or ()))),
        delays_ms=tuple(sorted(set(delay_ms))) if delay_ms else _delays(p99),
        instances=tuple(sorted(set(instances))) if instances else INSTANCES,
        window=Window(length, 100, 5 * length),
        budget=seconds(budget, "--budget"),
        load_seconds=load_timeout,
    )
    tuning = asyncio.run(_run(options, dry_run=dry_run, apply=apply))
    if tuning is None:
        return
    if output is not None:
        _write(tuning, output)
    if json:
        print_json({"configuration": report.configuration(tuning), "rows": report.rows(tuning)})
    else:
        print_table([name.upper() for name in report.COLUMNS], report.table(tuning), empty="nothing was measured")
    if tuning.best is None:
        say("no configuration does: the table says what each lacked")
        raise typer.Exit(FAILURE)
    done = "is served" if apply else f"serve it with: {report.load_command(tuning)}"
    say(f"{tuning.served}: {done}" + ("" if tuning.outcome.confirmed else " (measured once: the time was over)"))


async def _run(options: Options, *, dry_run: bool, apply: bool) -> Tuning | None:
    variables = context.variables()
    # A refusal must be seen, so nothing is sent again.
    balancing = Balancing(retry=Retry(max_attempts=1))
    async with AsyncClient.from_environment(variables, balancing=balancing) as client:
        judged = await _candidates(client, options)
        space = _space(judged, options)
        if dry_run:
            _say_space(judged, space, options)
            return None
        former = await _former(client, options.served)
        # Engines of a model have one signature; one with folded preprocessing has its own.
        load = Load(_inputs(judged, options), options.rows, options.concurrency, options.rate, options.window)
        began = datetime.now(timezone.utc).isoformat(timespec="seconds").replace("+00:00", "Z")
        async with LiveService(client, options.served, former, load, options.goal, options.load_seconds) as service:
            outcome = await tune(service, space, options.goal, options.budget, tell=lambda t: _tell(options.goal, t))
            best = outcome.best
            batching = service.batching(best.point, trial=False) if best else None
        command = shlex.join(["enginehouse", *sys.argv[1:]])
        found = Tuning(options.served, options.goal, judged, outcome, batching, former, command, began)
        if apply and best is not None:
            await client.load(options.served, best.point.engine, instances=best.point.instances, batching=batching)
        return found


async def _candidates(client: AsyncClient, options: Options) -> list[Candidate]:
    judged = candidates(
        await client.engines.list(model=options.model),
        min_accuracy=options.min_accuracy,
        precisions=options.precisions,
        backends=options.backends,
        device=options.device,
    )
    if not judged:
        raise NotFoundError(f"the model {options.model} has no such engine: `enginehouse optimize` makes engines")
    if all(candidate.refusal for candidate in judged):
        said = "; ".join(f"{candidate.engine.id}: {candidate.refusal}" for candidate in judged)
        raise FailedPreconditionError(f"no engine of {options.model} is accurate enough: {said}")
    return judged


def _space(judged: list[Candidate], options: Options) -> Space:
    batches: dict[str, tuple[int, ...]] = {}
    for candidate in judged:
        if candidate.refusal:
            continue
        engine = candidate.engine
        largest = engine.max_batch_size if engine.batched else 0
        asked = tuple(sorted({min(size, largest) for size in options.batches}))
        batches[engine.name] = asked or batch_sizes(largest, options.rows)
    return Space(batches, options.delays_ms, options.instances)


def _inputs(judged: list[Candidate], options: Options) -> Inputs:
    if options.inputs is not None:
        return options.inputs
    wanted = {candidate.engine.inputs for candidate in judged if not candidate.refusal}
    if len(wanted) > 1:
        raise FailedPreconditionError(
            f"the engines of {options.model} take different inputs: choose with --precision or --backend"
        )
    return random_inputs(next(iter(wanted)), options.rows, seed=0)  # type: ignore[arg-type]


async def _former(client: AsyncClient, served: str) -> ServingConfig | None:
    try:
        return await client.serving.get(served)
    except NotFoundError:
        return None


def _tell(goal: Goal, trial: Trial) -> None:
    point, level = trial.point, goal.best_level(trial)
    where = f"{id_of(point.engine)} batch {point.max_batch_size} x{point.instances} delay {point.delay_ms:g} ms"
    verdict = goal.verdict(trial)
    figures = ""
    if level is not None and level.latency is not None:
        figures = f": {level.inferences_per_second:.4g} inferences/s, p99 {level.latency.p99:.3g} ms"
    notes = f" (rejected: {verdict})" if verdict else ""
    say(f"{where}{figures}{notes}{' [second look]' if trial.confirmation else ''}")


def _say_space(judged: list[Candidate], space: Space, options: Options) -> None:
    lines: list[tuple[Any, ...]] = []
    for candidate in judged:
        engine = candidate.engine
        accuracy = candidate.accuracy.value if candidate.accuracy else None
        sizes = " ".join(map(str, space.batches.get(engine.name, ())))
        lines.append((engine.id, engine.precision, engine.device.kind, accuracy, sizes, candidate.refusal))
    print_table(("ENGINE", "PRECISION", "DEVICE", "ACCURACY", "BATCHES", "REFUSED"), lines, empty="no engines")
    load = f"{options.rate:g} requests/s" if options.rate else f"{options.concurrency} requests in flight"
    say(
        f"{space.size} configurations: instances {space.instances}, delays {space.delays_ms} ms; under {load} of "
        f"{options.rows} rows; at most {options.budget:g} s"
    )


def _write(tuning: Tuning, output: Path) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    files = [output.with_suffix(".md"), output.with_suffix(".jsonl")]
    configuration = report.configuration(tuning)
    if configuration is not None:
        output.write_text(report.as_text(configuration), encoding="utf-8")
        files.insert(0, output)
    output.with_suffix(".md").write_text(report.markdown(tuning), encoding="utf-8")
    rows = (report.as_text(row).replace("\n", " ").strip() + "\n" for row in report.rows(tuning))
    output.with_suffix(".jsonl").write_text("".join(rows), encoding="utf-8")
    say(f"wrote {', '.join(map(str, files))}")


def _levels(text: str) -> tuple[int, ...]:
    """ "LOWEST:HIGHEST" or one number as numbers of requests in flight."""
    low, colon, high = text.partition(":")
    try:
        found = (int(low), int(high if colon else low))
    except ValueError:
        found = (0, 0)
    if not 1 <= found[0] <= found[1]:
        raise InvalidArgumentError(
            f"--concurrency {text!r} is not valid: expected a number or LOWEST:HIGHEST, such as 1:64"
        )
    return rising(*found)


def _delays(p99_ms: float | None) -> tuple[float, ...]:
    """Delays that leave at least half of the limit to compute in."""
    return tuple(delay for delay in DELAYS_MS if p99_ms is None or delay <= p99_ms / 2)
