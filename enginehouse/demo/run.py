"""`enginehouse demo`: the whole job on this machine, with real parts on real data.

Trains a small network on the digits, optimizes it to FP32 and INT8 engines, serves both and classifies the held-out
images, benchmarks ResNet-50 while telemetry records the machine, and writes the report.
"""

from __future__ import annotations

import asyncio
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.text import Text

from enginehouse import AsyncClient, Calibration, Client, Engine, Target, VerificationSpec
from enginehouse.bench.run import run_suite
from enginehouse.bench.seams import RunSummary
from enginehouse.bench.suite_file import load_suite
from enginehouse.cli.measuring import Lines, measuring
from enginehouse.cli.watch import follow
from enginehouse.demo.digits import Digits, load_digits
from enginehouse.demo.files import write_files
from enginehouse.demo.pictures import side_by_side
from enginehouse.errors import AlreadyExistsError
from enginehouse.local.plan import StackOptions
from enginehouse.local.stack import down, up
from enginehouse.report.write import ReportFiles, write_report

PRECISIONS = ("fp32", "int8")
SHOWN = 4
CHUNK = 64


@dataclass(frozen=True)
class Accuracy:
    """Classes that an engine gave to the held-out images, and the fraction that is right."""

    precision: str
    predicted: np.ndarray[tuple[int, ...], np.dtype[np.int64]]
    fraction: float


def run(
    directory: Path,
    *,
    suite: str = "quick",
    keep: bool = False,
    quiet: bool = False,
    services: Mapping[str, str] | None = None,
) -> ReportFiles:
    """Run the demo; everything it makes is under `directory`, which must not exist or be empty.

    Args:
        suite: the benchmark suite of step 4.
        keep: leave the services running afterwards.
        quiet: print nothing on standard output.
        services: addresses of optimizer, inference and telemetry that run already; by default they are started, and
            stopped afterwards.

    Returns:
        the report's files.

    Raises:
        AlreadyExistsError: `directory` has something in it.
        EnginehouseError: a step failed; its message says why. The services are stopped.
    """
    started = time.monotonic()
    show = Console(highlight=False, stderr=quiet)
    directory.mkdir(parents=True, exist_ok=True)
    if any(directory.iterdir()):
        raise AlreadyExistsError(f"{directory} has something in it: give --out a new or empty folder")
    home = directory / "stack"
    if services is not None:
        with Client(services["optimizer"], services["inference"], services["telemetry"]) as client:
            return _steps(show, client, services, directory, suite)
    with _step(show, "0", "Start the optimizer, inference and telemetry services"):
        ports = dict.fromkeys(("optimizer", "inference", "telemetry"), 0)
        stack = up(StackOptions(home, ports, metrics_port=0), _indented(show)).addresses()
    try:
        with Client(stack["optimizer"], stack["inference"], stack["telemetry"]) as client:
            report = _steps(show, client, stack, directory, suite)
    finally:
        if not keep:
            down(home)
    show.print()
    show.print(f"[bold]Done in {_minutes(time.monotonic() - started)}.[/] Report: {report.html}", soft_wrap=True)
    if keep:
        show.print(f"The services still run: enginehouse --dir {shlex.quote(str(home))} status")
    return report


def _steps(show: Console, client: Client, stack: Mapping[str, str], directory: Path, suite: str) -> ReportFiles:
    digits = load_digits()
    with _step(show, "1", "Train a small residual CNN on the digits and upload it"):
        file, calibration, held_out = write_files(digits, directory / "model", _indented(show))
        model = client.models.upload(file, "digits")
        show.print(f"  {model.name}: {model.size_bytes:,} bytes, {model.digest[:19]}")
    with _step(show, "2", "Optimize it to FP32 and INT8 engines"):
        engines = _optimize(client, model.name, calibration, held_out)
    with _step(show, "3", "Serve both engines and classify the held-out images"):
        accuracies = [_classify(client, engine, digits) for engine in engines]
        _show_accuracies(show, accuracies, digits)
    results = directory / "results"
    with _step(show, "4", "Benchmark while telemetry records the machine"):
        _benchmark(stack, suite, results)
    with _step(show, "5", "Write the report"):
        report = write_report(results)
        for file in (report.html, report.json, report.csv, *report.plots):
            show.print(f"  {file}")
    return report


def _optimize(client: Client, model: str, calibration: Path, held_out: Path) -> list[Engine]:
    job = client.optimize(
        model,
        [Target("onnxruntime", precision) for precision in PRECISIONS],
        calibration=Calibration(method="entropy", dataset=client.datasets.upload(calibration, "digits-calibration")),
        verification=VerificationSpec(dataset=client.datasets.upload(held_out, "digits-held-out")),
    )
    return list(follow(job).engines)


def _classify(client: Client, engine: Engine, digits: Digits) -> Accuracy:
    name = f"digits-{engine.precision}"
    client.load(name, engine)
    images, output = digits.test_images, engine.outputs[0].name
    parts = [client.infer(name, images[at : at + CHUNK])[output] for at in range(0, len(images), CHUNK)]
    predicted = np.concatenate(parts).argmax(axis=1)
    return Accuracy(engine.precision, predicted, float((predicted == digits.test_labels).mean()))


def _show_accuracies(show: Console, accuracies: list[Accuracy], digits: Digits) -> None:
    total = len(digits.test_labels)
    for accuracy in accuracies:
        right = round(accuracy.fraction * total)
        show.print(
            f"  {accuracy.precision.upper()}: {accuracy.fraction:.2%} of {total} held-out images ({right} right)"
        )
    first, second = accuracies
    points = (second.fraction - first.fraction) * 100
    show.print(f"  {second.precision.upper()} against {first.precision.upper()}: {points:+.2f} points\n")
    # One image a class, and first one that an engine gets wrong, if any.
    wrong = np.flatnonzero(np.any([a.predicted != digits.test_labels for a in accuracies], axis=0))[:1]
    _, firsts = np.unique(digits.test_labels, return_index=True)
    chosen = np.concatenate([wrong, firsts])[:SHOWN]
    captions = [
        "\n".join([*(f"{a.precision} {a.predicted[i]}" for a in accuracies), f"label {digits.test_labels[i]}"])
        for i in chosen
    ]
    for line in side_by_side(digits.test_images[chosen, :, :, 0], captions):
        show.print(Text(f"  {line}"))


def _benchmark(stack: Mapping[str, str], suite: str, results: Path) -> RunSummary:
    async def measure(progress: Lines) -> RunSummary:
        async with AsyncClient(stack["optimizer"], stack["inference"], stack["telemetry"]) as client:
            command = shlex.join(["enginehouse", *sys.argv[1:]])
            return await run_suite(load_suite(suite), results, client=client, progress=progress, command=command)

    with measuring() as progress:
        return asyncio.run(measure(progress))


@contextmanager
def _step(show: Console, number: str, title: str) -> Iterator[None]:
    show.print()
    show.rule(f"[bold]{number}. {title}", align="left")
    began = time.monotonic()
    yield
    show.print(f"  [dim]{_minutes(time.monotonic() - began)}[/]")


def _indented(show: Console) -> Callable[[str], None]:
    return lambda line: show.print(Text(f"  {line}"))


def _minutes(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else f"{int(seconds // 60)} min {int(seconds % 60)} s"
