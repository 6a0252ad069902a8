"""bench run, bench list, report, demo."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import sys
import threading
import time
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from enginehouse.cli import context
from enginehouse.cli.errors import FAILURE, INTERRUPTED
from enginehouse.cli.measuring import Lines, measuring
from enginehouse.cli.output import Json, print_json, print_table, say
from enginehouse.errors import FailedPreconditionError, InvalidArgumentError

app = typer.Typer(help="Benchmarks.", no_args_is_help=True)


def add_to(root: typer.Typer) -> None:
    """Add the commands that stand alone."""
    root.command("report", epilog="Example: enginehouse report results/mine")(_report)
    root.command("demo", epilog="Example: enginehouse demo --keep")(_demo)


@app.command("list")
def list_(json: Json = False) -> None:
    """List the suites that come with Enginehouse."""
    suite_module = _extra("enginehouse.bench.suite_file", "bench")
    suites = [suite_module.load_suite(name) for name in suite_module.packaged_suites()]
    if json:
        print_json([{"name": suite.name, "description": suite.description} for suite in suites])
        return
    print_table(("SUITE", "DESCRIPTION"), [(suite.name, suite.description) for suite in suites], empty="no suites")


@app.command(epilog="Example: enginehouse bench run quick --out results/mine")
def run(
    suite: Annotated[str, typer.Argument(help="A suite's name (`bench list`) or its YAML file.")],
    directory: Annotated[Path, typer.Option("--out", help="The folder for the results.")],
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what the folder has.")] = False,
    json: Json = False,
) -> None:
    """Run a benchmark on this machine. Ctrl-C keeps the rows that are finished; --resume goes on from there.

    Exit status 1 when nothing could be measured.
    """
    loaded = _extra("enginehouse.bench.suite_file", "bench").load_suite(suite)
    run_suite = _extra("enginehouse.bench.run", "bench").run_suite
    command = shlex.join(["enginehouse", *sys.argv[1:]])

    async def measure(progress: Lines) -> Any:
        async with context.asynchronous() as client:
            return await run_suite(loaded, directory, client=client, resume=resume, progress=progress, command=command)

    with measuring() as progress:
        summary = asyncio.run(measure(progress))
    if json:
        print_json(summary)
    if summary.rows == 0:
        raise typer.Exit(FAILURE)


@app.command(epilog="Example: enginehouse bench loadgen resnet_v1_50:prod --scenario offline --out results/loadgen")
def loadgen(
    engine: Annotated[str, typer.Argument(help="An engine's id, or MODEL:ALIAS.")],
    directory: Annotated[Path, typer.Option("--out", help="The folder for the results; they are added to it.")],
    scenario: Annotated[
        list[str] | None,
        typer.Option(help="single_stream, multi_stream, server or offline; may be repeated, also the same; all."),
    ] = None,
    target: Annotated[str, typer.Option(help="worker: the engine in a process here; service: over gRPC.")] = "worker",
    batch: Annotated[int, typer.Option(help="Samples that go to the engine at once.", min=1)] = 8,
    in_flight: Annotated[int, typer.Option(help="Batches that wait in the engine or the service.", min=1)] = 2,
    seconds: Annotated[float, typer.Option(help="Of each scenario; MLPerf asks for 600.")] = 10.0,
    queries: Annotated[int | None, typer.Option(help="At least so many; MLPerf's own from 600 s on.", min=1)] = None,
    target_qps: Annotated[
        float | None, typer.Option(help="Server: Poisson arrivals a second; half of what we measure.")
    ] = None,
    latency: Annotated[str, typer.Option(help="Server: bound of the 99th percentile.")] = "15ms",
    device: Annotated[str | None, typer.Option(help="cpu or gpu:N; the engine's kind.")] = None,
    json: Json = False,
) -> None:
    """Run MLPerf's scenarios with its own LoadGen. Not a submission: inputs are random, shorter runs are labelled.

    Exit status 1 when a scenario's own conditions were not met.
    """
    scenarios = _extra("enginehouse.bench.loadgen.scenarios", "bench")
    module = _extra("enginehouse.bench.loadgen.bench", "bench")
    bound = milliseconds(latency, "--latency")
    wanted = tuple(
        scenarios.Scenario(name, seconds, queries, target_qps if name == "server" else None, bound)
        for name in scenario or scenarios.SCENARIOS
    )
    command = shlex.join(["enginehouse", *sys.argv[1:]])

    async def measure() -> Any:
        async with context.asynchronous() as client:
            kind = device or ("cpu" if (await client.engines.get(engine)).device.kind == "cpu" else "gpu:0")
            plan = module.Plan(wanted, target, batch, in_flight, kind, command)
            return await module.run_loadgen(client, engine, plan, directory, say)

    try:
        lines = asyncio.run(measure())
    except KeyboardInterrupt:
        say(f"interrupted: finished scenarios are kept in {directory}")
        _leave_loadgen(_extra("enginehouse.bench.loadgen.run", "bench").THREAD)
        raise
    if json:
        print_json(lines)
    else:
        columns = ("SCENARIO", "RESULT", "IMAGES/S", "LATENCY MS", "HARNESS IMAGES/S", "RATIO", "SECONDS")
        print_table(columns, [_scenario_line(line) for line in lines], empty="no scenario")
        if (agreement := module.agreement(lines)) is not None and agreement[1] is not None:
            ratio, (low, high) = agreement
            say(f"offline throughput, LoadGen over our harness: {ratio:.3f} ({low:.3f} to {high:.3f})")
    if not all(line["valid"] for line in lines):
        raise typer.Exit(FAILURE)


def _leave_loadgen(thread: str) -> None:
    """End this process at once when LoadGen's thread still runs: it calls into an interpreter that is shutting down."""
    if any(found.name == thread for found in threading.enumerate()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(INTERRUPTED)


def _scenario_line(line: dict[str, Any]) -> tuple[object, ...]:
    result = ("valid" if line["valid"] else "invalid") + (", shortened" if line["shortened"] else "")
    harness = line["harness"]["inferences_per_second"] if line["scenario"] == "offline" else None
    rate, latency = line.get("inferences_per_second"), line.get("latency_ms", line["percentiles_ms"].get("99.00"))
    return line["scenario"], result, rate, latency, harness, line.get("ratio"), line["seconds"]


@app.command(epilog="Example: enginehouse bench compare results/t4 results/h200")
def compare(
    directories: Annotated[
        list[Path], typer.Argument(help="Results of two or more benchmarks; the first is the base.")
    ],
    output: Annotated[Path | None, typer.Option("--out", help="Write Markdown, JSON and plots there too.")] = None,
    json: Json = False,
) -> None:
    """Show results side by side: throughput, ratio to the first with its interval, latency."""
    module = _extra("enginehouse.report.compare", "report")
    writing = _extra("enginehouse.report.write_comparison", "report")
    comparison = module.compare(module.load_sets(directories))
    if output is not None:
        files = writing.write_comparison(comparison, output, _extra("enginehouse.paper", "bench").load_paper())
    if json:
        print_json(module.to_json(comparison))
        return
    for name, machine, alone in zip(comparison.names, comparison.machines, comparison.alone, strict=True):
        say(f"{name}: {machine}" + (f"; {alone} points that no other has" if alone else ""))
    print_table(writing.columns(comparison), [writing.cells(point) for point in comparison.points], empty="")
    say("ratios are of runs apart: their intervals say nothing of what differs from run to run")
    if output is not None:
        say(f"wrote {files.markdown}")


def _report(
    directory: Annotated[Path, typer.Argument(help="A benchmark's results: a folder, or a file of rows.")],
    output: Annotated[Path | None, typer.Option("--out", help="Where to write; the results' folder.")] = None,
    more: Annotated[
        list[Path] | None, typer.Option("--with", help="More results of the same machine; may be repeated.")
    ] = None,
    latency_budget: Annotated[
        str | None, typer.Option(help="Of the table of best throughputs, such as 7ms or 0.5s; 7ms.")
    ] = None,
    budget_quantity: Annotated[
        str | None, typer.Option(help="Which latency must fit: mean, p50, p90, p95, p99 or max; p99.")
    ] = None,
    budget_ms: Annotated[float | None, typer.Option(help="The budget in ms.", hidden=True)] = None,
    against: Annotated[
        list[Path] | None, typer.Option(help="Another server's results, to stand beside; may be repeated.")
    ] = None,
    json: Json = False,
) -> None:
    """Write the report of a benchmark: one HTML page, a Markdown summary, JSON, CSV, plots."""
    write_report = _extra("enginehouse.report.write", "report").write_report
    options: dict[str, Any] = {} if budget_ms is None else {"budget_ms": budget_ms}
    if latency_budget is not None:
        options["budget_ms"] = milliseconds(latency_budget)
    if budget_quantity is not None:
        options["budget_quantity"] = budget_quantity
    files = write_report(directory, output=output, more=more or (), against=against or (), **options)
    print_json(files) if json else say(f"wrote {files.html}")


def milliseconds(text: str, option: str = "--latency-budget") -> float:
    """ "7ms", "0.5s" or "7" as milliseconds.

    Raises:
        InvalidArgumentError: it is none of these.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(ms|s|us)?\s*", text)
    if match is None or float(match.group(1)) <= 0:
        raise InvalidArgumentError(
            f"--latency-budget {text!r} is not valid: expected a time such as 7ms, 0.5s or 800us"
        )
    return float(match.group(1)) * {"s": 1e3, "us": 1e-3}.get(match.group(2), 1.0)


def _demo(
    directory: Annotated[
        Path | None,
        typer.Option("--out", help="A new or empty folder for all that it makes; enginehouse-results/demo-TIME."),
    ] = None,
    suite: Annotated[str, typer.Option(help="The benchmark's suite.")] = "quick",
    keep: Annotated[bool, typer.Option("--keep", help="Leave the services running.")] = False,
    json: Json = False,
) -> None:
    """Train, optimize, serve, benchmark and report on this machine: the whole job in a few minutes."""
    demo = _extra("enginehouse.demo.run", "demo")
    chosen = directory or Path("enginehouse-results") / time.strftime("demo-%Y%m%d-%H%M%S")
    files = demo.run(chosen, suite=suite, keep=keep, quiet=json)
    if json:
        print_json(files)


def _extra(module: str, extra: str) -> Any:
    """A module that needs an extra.

    Raises:
        FailedPreconditionError: the extra is not installed.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("enginehouse"):
            raise
        raise FailedPreconditionError(f"this needs {error.name}: pip install 'enginehouse[{extra}]'") from None
