"""MLPerf's scenarios of one engine, recorded beside what our own harness says of it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

from enginehouse.bench.environment import Environment, read_machine, speed_settings
from enginehouse.bench.loadgen.run import Ran, load_loadgen, run_scenario
from enginehouse.bench.loadgen.scenarios import Scenario
from enginehouse.bench.loadgen.system import Target
from enginehouse.bench.loadgen.targets import ServiceTarget, WorkerTarget, library
from enginehouse.bench.modes import Mode, mode_name
from enginehouse.bench.recording import utc
from enginehouse.bench.rows import present
from enginehouse.bench.sdk import ProcessWorkers, SdkServing, to_engine
from enginehouse.bench.seams import Engine
from enginehouse.bench.served import closed_loop
from enginehouse.bench.statistics import Window, confidence_interval, median_interval
from enginehouse.bench.store import ENVIRONMENTS, LOADGEN, append_lines, replace_text
from enginehouse.errors import FailedPreconditionError, InvalidArgumentError
from enginehouse.workers.environments import WorkerEnvironments

if TYPE_CHECKING:
    from enginehouse.client import AsyncClient

TARGETS = {"worker": "host", "service": "served"}
SAMPLES = 64
# Our harness before and after a scenario, as long as it together: what else the machine does falls on both.
_WINDOWS, _LONGEST_WINDOW = 5, 1.0
# Requests of the server scenario that the service may have at once.
_REQUESTS = 256
# The server scenario's rate where none is given, as a share of what our harness measured.
_SERVER_SHARE = 0.5
# LoadGen's one offline query is of expected rate times duration: a little more, so that it lasts long enough.
_OFFLINE_SHARE = 1.1


@dataclass(frozen=True)
class Plan:
    """What to run: `batch` samples at most go to the engine at once, `in_flight` such batches wait in it."""

    scenarios: tuple[Scenario, ...]
    target: str
    batch: int
    in_flight: int
    device: str
    command: str | None = None


@dataclass(frozen=True)
class _Open:
    """An engine that is ready: `window` is our harness on it."""

    target: Target
    window: Callable[[float], Awaitable[Window]]
    software: Mapping[str, str]


async def run_loadgen(
    client: AsyncClient, engine_name: str, plan: Plan, directory: Path, say: Callable[[str], None]
) -> tuple[dict[str, Any], ...]:
    """Run the scenarios on an engine; a line in `loadgen.jsonl` for each, and LoadGen's logs under `loadgen/`.

    Our own harness measures the same engine at the same batch size before and after each scenario: the ratio says
    whether the two agree where they measure the same, which is offline throughput.

    Returns:
        the lines.

    Raises:
        NotFoundError: there is no such engine.
        FailedPreconditionError: LoadGen, a worker environment or a device is not there.
        UnavailableError: a service does not answer.
    """
    if plan.target not in TARGETS:
        raise InvalidArgumentError(f"target {plan.target!r}: expected one of {', '.join(TARGETS)}")
    load_loadgen()
    published = await client.engines.get(engine_name)
    engine = to_engine(published)
    if engine.max_batch_size == 0:
        raise FailedPreconditionError(f"{engine.name} has no batch dimension: LoadGen's samples cannot be put together")
    if engine.max_batch_size < plan.batch:
        raise InvalidArgumentError(f"batch {plan.batch}: the engine takes at most {engine.max_batch_size}")
    machine = read_machine()
    samples = library(engine, SAMPLES, seed=0)
    lines = []
    async with contextlib.AsyncExitStack() as stack:
        if plan.target == "worker":
            path = await client.engines.download(published, directory / "engines" / published.id)
            ready = await stack.enter_async_context(_in_worker(engine, path, plan, samples))
        else:
            ready = await stack.enter_async_context(_served(client, engine, plan, samples))
        environment = Environment(machine, ready.software, _software_of(plan.target), speed_settings())
        directory.mkdir(parents=True, exist_ok=True)
        _add_environment(directory, environment)
        for scenario in plan.scenarios:
            say(f"{scenario.name} on {engine.name} ({plan.target})")
            length = min(_LONGEST_WINDOW, scenario.seconds / 2 / _WINDOWS)
            before = [await ready.window(length) for _ in range(_WINDOWS)]
            rate = fmean(window.inferences_per_second for window in before)
            chosen = _with_rate(scenario, rate)
            stamp = utc().replace(":", "").partition(".")[0]
            logs = directory / "loadgen" / f"{published.id}-{plan.target}-{scenario.name}-{stamp}"
            how = plan_for(scenario, plan)
            ran = await run_scenario(
                chosen, ready.target, logs, samples=SAMPLES, max_batch=how.batch, in_flight=how.in_flight
            )
            for unused in ("mlperf_log_accuracy.json", "mlperf_log_trace.json"):
                (logs / unused).unlink(missing_ok=True)
            windows = before + [await ready.window(length) for _ in range(_WINDOWS)]
            line = _line(chosen, how, engine, ran, windows, logs.relative_to(directory))
            line["environment"] = environment.digest
            append_lines(directory / LOADGEN, [line])
            lines.append(line)
    return tuple(lines)


def plan_for(scenario: Scenario, plan: Plan) -> Plan:
    """How a scenario's samples go to the target. The service makes batches itself of the server scenario's queries,
    each a request of its own; a queue here would hide its own."""
    if (plan.target, scenario.name) == ("service", "server"):
        return dataclasses.replace(plan, batch=1, in_flight=_REQUESTS)
    return plan


def agreement(lines: Sequence[Mapping[str, Any]]) -> tuple[float, tuple[float, float] | None] | None:
    """LoadGen's offline throughput over our harness's: the median of all offline runs, and its 95 % interval by order
    statistics where there are six at least; None without any. A median, since one burst of other work spoils one
    run."""
    ratios = [float(line["ratio"]) for line in lines if line.get("ratio") is not None]
    return (median(ratios), median_interval(ratios)) if ratios else None


def _with_rate(scenario: Scenario, rate: float) -> Scenario:
    """A scenario that needs a rate, with one from what our harness measured, where it has none."""
    if scenario.target_qps is not None or scenario.name not in ("server", "offline"):
        return scenario
    share = _SERVER_SHARE if scenario.name == "server" else _OFFLINE_SHARE
    return Scenario(scenario.name, scenario.seconds, scenario.queries, rate * share, scenario.latency_ms, scenario.seed)


def _line(
    scenario: Scenario, plan: Plan, engine: Engine, ran: Ran, windows: Sequence[Window], logs: Path
) -> dict[str, Any]:
    rates = [window.inferences_per_second for window in windows]
    rate = fmean(rates)
    offline = scenario.name == "offline"
    value: dict[str, Any] = present({
        "engine": engine.name, "engine_key": engine.key, "backend": engine.backend, "precision": engine.precision,
        "mode": mode_name(engine.backend, engine.device_kind, engine.precision), "device": plan.device,
        "target": plan.target, "scope": TARGETS[plan.target], "scenario": scenario.name, "batch": plan.batch,
        "in_flight": plan.in_flight, "seconds": scenario.seconds, "shortened": scenario.shortened,
        "target_qps": scenario.target_qps,
        "latency_bound_ms": scenario.latency_ms if scenario.name == "server" else None,
        "valid": ran.summary.valid, "reasons": list(ran.summary.reasons), **ran.summary.metric,
        "percentiles_ms": dict(ran.summary.latency_ms), "samples": ran.samples, "batches": ran.batches,
        "harness": {"inferences_per_second": rate, "interval": list(confidence_interval(rates)), "windows": len(rates)},
        "ratio": ran.summary.metric["inferences_per_second"] / rate if offline else None,
        "loadgen": metadata.version("mlcommons-loadgen"), "logs": str(logs), "time": utc(), "command": plan.command,
    })  # fmt: skip
    return value


@contextlib.asynccontextmanager
async def _in_worker(engine: Engine, path: Path, plan: Plan, samples: Mapping[str, Any]) -> AsyncIterator[_Open]:
    workers = ProcessWorkers(WorkerEnvironments.discover())
    mode = Mode("", engine.backend, engine.device_kind, engine.precision)
    worker = await workers.start(workers.environment(mode), plan.device)
    try:
        await worker.load("engine", path, warmup=(1, plan.batch), options={})

        async def window(seconds: float) -> Window:
            found = await worker.measure("engine", batch=plan.batch, seconds=seconds, seed=0, scope="host")
            return Window(tuple(found.latencies_ns), found.wall_ns, found.inferences, found.cpu_ns)

        yield _Open(WorkerTarget(worker.process, "engine", samples), window, dict(worker.software))
    finally:
        await worker.close()


@contextlib.asynccontextmanager
async def _served(client: AsyncClient, engine: Engine, plan: Plan, samples: Mapping[str, Any]) -> AsyncIterator[_Open]:
    if not (await client.ready())["inference"]:
        raise FailedPreconditionError(
            f"no inference service serves at {client.addresses.inference}: `enginehouse up` starts one"
        )
    serving = SdkServing(client)
    name = re.sub(r"[^a-z0-9._-]+", "-", f"loadgen-{engine.name.rpartition('/')[2]}".lower())[:63]
    await serving.publish(name, engine, instances=1, options={})
    try:
        target = ServiceTarget(serving, name, samples)

        async def window(seconds: float) -> Window:
            batch = [index % SAMPLES for index in range(plan.batch)]
            return await closed_loop(
                lambda: target.infer(batch), concurrency=plan.in_flight, seconds=seconds, batch=plan.batch
            )

        yield _Open(target, window, await serving.software())
    finally:
        await serving.withdraw(name)


def _software_of(target: str) -> str:
    return "worker" if target == "worker" else "service"


def _add_environment(directory: Path, environment: Environment) -> None:
    path = directory / ENVIRONMENTS
    known = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    if environment.digest not in known:
        known[environment.digest] = environment.to_json()
        replace_text(path, json.dumps(known, indent=2) + "\n")
