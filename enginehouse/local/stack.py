"""Start the three services, stop them, say how they are."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from enginehouse.errors import AlreadyExistsError, FailedPreconditionError
from enginehouse.local.lock import locked
from enginehouse.local.plan import (
    METRICS_PORT,
    StackOptions,
    announcement_of,
    check_installed,
    command_of,
    log_of,
    make_folders,
    variables_of,
)
from enginehouse.local.ports import HOST, check_free
from enginehouse.local.processes import is_alive, kill_session, send, start_detached
from enginehouse.local.readiness import is_healthy, wait_ready
from enginehouse.local.state import SERVICES, ServiceState, StackState, read_state, remove_state, write_state

# The services drain for 25 s at most.
STOP_SECONDS = 40.0

Report = Callable[[str], None]
"""Told in a line what goes on."""


@dataclass(frozen=True)
class ServiceStatus:
    """A service of the stack. `running`: its process lives; `serving`: it answers and says that it can work."""

    name: str
    pid: int
    address: str
    running: bool
    serving: bool
    log: str


def up(options: StackOptions, report: Report = lambda line: None) -> StackState:
    """Start the services and return when all are ready.

    When one fails, or the caller is interrupted, those started are stopped again.

    Raises:
        AlreadyExistsError: they run already.
        UnavailableError: a port is in use.
        FailedPreconditionError: a service did not become ready; the message has the end of its log.
    """
    home = options.home.resolve()
    with locked(home, options.timeout):
        _check_absent(home)
        check_installed()
        _check_ports(options)
        make_folders(home)
        services: dict[str, ServiceState] = {}
        try:
            for service in ("optimizer", "telemetry"):
                services[service] = _start(service, options, None, services)
            services["optimizer"] = _ready(services["optimizer"], options, services, report)
            optimizer = f"{HOST}:{services['optimizer'].port}"
            services["inference"] = _start("inference", options, optimizer, services)
            for service in ("telemetry", "inference"):
                services[service] = _ready(services[service], options, services, report)
        except BaseException:
            _stop(list(services.values()), 10.0)
            remove_state(home)
            raise
        return _state(services)


def down(home: Path, *, timeout: float = STOP_SECONDS, report: Report = lambda line: None) -> list[ServiceState]:
    """Stop the services: ask, let them finish what they do, kill those that did not after `timeout` seconds.

    Returns:
        the services that ran; none when there was nothing to stop.
    """
    if not home.is_dir():
        return []
    home = home.resolve()
    with locked(home, timeout):
        state = read_state(home)
        running = [s for s in state.services if is_alive(s.pid, s.start_time)] if state is not None else []
        for service in running:
            report(f"stopping {service.name} (pid {service.pid})")
        for name in _stop(running, timeout):
            report(f"{name} did not end within {timeout:g} s and was killed")
        remove_state(home)
        return running


def status(home: Path, *, timeout: float = 2.0) -> list[ServiceStatus]:
    """How the services of a stack are; empty when no stack was started, or it was stopped."""
    state = read_state(home.resolve())
    if state is None:
        return []
    statuses = []
    for service in state.services:
        running = is_alive(service.pid, service.start_time)
        address = f"{state.host}:{service.port}"
        serving = running and service.port > 0 and asyncio.run(is_healthy(address, timeout))
        statuses.append(ServiceStatus(service.name, service.pid, address, running, serving, service.log))
    return statuses


def _check_absent(home: Path) -> None:
    state = read_state(home)
    if state is None:
        return
    running = [s for s in state.services if is_alive(s.pid, s.start_time)]
    if not running:
        remove_state(home)  # left by a crash or a reboot
        return
    names = ", ".join(f"{s.name} (pid {s.pid}, port {s.port})" for s in running)
    if len(running) == len(SERVICES):
        raise AlreadyExistsError(f"the stack in {home} runs already: {names}. `enginehouse down` stops it")
    raise AlreadyExistsError(
        f"a part of the stack in {home} still runs: {names}. `enginehouse down` stops it; "
        f"the logs of the others are in {home / 'logs'}"
    )


def _check_ports(options: StackOptions) -> None:
    for service in SERVICES:
        if options.ports[service]:
            check_free(options.ports[service], what=service, option=f"--{service}-port")
    if options.metrics_port:
        check_free(options.metrics_port, what="telemetry's metrics", option="--metrics-port")


def _start(service: str, options: StackOptions, optimizer: str | None, others: dict[str, ServiceState]) -> ServiceState:
    home = options.home.resolve()
    announcement_of(home, service).unlink(missing_ok=True)
    log = log_of(home, service)
    variables = variables_of(service, options, optimizer)
    pid, start_time = start_detached(command_of(service), variables=variables, log=log)
    started = ServiceState(service, pid, start_time, options.ports[service], str(log))
    # At once, so that a `down` finds it even if we are killed before it is ready.
    write_state(home, _state({**others, service: started}))
    return started


def _ready(
    service: ServiceState, options: StackOptions, services: dict[str, ServiceState], report: Report
) -> ServiceState:
    home = options.home.resolve()
    ready = asyncio.run(wait_ready(service, announcement_of(home, service.name), options.timeout))
    services[service.name] = ready
    write_state(home, _state(services))
    report(f"{ready.name} is ready at {HOST}:{ready.port} (pid {ready.pid})")
    return ready


def _stop(services: Sequence[ServiceState], timeout: float) -> list[str]:
    """Stop processes; the names of those that had to be killed."""
    for service in services:
        send(service.pid, service.start_time, signal.SIGTERM)
    killed = _await_end(services, timeout)
    for service in killed:
        send(service.pid, service.start_time, signal.SIGKILL)
    stuck = _await_end(killed, 10.0)
    for service in services:
        kill_session(service.pid)  # workers that a killed service left behind
    if stuck:
        raise FailedPreconditionError(
            f"{', '.join(f'{s.name} (pid {s.pid})' for s in stuck)} does not end even when killed: "
            "it waits for a device or a disk that does not answer"
        )
    return [service.name for service in killed]


def _await_end(services: Sequence[ServiceState], timeout: float) -> list[ServiceState]:
    """Wait for processes to end; those that did not."""
    deadline = time.monotonic() + timeout
    left = list(services)
    while left := [s for s in left if is_alive(s.pid, s.start_time)]:
        if time.monotonic() > deadline:
            break
        time.sleep(0.05)
    return left


def _state(services: dict[str, ServiceState]) -> StackState:
    return StackState(tuple(services[name] for name in SERVICES if name in services), HOST)


__all__ = ["METRICS_PORT", "Report", "ServiceStatus", "StackOptions", "down", "status", "up"]
