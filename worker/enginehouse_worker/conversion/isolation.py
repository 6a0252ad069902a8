"""Runs native code on a stranger's data in a child process: a crash, a hang or a lack of memory ends that child."""

from __future__ import annotations

import ctypes
import faulthandler
import os
import pickle
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from enginehouse_worker.errors import WorkerError

Result = TypeVar("Result")
# Beyond what the process has when it forks.
_MEMORY_BYTES = 8 << 30
_CPU_SECONDS = 600
_PR_SET_PDEATHSIG = 1


def isolated(work: Callable[[], Result], doing: str) -> Result:
    """The result of `work`, computed in a fork of this process; it must be picklable.

    Args:
        doing: what is being done, for messages, e.g. "checking the ONNX model".

    Raises:
        WorkerError: what `work` raises; INVALID_ARGUMENT when it fails otherwise or its process dies.
    """
    sys.stderr.flush()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _child(work, writing)
    os.close(writing)
    try:
        with os.fdopen(reading, "rb") as file:
            data = file.read()
    finally:
        _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        name = signal.Signals(os.WTERMSIG(status)).name
        raise WorkerError(
            "INVALID_ARGUMENT",
            f"{doing} ended by {name}: the model makes the ONNX libraries crash, or take more than "
            f"{_CPU_SECONDS} s; export it again",
        )
    if not data:
        raise WorkerError("INVALID_ARGUMENT", f"{doing} ended without a result; export the model again")
    # Written by our own fork.
    kind, value = pickle.loads(data)
    if kind == "error":
        raise WorkerError(*value)
    if kind == "failure":
        raise WorkerError("INVALID_ARGUMENT", f"{doing} failed: {value}")
    result: Result = value
    return result


def _child(work: Callable[[], Any], writing: int) -> NoReturn:
    try:
        # A crash here is expected, and told by the parent.
        faulthandler.disable()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        _limit()
        try:
            answer: tuple[str, Any] = ("result", work())
        except WorkerError as error:
            answer = ("error", (error.code, error.message, error.details))
        except Exception as error:
            answer = ("failure", f"{type(error).__name__}: {error}")
        with os.fdopen(writing, "wb") as file:
            file.write(pickle.dumps(answer))
    finally:
        os._exit(0)


def _limit() -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    for kind, limit in ((resource.RLIMIT_AS, used + _MEMORY_BYTES), (resource.RLIMIT_CPU, _CPU_SECONDS)):
        _, hard = resource.getrlimit(kind)
        resource.setrlimit(kind, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
