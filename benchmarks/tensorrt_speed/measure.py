"""Builds engines and times them in turns, window by window, so that a ratio compares the same minutes.

    python measure.py --work /tmp/speed --out results/h200/NAME --variants variants/resnet50.json

Run it with the worker environment of TensorRT (tensorrt, cuda-bindings, NumPy); `--host-python` is the Python that has
nvidia-ml-py and PyTorch. The models are those of `models.py prepare` in the same work folder. Rows are on disk as soon
as a batch size is done: the same command again goes on where it ended. A variant that fails is listed, the rest goes
on. Writes `rows.jsonl`, `builds.jsonl`, `environments.json` and the GPU's telemetry, `telemetry.jsonl`.
"""

from __future__ import annotations

import argparse
import gc
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "worker")]

from tensorrt_speed import power, rows  # noqa: E402
from tensorrt_speed.campaign import Campaign  # noqa: E402
from tensorrt_speed.runners import (  # noqa: E402
    EngineRunner,
    Runner,
    TorchRunner,
    host_environment,
)
from tensorrt_speed.variants import Point, Variant, read_variants  # noqa: E402


def accuracy(work: Path, variant: Variant, profile: dict[str, int], runner: Runner) -> dict[str, Any]:
    """The SQNR of an engine's outputs against ONNX Runtime's; empty for what is no engine."""
    if not isinstance(runner, EngineRunner):
        return {}
    from enginehouse_worker.metrics import Agreement

    suffix = "-uint8" if variant.source.endswith("-uint8") else ""
    reference = np.load(work / variant.model / f"reference{suffix}.npz")
    agreement = Agreement()
    agreement.add(reference["output"], runner.outputs(reference["input"], profile["min"], profile["max"]))
    decibels = agreement.sqnr_db
    return {} if decibels is None else {"sqnr_db": round(decibels, 2)}


def take_turns(
    runners: dict[str, Runner],
    wanted: Sequence[Point],
    rounds: int,
    seconds: float,
    fail: Callable[[str, BaseException], None],
) -> dict[Point, tuple[list[float], list[float], list[power.Window]]]:
    """Rates, latencies and the windows' times of each point, measured in turns; a failed variant is left out."""
    found: dict[Point, tuple[list[float], list[float], list[power.Window]]] = {p: ([], [], []) for p in wanted}

    def attempt(point: Point, work: Callable[[Runner], None]) -> None:
        if point not in found:
            return
        try:
            work(runners[point.variant])
        except Exception as error:
            fail(point.variant, error)
            for other in [p for p in found if p.variant == point.variant]:
                del found[other]

    def window(runner: Runner, point: Point) -> None:
        rates, singles, windows = found[point]
        begin = time.monotonic()
        rates.append(runner.rate(point.batch, point.scope, point.instances, seconds))
        windows.append((begin, time.monotonic()))
        if point.instances == 1:
            singles.extend(runner.latencies(point.batch, point.scope, seconds / 2))

    for point in wanted:
        attempt(point, lambda runner, p=point: runner.warm(p.batch, p.scope, p.instances))  # type: ignore[misc]
    gc.collect()
    gc.disable()
    try:
        for number in range(rounds):
            # Back and forth, so that no point always follows the same one.
            for point in wanted if number % 2 == 0 else reversed(wanted):
                attempt(point, lambda runner, p=point: window(runner, p))  # type: ignore[misc]
    finally:
        gc.enable()
    return found


def measure_model(campaign: Campaign, model: str, environment_digest: str) -> None:
    """Load the engines of a model or a group of models, and time their missing points by batch size."""
    runners: dict[str, Runner] = {}
    extra: dict[str, dict[str, Any]] = {}
    built = {v.name: v for v in campaign.variants if v.built}
    mine = [v for v in campaign.variants if v.turn == model and campaign.missing(v)]
    try:
        for variant in mine:
            plan = built.get(variant.plan_name)
            record = campaign.builds.known(plan) if plan is not None else None
            if variant.kind != "torch" and (plan is None or record is None):
                campaign.failed.setdefault(variant.name, f"its plan {variant.plan_name!r} is not there")
                continue
            try:
                runner = runners[variant.name] = campaign.runner(variant)
                facts: dict[str, Any] = {} if record is None else dict(record)
                found = {} if plan is None else accuracy(campaign.work, variant, dict(plan.profile), runner)
            except Exception as error:
                campaign.fail(variant.name, error)
                continue
            left_out = ("variant", "recipe")
            extra[variant.name] = {name: value for name, value in facts.items() if name not in left_out}
            extra[variant.name] |= {"accuracy": found} if found else {}
            campaign.say(f"loaded {variant.name} {found}")
        for batch in sorted({p.batch for v in mine for p in campaign.missing(v)}):
            if campaign.late:
                campaign.say(f"{model}: the deadline came before batch {batch}")
                break
            usable = [v for v in mine if v.name in runners and v.name not in campaign.failed]
            wanted = [p for v in usable for p in campaign.missing(v) if p.batch == batch]
            measured = take_turns(runners, wanted, campaign.rounds, campaign.seconds, campaign.fail)
            samples = rows.read(campaign.out / "telemetry.jsonl")
            for point, (rates, singles, windows) in measured.items():
                variant = next(v for v in usable if v.name == point.variant)
                facts = dict(extra[point.variant])
                runner = runners[point.variant]
                if isinstance(runner, TorchRunner):
                    facts |= runner.facts
                row = {
                    **make_row(variant, point, rates, singles, power.summary(samples, windows)),
                    **facts,
                    **campaign.device,
                    "sitting": campaign.sitting,
                    "environment": environment_digest,
                    "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                    "command": " ".join(["python", "benchmarks/tensorrt_speed/measure.py", *sys.argv[1:]]),
                }
                rows.append(campaign.out / "rows.jsonl", row)
                campaign.done.add(point)
                campaign.say(line(row))
    finally:
        for name, runner in runners.items():
            try:
                runner.close()
            except Exception as error:
                campaign.say(f"closing {name}: {error!r}")


def make_row(
    variant: Variant, point: Point, rates: Sequence[float], singles: Sequence[float], telemetry: dict[str, Any]
) -> dict[str, Any]:
    """A row of the project's format."""
    row: dict[str, Any] = {
        "model": variant.model,
        "variant": point.variant,
        "backend": "pytorch" if variant.kind == "torch" else "tensorrt",
        "runtime": variant.kind,
        "precision": variant.precision,
        "source": variant.source,
        "batch": point.batch,
        "scope": point.scope,
        "instances": point.instances,
        "cuda_graph": variant.load.get("cuda_graphs") != "0",
        **rows.speed(rates),
        **telemetry,
    }
    if singles:
        row["latency_ms"] = rows.latency(singles)
    if row.get("power_w"):
        row["images_per_second_per_watt"] = round(row["inferences_per_second"] / row["power_w"], 2)
    return row


def line(row: dict[str, Any]) -> str:
    """A row in short."""
    latency = row.get("latency_ms", {})
    return (
        f"{row['variant']} batch {row['batch']} {row['scope']} x{row['instances']}: "
        f"{row['inferences_per_second']:.0f}/s {row['interval']}, p50 {latency.get('p50', '-')} "
        f"p99 {latency.get('p99', '-')} ms, {row.get('power_w', '-')} W, "
        f"SM {row.get('clocks_mhz', {}).get('sm', '-')} MHz{', THROTTLED' if row.get('throttled') else ''}"
    )


@contextmanager
def sampling(campaign: Campaign) -> Iterator[None]:
    """The GPU's telemetry in a process of its own, while this lasts."""
    command = [campaign.host_python, str(Path(__file__).parent / "power.py")]
    command += ["--out", str(campaign.out / "telemetry.jsonl")]
    process = subprocess.Popen(command, env=host_environment())
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def end(signal_number: int, _: Any) -> None:
    """Ends the process in order: children are closed, and rows are on disk already."""
    raise SystemExit(128 + signal_number)


def arguments_of(given: Sequence[str] | None = None) -> argparse.Namespace:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--work", type=Path, required=True, help="the folder of models.py; plans and caches go there")
    cli.add_argument("--out", type=Path, required=True)
    cli.add_argument("--variants", type=Path, required=True)
    cli.add_argument("--only", default="", help="names of variants, commas between")
    cli.add_argument("--models", default="", help="names of models, commas between")
    cli.add_argument("--rounds", type=int, default=3, help="windows of each point")
    cli.add_argument("--seconds", type=float, default=0.5, help="length of a window; latency takes half as long again")
    cli.add_argument("--deadline", type=float, default=540.0, help="seconds after which nothing more is begun")
    cli.add_argument("--build-limit", type=float, default=180.0, help="seconds that a build may take")
    cli.add_argument("--torch-limit", type=float, default=90.0, help="seconds that an answer of PyTorch may take")
    cli.add_argument("--host-python", default="python3", help="has nvidia-ml-py, and PyTorch for variants of it")
    cli.add_argument("--import-cache", type=Path, help="a timing cache of an earlier run on the same type of GPU")
    cli.add_argument("--export-cache", action="store_true", help="copy the timing cache to the results")
    cli.add_argument("--build-only", action="store_true")
    cli.add_argument("--resume", action="store_true", help="accepted; points that have a row are never run again")
    return cli.parse_args(given)


def main() -> None:
    arguments = arguments_of()
    signal.signal(signal.SIGTERM, end)
    variants = read_variants(arguments.variants)
    only, models = (set(filter(None, text.split(","))) for text in (arguments.only, arguments.models))
    unknown = only - {v.name for v in variants} | models - {v.model for v in variants}
    if unknown:
        raise SystemExit(f"{arguments.variants} has no {', '.join(sorted(unknown))}")
    plans = {v.plan_name for v in variants if v.name in only}
    variants = [v for v in variants if not only or v.name in only | plans]
    variants = [v for v in variants if not models or v.model in models]
    shared = arguments.work / "cache" / "timing.cache"
    if arguments.import_cache and not shared.exists():
        shared.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(arguments.import_cache, shared)
    campaign = Campaign(arguments, variants)
    try:
        run(campaign, build_only=arguments.build_only)
    finally:
        campaign.builds.close()
        if arguments.export_cache and shared.exists():
            shutil.copyfile(shared, campaign.out / "timing.cache")
            campaign.say(f"timing cache: {shared.stat().st_size / 1e6:.1f} MB")
    left = [f"{p.variant} {p.batch} {p.scope} x{p.instances}" for v in campaign.variants for p in campaign.missing(v)]
    campaign.say(f"done; {len(left)} points left: {'; '.join(left) or 'none'}")
    for name, why in campaign.failed.items():
        campaign.say(f"failed: {name}: {why}")


def run(campaign: Campaign, *, build_only: bool = False) -> None:
    """Build and measure model by model, or group by group, in the order of the file."""
    everything = campaign.variants
    for model in dict.fromkeys(v.turn for v in everything):
        campaign.variants = [v for v in everything if v.turn == model]
        try:
            if not campaign.late:
                campaign.build()
                if not build_only:
                    with sampling(campaign):
                        measure_model(campaign, model, campaign.environment)
        finally:
            campaign.variants = everything


if __name__ == "__main__":
    main()
