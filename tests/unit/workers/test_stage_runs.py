"""Every end that a stage can have, with real subprocesses of a worker that misbehaves on request."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from enginehouse.errors import (
    DeadlineExceededError,
    FailedPreconditionError,
    InternalError,
    ResourceExhaustedError,
    UnavailableError,
)
from enginehouse.workers import stage as stage_module
from enginehouse.workers.environments import WorkerEnvironment
from enginehouse.workers.events import ErrorEvent, EventLines, ProgressEvent
from enginehouse.workers.memory import group_memory_bytes
from enginehouse.workers.stage import StageLimits, StageSpec, log_end, run_stage

FAKE_WORKER = Path(__file__).parent / "fake_worker"
ENVIRONMENT = WorkerEnvironment("test", Path(sys.executable))
VARIABLES = {**os.environ, "ENGINEHOUSE_WORKER_PATH": str(FAKE_WORKER)}


class Run:
    """One stage in a folder, with what it reported."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.log = root / "stage.log"
        self.progress: list[tuple[float, str]] = []

    def spec(self, behave: str) -> StageSpec:
        output = self.root / "output"
        output.mkdir(exist_ok=True)
        return StageSpec("reference", {}, output, {"behave": behave})

    async def __call__(self, behave: str = "", **limits: Any) -> dict[str, Any]:
        return await run_stage(
            ENVIRONMENT,
            self.spec(behave),
            log=self.log,
            progress=lambda fraction, message: self.progress.append((fraction, message)),
            limits=StageLimits(**limits),
            variables=VARIABLES,
        )

    async def child(self) -> int:
        """The process id of the child that the stage reports."""
        for _ in range(400):
            for _, message in self.progress:
                if message.startswith("child "):
                    return int(message.split()[1])
            await asyncio.sleep(0.025)
        raise AssertionError("the stage never said which child it has")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def gone(pid: int, seconds: float = 5.0) -> bool:
    end = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.02)
    return not alive(pid)


async def test_a_stage_that_succeeds(run: Run) -> None:
    result = await run()
    assert result["stage"] == "reference"
    assert run.progress == [(0.1, "started"), (1.0, "done")]
    assert (run.root / "output" / "outputs.npz").exists()
    assert "reference starts" in run.log.read_text()
    assert json.loads((run.root / "stage.spec.json").read_text())["stage"] == "reference"


async def test_an_error_event_becomes_its_error(run: Run) -> None:
    with pytest.raises(FailedPreconditionError, match="cannot do it") as caught:
        await run("error")
    assert caught.value.details == {"why": "a test", "stage": "reference"}


async def test_a_crash_names_the_signal_and_shows_the_log(run: Run) -> None:
    with pytest.raises(InternalError, match=r"(?s)SIGSEGV.*about to crash"):
        await run("crash")


async def test_an_exit_without_a_word(run: Run) -> None:
    with pytest.raises(InternalError, match=r"(?s)status 3.*no event"):
        await run("silent")


async def test_success_without_a_result_is_a_crash(run: Run) -> None:
    with pytest.raises(InternalError, match=r"wrote no result\.json"):
        await run("resultless")


async def test_a_stage_over_its_time(run: Run) -> None:
    began = time.monotonic()
    with pytest.raises(DeadlineExceededError, match=r"longer than its limit of 0\.7 s") as caught:
        await run("hang", seconds=0.7)
    assert time.monotonic() - began < 3
    assert "ENGINEHOUSE_STAGE_TIMEOUT_SECONDS" in caught.value.message
    assert caught.value.details == {"stage": "reference", "limit_seconds": "0.7"}


async def test_a_time_limit_holds_for_the_whole_group(run: Run) -> None:
    with pytest.raises(DeadlineExceededError):
        await run("stubborn", seconds=1.5, grace_seconds=0.2)
    assert gone(await run.child())


async def test_a_stage_over_its_memory(run: Run) -> None:
    with pytest.raises(ResourceExhaustedError, match="GiB of memory, over its limit") as caught:
        await run("hog", memory_bytes=200 << 20)
    assert "ENGINEHOUSE_STAGE_MEMORY_BYTES" in caught.value.message
    assert caught.value.details["limit_bytes"] == str(200 << 20)
    assert int(caught.value.details["used_bytes"]) > 200 << 20


async def test_a_memory_limit_counts_the_whole_group(run: Run) -> None:
    with pytest.raises(ResourceExhaustedError, match="over its limit"):
        await run("hog_child", memory_bytes=200 << 20)
    assert gone(await run.child())


async def test_a_crash_on_a_full_disk_says_so(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage_module, "FULL_DISK_BYTES", 1 << 62)
    with pytest.raises(ResourceExhaustedError, match=r"(?s)status 3 .* is full: free space.*no event"):
        await run("silent")


async def test_killed_by_the_kernel_for_want_of_memory(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = iter([3, 4])
    monkeypatch.setattr(stage_module, "out_of_memory_kills", lambda: next(counts))
    task = asyncio.ensure_future(run("stubborn"))
    child = await run.child()
    os.kill(os.getpgid(child), signal.SIGKILL)
    with pytest.raises(ResourceExhaustedError, match="out of memory"):
        await task
    assert gone(child)


async def test_sigkill_by_somebody_else_is_a_crash(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage_module, "out_of_memory_kills", lambda: 0)
    task = asyncio.ensure_future(run("stubborn"))
    child = await run.child()
    os.kill(os.getpgid(child), signal.SIGKILL)
    with pytest.raises(InternalError, match="SIGKILL"):
        await task


async def test_cancelling_a_polite_stage_is_quick(run: Run) -> None:
    task = asyncio.ensure_future(run("hang", grace_seconds=30))
    while not run.progress:
        await asyncio.sleep(0.02)
    began = time.monotonic()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert time.monotonic() - began < 2


async def test_cancelling_kills_a_stubborn_group(run: Run) -> None:
    task = asyncio.ensure_future(run("stubborn", grace_seconds=0.3))
    child = await run.child()
    leader = os.getpgid(child)
    assert group_memory_bytes(leader) > 1 << 20
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert gone(child) and gone(leader)


async def test_a_second_cancellation_does_not_wait_for_the_grace(run: Run) -> None:
    task = asyncio.ensure_future(run("stubborn", grace_seconds=60))
    child = await run.child()
    task.cancel()
    await asyncio.sleep(0.1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 5)
    assert gone(child)


async def test_cancelled_at_once(run: Run) -> None:
    """Before the process, or its interpreter, is up."""
    for delay in (0, 0.001, 0.01, 0.05):
        task = asyncio.ensure_future(run("hang", grace_seconds=0.2))
        await asyncio.sleep(delay)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(task, 10)


async def test_what_a_stage_leaves_behind_is_killed(run: Run) -> None:
    began = time.monotonic()
    await run("orphan")
    assert time.monotonic() - began < 5
    assert gone(await run.child())


async def test_garbage_among_the_events(run: Run) -> None:
    await run("garbage")
    assert run.progress == [(0.1, "started"), (1.0, "past the garbage"), (1.0, "done")]


async def test_an_interpreter_that_is_not_there(run: Run) -> None:
    gone_environment = WorkerEnvironment("gone", Path("/nonexistent/python"))
    with pytest.raises(FailedPreconditionError, match="/nonexistent/python cannot be run"):
        await run_stage(gone_environment, run.spec(""), log=run.log, progress=lambda f, m: None, variables=VARIABLES)


async def test_a_launcher_that_cannot_start(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    with pytest.raises(UnavailableError, match="cannot start"):
        await run()


def test_no_descriptor_leaks(run: Run) -> None:
    async def several() -> None:
        for behave in ("", "error", "crash", ""):
            output = run.root / "output"
            for path in output.glob("*"):
                path.unlink()
            await asyncio.gather(run(behave), return_exceptions=True)

    asyncio.run(several())
    before = len(list(Path("/proc/self/fd").iterdir()))
    asyncio.run(several())
    assert len(list(Path("/proc/self/fd").iterdir())) <= before


def test_the_death_of_the_service_ends_its_stages(tmp_path: Path) -> None:
    program = """
import asyncio, sys
from pathlib import Path
from enginehouse.workers.environments import WorkerEnvironment
from enginehouse.workers.stage import StageSpec, run_stage
root = Path(sys.argv[1])
spec = StageSpec("reference", {}, root / "output", {"behave": "hang"})
environment = WorkerEnvironment("test", Path(sys.executable))
asyncio.run(run_stage(environment, spec, log=root / "stage.log", progress=lambda f, m: print(m, flush=True)))
"""
    service = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, env=VARIABLES, text=True
    )
    assert service.stdout is not None
    assert service.stdout.readline() == "started\n"
    children = Path(f"/proc/{service.pid}/task/{service.pid}/children").read_text().split()
    assert len(children) == 1 and alive(int(children[0]))
    service.kill()
    service.wait()
    assert gone(int(children[0]))


def test_event_lines_in_any_pieces() -> None:
    data = (
        b'{"event":"progress","fraction":0.5,"message":"half"}\n'
        b"nonsense\n"
        b'{"event":"progress","fraction":"NaN"}\n'
        b'{"event":"error","code":"NO_SUCH","message":"m","details":{"a":1,"b":"x"}}\n'
        b'{"event":"later-version"}\n'
    )
    for size in (1, 3, 1000):
        lines = EventLines()
        events = [e for i in range(0, len(data), size) for e in lines.feed(data[i : i + size])]
        assert events[0] == ProgressEvent(0.5, "half")
        assert isinstance(events[1], ErrorEvent)
        assert isinstance(events[1].error, InternalError)
        assert events[1].error.details == {"a": "1", "b": "x"}
        assert len(events) == 2


def test_the_end_of_a_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert log_end(log) == ""
    log.write_bytes(b"x" * 10 + b"\xff end")
    assert log_end(log, 5) == "\ufffd end"
