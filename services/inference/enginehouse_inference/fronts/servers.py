"""The front processes of this server: started together, replaced when they die, drained at the end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
import time

import structlog

from enginehouse.errors import UnavailableError
from enginehouse.workers.process import describe_exit
from enginehouse_inference.fronts.connection import Connection
from enginehouse_inference.fronts.port import reserve
from enginehouse_inference.fronts.session import FrontSession
from enginehouse_inference.service.local import LocalHost
from enginehouse_inference.settings import InferenceSettings

_log = structlog.get_logger("fronts")

START_SECONDS = 60.0
# After a drain that took all its time, what a front gets to cancel its calls and end.
_END_SECONDS = 5.0
# Of free shared memory that each front keeps for requests, and the engine host for its answers. Memory that goes and
# comes is expensive: its pages are zeroed, and locked for the device, anew.
KEEP_BYTES = 256 << 20
_BACKOFF_FIRST, _BACKOFF_MOST, _WINDOW_SECONDS = 0.1, 5.0, 60.0


class FrontServers:
    """Front processes that share one port. It is used as one `RpcServer` is."""

    def __init__(self, settings: InferenceSettings, count: int, host: LocalHost) -> None:
        self._settings = settings
        self._count = count
        self._host = host
        self._held: socket.socket | None = None
        self._keepers: list[asyncio.Task[None]] = []
        self._processes: dict[int, asyncio.subprocess.Process] = {}
        self._sessions: dict[int, FrontSession] = {}
        self._listening: dict[int, asyncio.Future[None]] = {}
        self._health: dict[tuple[str, ...], bool] = {}
        self._stopping = False
        self.port = 0
        self.deaths = 0

    @property
    def running(self) -> int:
        """Fronts that serve now."""
        return len(self._sessions)

    async def start(self) -> int:
        """Take the port and start the fronts; returns the port once all of them listen.

        Raises:
            UnavailableError: the port is in use, or a front cannot start.
        """
        self._held, self.port = reserve(self._settings.host, self._settings.port)
        loop = asyncio.get_running_loop()
        await self.set_ready(False)
        for number in range(self._count):
            self._listening[number] = loop.create_future()
            self._keepers.append(asyncio.create_task(self._keep(number)))
        try:
            await asyncio.wait_for(asyncio.gather(*self._listening.values()), START_SECONDS)
        except asyncio.TimeoutError:
            await self._abandon()
            raise UnavailableError(f"fronts do not listen after {START_SECONDS:g} s: the log says more") from None
        except BaseException:
            await self._abandon()
            raise
        _log.info("listening", address=f"{self._settings.host}:{self.port}", fronts=self._count)
        return self.port

    async def set_ready(self, ready: bool, *services: str) -> None:
        """Set the health of the named services, of the whole server when none is named, in all fronts."""
        self._health[services] = ready
        for session in self._sessions.values():
            session.set_health(ready, services)

    async def stop(self) -> None:
        """Have all fronts refuse new calls, finish those in flight (for the drain time at most) and end."""
        self._stopping = True
        for session in self._sessions.values():
            session.drain()
        if self._keepers:
            _, late = await asyncio.wait(self._keepers, timeout=self._settings.drain_seconds + _END_SECONDS)
            if late:
                _log.error("fronts did not end and are killed", fronts=len(late))
        await self._abandon()

    async def _abandon(self) -> None:
        self._stopping = True
        for process in self._processes.values():
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        if self._held is not None:
            self._held.close()

    async def _keep(self, number: int) -> None:
        """Run one front after the other."""
        deaths: list[float] = []
        while True:
            try:
                ended = describe_exit(await self._run(number))
            except (OSError, UnavailableError) as error:  # no descriptor or no memory for another process
                ended = f"could not be started ({error})"
            if self._ends():
                return
            first = self._listening[number]
            if not first.done():
                message = f"a front process {ended} before it listened: the log says why"
                first.set_exception(UnavailableError(message))
                return
            self.deaths += 1
            now = time.monotonic()
            deaths = [*(moment for moment in deaths if moment > now - _WINDOW_SECONDS), now]
            pause = 0.0 if len(deaths) == 1 else min(_BACKOFF_FIRST * 2 ** (len(deaths) - 2), _BACKOFF_MOST)
            _log.error("a front died and is replaced", front=number, reason=ended, seconds=pause)
            await asyncio.sleep(pause)
            if self._ends():
                return

    def _ends(self) -> bool:
        return self._stopping

    async def _run(self, number: int) -> int:
        """One front's life; returns its exit status."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with theirs:
                process = await _spawn(number, self.port, theirs.fileno())
        except BaseException:
            ours.close()
            raise
        self._processes[number] = process
        connection = Connection(ours)
        session = FrontSession(connection, self._host, lambda: self._listens(number), KEEP_BYTES)
        self._sessions[number] = session
        for services, ready in self._health.items():
            session.set_health(ready, services)
        checking = asyncio.create_task(self._check(number, process, session))
        try:
            status = await process.wait()
        finally:
            checking.cancel()
            self._sessions.pop(number, None)
            self._processes.pop(number, None)
            await session.close()
        return status

    async def _check(self, number: int, process: asyncio.subprocess.Process, session: FrontSession) -> None:
        """Kill a front that hangs: the system would go on giving it connections."""
        while True:
            await asyncio.sleep(self._settings.ping_interval_seconds)
            silent = 0.0 if session.heard is None else time.monotonic() - session.heard
            if silent > self._settings.ping_interval_seconds + self._settings.ping_timeout_seconds:
                _log.error("a front hangs", front=number, seconds=round(silent, 1))
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                return
            session.ping()

    def _listens(self, number: int) -> None:
        if not self._listening[number].done():
            self._listening[number].set_result(None)
        elif not self._stopping:
            _log.info("a front listens again", front=number)


async def _spawn(number: int, port: int, descriptor: int) -> asyncio.subprocess.Process:
    try:
        return await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "enginehouse_inference.fronts", str(number), str(port), str(descriptor)),
            stdin=asyncio.subprocess.DEVNULL,
            pass_fds=(descriptor,),
            env=dict(os.environ),
            # A terminal's Ctrl-C is for the engine host, which drains the fronts.
            start_new_session=True,
        )
    except OSError as error:
        raise UnavailableError(f"a front process cannot be started: {error}") from error
