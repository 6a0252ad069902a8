"""Starting a worker process: its interpreter, its environment variables, its end of the socket, its log."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from asyncio import StreamReaderProtocol
from collections import deque
from collections.abc import Callable, Mapping

from enginehouse.errors import UnavailableError
from enginehouse.workers.environments import WorkerEnvironment

WORKER_PATH = "ENGINEHOUSE_WORKER_PATH"
# Our own Python's variables would make the worker's interpreter import our packages.
_OURS = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__")
_TAIL_LINES = 20
# The exit status by which a worker says that its device's context is lost (a sticky CUDA error), and with it itself.
POISONED = 70

LogSink = Callable[[str], None]


def worker_variables(variables: Mapping[str, str], inherited: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment variables of a worker: ours without what concerns our interpreter, then `variables`."""
    base = {k: v for k, v in (os.environ if inherited is None else inherited).items() if k not in _OURS}
    if path := base.get(WORKER_PATH):
        base["PYTHONPATH"] = path
    return {**base, "PYTHONUNBUFFERED": "1", **variables}


def describe_exit(status: int) -> str:
    """An exit status in words, such as "was killed by SIGSEGV"."""
    if status == POISONED:
        return f"lost its device context and ended (status {status}): a CUDA error after which no call can succeed"
    if status >= 0:
        return f"exited with status {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"was killed by signal {-status}"


class LogTail:
    """Passes a worker's lines on, and keeps the last ones for error messages."""

    def __init__(self, sink: LogSink | None) -> None:
        self._sink = sink or _to_stderr
        self._lines: deque[str] = deque(maxlen=_TAIL_LINES)

    async def follow(self, descriptor: int) -> None:
        """Read a pipe, and close it, until the worker and what it started have closed their end."""
        reader = asyncio.StreamReader()
        with os.fdopen(descriptor, "rb", buffering=0) as pipe:
            connecting = asyncio.get_running_loop().connect_read_pipe(lambda: StreamReaderProtocol(reader), pipe)
            transport, _ = await connecting
            try:
                while True:
                    try:
                        line = await reader.readline()
                    except ValueError:
                        continue  # a line beyond the reader's limit: it was skipped
                    if not line:
                        return
                    text = line.decode(errors="replace").rstrip("\n")
                    self._lines.append(text)
                    self._sink(text)
            finally:
                transport.close()

    def last(self, count: int = 5) -> str:
        """The last lines, joined by " | "."""
        return " | ".join(line.strip() for line in list(self._lines)[-count:] if line.strip())


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr)


async def spawn(
    environment: WorkerEnvironment, device: str, variables: Mapping[str, str]
) -> tuple[asyncio.subprocess.Process, socket.socket, int]:
    """Start a worker; returns its process, our end of the socket, non-blocking, and of its log's pipe.

    The pipe is ours and not asyncio's, whose `wait()` lasts until every process that inherited it has gone.

    Raises:
        UnavailableError: the interpreter cannot be started.
    """
    with contextlib.ExitStack() as undo, contextlib.ExitStack() as theirs:
        try:
            ours, socket_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
            undo.callback(ours.close)
            theirs.callback(socket_end.close)
            log, log_end = os.pipe()
            undo.callback(os.close, log)
            theirs.callback(os.close, log_end)
            descriptor = socket_end.fileno()
            process = await asyncio.create_subprocess_exec(
                str(environment.python),
                *("-m", "enginehouse_worker", "serve", "--fd", str(descriptor), "--device", device),
                stdin=asyncio.subprocess.DEVNULL,
                # A framework that prints must not reach our standard output: both go to the log.
                stdout=log_end,
                stderr=log_end,
                pass_fds=(descriptor,),
                env=worker_variables(variables),
                # A terminal's Ctrl-C is for us: we drain, then stop the worker.
                start_new_session=True,
            )
        except OSError as error:
            raise UnavailableError(
                f"the worker environment {environment.name!r} does not start: {environment.python}: {error}"
            ) from error
        ours.setblocking(False)
        undo.pop_all()
        return process, ours, log
