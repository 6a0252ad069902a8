"""Runs a function in a forked child, so that a framework's C++ code that a hostile file makes abort takes nothing with
it.

Parsers written in C++ (HDF5's, TensorFlow's importer and optimizer) end the process on some damaged files. The fork
must come before the framework is imported: its threads do not survive one.
"""

from __future__ import annotations

import ctypes
import math
import os
import pickle
import resource
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from enginehouse_worker.errors import WorkerError

_PR_SET_PDEATHSIG = 1
# How a process ends that a defect stops, as opposed to somebody's wish.
_DEFECTS = (signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP, signal.SIGSYS)


def run_guarded(function: Callable[[], dict[str, Any]], what: str) -> dict[str, Any]:
    """Call a function in a child process; its result (picklable) gains `peak_memory_bytes`, the child's.

    Args:
        what: what the function reads, for the message of a crash.

    Raises:
        WorkerError: the function's own; INVALID_ARGUMENT when the child crashed.
        Exception: what else the function raised, as OSError, MemoryError or RuntimeError.
    """
    reading, writing = os.pipe()
    parent = os.getpid()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _run_child(function, writing, parent)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        data = pipe.read()
    _, status = os.waitpid(child, 0)
    number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
    if number in _DEFECTS:
        raise WorkerError(
            "INVALID_ARGUMENT",
            f"{what} makes the framework crash ({signal.Signals(number).name}): it is damaged or was made to do "
            "harm, or the "
            "framework has a defect that it meets. The log has the framework's last words; expected a file that it "
            "loads",
        )
    if number == signal.SIGXCPU:
        raise WorkerError(
            "INVALID_ARGUMENT", f"{what} keeps its parser busy without end: it is damaged, or was made to do harm"
        )
    if number is not None:
        # Somebody's wish (an out-of-memory kill): end in the same way, for the caller to see.
        signal.signal(number, signal.SIG_DFL) if number != signal.SIGKILL else None
        os.kill(os.getpid(), number)
    if not data:
        raise RuntimeError(f"the child process that reads {what} ended with status {os.waitstatus_to_exitcode(status)}")
    return _outcome(pickle.loads(data))


@contextmanager
def cpu_limit(seconds: int) -> Iterator[None]:
    """End this process by SIGXCPU when what is in the context takes more seconds of processor time.

    For parsers that a damaged file sends into an endless loop, which nothing in this process can interrupt.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_CPU)
    used = resource.getrusage(resource.RUSAGE_SELF)
    limit = math.ceil(used.ru_utime + used.ru_stime) + seconds
    if soft == resource.RLIM_INFINITY or limit < soft:
        resource.setrlimit(resource.RLIMIT_CPU, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))


def _run_child(function: Callable[[], dict[str, Any]], writing: int, parent: int) -> NoReturn:
    # A hostile file's crash should not leave a core as large as the framework.
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    # The child must not outlive its parent, which SIGTERM ends at once.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    try:
        # Linux counts ru_maxrss in KiB.
        result = function()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        outcome: tuple[str, Any] = ("result", {**result, "peak_memory_bytes": peak})
    except WorkerError as error:
        traceback.print_exc()
        outcome = ("worker", (error.code, error.message, error.details))
    except MemoryError:
        traceback.print_exc()
        outcome = ("memory", None)
    except OSError as error:
        traceback.print_exc()
        outcome = ("os", (error.errno, str(error)))
    except BaseException as error:
        traceback.print_exc()
        outcome = ("other", f"{type(error).__name__}: {error}")
    status = 1
    try:
        with os.fdopen(writing, "wb") as pipe:
            pipe.write(pickle.dumps(outcome))
        sys.stderr.flush()
        status = 0
    finally:
        # No interpreter shutdown: a framework's exit handlers may hang in a fork.
        os._exit(status)


def _outcome(outcome: tuple[str, Any]) -> dict[str, Any]:
    kind, value = outcome
    if kind == "worker":
        raise WorkerError(*value)
    if kind == "memory":
        raise MemoryError
    if kind == "os":
        raise OSError(*value)
    if kind == "other":
        raise RuntimeError(value)
    result: dict[str, Any] = value
    return result
