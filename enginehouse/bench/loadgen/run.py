"""Running one scenario: LoadGen on a thread of its own, the system under test on the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from enginehouse.bench.loadgen.scenarios import Scenario
from enginehouse.bench.loadgen.summary import Summary, parse_summary
from enginehouse.bench.loadgen.system import SystemUnderTest, Target
from enginehouse.errors import FailedPreconditionError

SUMMARY = "mlperf_log_summary.txt"
DETAIL = "mlperf_log_detail.txt"
THREAD = "loadgen"


@dataclass(frozen=True)
class Ran:
    """A scenario that ran: LoadGen's summary, and how its samples went in batches."""

    summary: Summary
    batches: int
    samples: int


async def run_scenario(
    scenario: Scenario, target: Target, directory: Path, *, samples: int, max_batch: int, in_flight: int
) -> Ran:
    """Run a scenario; LoadGen's logs are in `directory` then, which is made.

    Args:
        samples: of the library; LoadGen draws from them.
        max_batch: samples that go to the target at once.
        in_flight: batches that the target has at once.

    Raises:
        FailedPreconditionError: LoadGen is not installed.
        InvalidArgumentError: the scenario lacks something.
        EnginehouseError: the target failed; the run is void.
        InternalError: LoadGen left no result.
    """
    loadgen = load_loadgen()
    settings = scenario.settings(loadgen)
    directory.mkdir(parents=True, exist_ok=True)

    def complete(identifiers: Sequence[int]) -> None:
        loadgen.QuerySamplesComplete([loadgen.QuerySampleResponse(identifier, 0, 0) for identifier in identifiers])

    system = SystemUnderTest(asyncio.get_running_loop(), target, complete, max_batch=max_batch, in_flight=in_flight)
    try:
        await _on_thread(lambda: _start(loadgen, settings, system, directory, samples))
    except asyncio.CancelledError:
        system.stop()  # LoadGen itself cannot be stopped: it is answered at once until its time is up
        raise
    if system.error is not None:
        raise system.error
    text = (directory / SUMMARY).read_text("utf-8") if (directory / SUMMARY).is_file() else ""
    return Ran(parse_summary(text, scenario.name), system.batches, system.samples)


def load_loadgen() -> Any:
    """LoadGen's module.

    Raises:
        FailedPreconditionError: it is not installed.
    """
    try:
        import mlperf_loadgen
    except ImportError as error:
        raise FailedPreconditionError("this needs MLPerf's LoadGen: pip install 'enginehouse[loadgen]'") from error
    return mlperf_loadgen


def _start(loadgen: Any, settings: Any, system: SystemUnderTest, directory: Path, samples: int) -> None:
    sut = loadgen.ConstructSUT(system.issue, system.flush)
    qsl = loadgen.ConstructQSL(samples, samples, lambda indices: None, lambda indices: None)
    try:
        output = loadgen.LogOutputSettings()
        output.outdir = str(directory)
        output.copy_summary_to_stdout = False
        logs = loadgen.LogSettings()
        logs.log_output = output
        logs.enable_trace = False
        # Named, so that a file of that name in the working directory does not change a run.
        loadgen.StartTestWithLogSettings(sut, qsl, settings, logs, str(directory / "audit.config"))
    finally:
        loadgen.DestroyQSL(qsl)
        loadgen.DestroySUT(sut)


async def _on_thread(work: Callable[[], None]) -> None:
    """Run on a daemon thread: an interrupted program does not wait for LoadGen."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def settle(error: BaseException | None) -> None:
        if done.done():
            return
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)

    def body() -> None:
        error: BaseException | None = None
        try:
            work()
        except BaseException as caught:
            error = caught
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, error)

    threading.Thread(target=body, name=THREAD, daemon=True).start()
    await done
