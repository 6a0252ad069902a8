"""Start the three services, stop them, say how they are."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from enginehouse.errors import AlreadyExistsError, FailedPreconditionError
from enginehouse.local.devices import LocalDevice, choose_devices
from enginehouse.local.lock import locked
from enginehouse.local.plan import (
    METRICS_PORT,
    ProcessPlan,
    StackOptions,
    announcement_of,
    check_installed,
    command_of,
    log_of,
    make_folders,
    processes_of,
    variables_of,
)
from enginehouse.local.ports import check_free
from enginehouse.local.processes import is_alive, kill_session, send, start_detached
from enginehouse.local.readiness import is_healthy, tls_of, wait_ready
from enginehouse.local.state import SERVICES, ServiceState, StackState, read_state, remove_state, write_state

# The services drain for 25 s at most.
STOP_SECONDS = 40.0

Report = Callable[[str], None]
"""Told in a line what goes on."""


@dataclass(frozen=True)
class ServiceStatus:
    """A process of the stack.

    Attributes:
        running: it lives.
        serving: it answers and says that it can work.
        device: that an inference process serves on, and its product.
    """

    name: str
    pid: int
    address: str
    running: bool
    serving: bool
    log: str
    device: str = ""
    device_name: str = ""


def up(options: StackOptions, report: Report = lambda line: None) -> StackState:
    """Start the services and return when all are ready.

    When one fails, or the caller is interrupted, those started are stopped again.

    Raises:
        AlreadyExistsError: they run already.
        InvalidArgumentError: `options.devices` says nothing that is understood.
        UnavailableError: a port is in use.
        FailedPreconditionError: a device is not there, or a service did not become ready; the message has the end of
            its log.
    """
    home = options.home.resolve()
    variables = {**os.environ, **options.variables}
    devices = choose_devices(options.devices, variables) if "inference" in options.services else []
    processes = processes_of(options, devices)
    with locked(home, options.timeout):
        _check_absent(home)
        check_installed(options.services)
        _check_ports(options, processes)
        make_folders(home, processes)
        services: dict[str, ServiceState] = {}
        last = [process for process in processes if process.service == "inference"]
        try:
            for process in processes:
                if process not in last:
                    services[process.name] = _start(process, options, None, services)
            if "optimizer" in services:
                services["optimizer"] = _ready(services["optimizer"], options, services, report)
            for process in last:
                services[process.name] = _start(process, options, _optimizer(options, services), services)
            for name in services:
                if name != "optimizer":
                    services[name] = _ready(services[name], options, services, report)
        except BaseException:
            _stop(list(services.values()), 10.0)
            remove_state(home)
            raise
        return _state(services, options)


def restart_dead(options: StackOptions, report: Report = lambda line: None) -> bool:
    """Start the processes anew that ended by themselves, on the ports that they had.

    Returns:
        False when the stack was stopped.

    Raises:
        FailedPreconditionError: one did not become ready.
    """
    home = options.home.resolve()
    state = read_state(home)
    if state is not None and all(is_alive(s.pid, s.start_time) for s in state.services):
        return True
    with locked(home, options.timeout + STOP_SECONDS):
        state = read_state(home)
        if state is None:
            return False
        services = {service.name: service for service in state.services}
        for name, service in services.items():
            if is_alive(service.pid, service.start_time):
                continue
            kill_session(service.pid)  # workers that it left behind
            report(f"{name} (pid {service.pid}) ended; it is started again")
            device = LocalDevice(service.device, service.device_name) if service.device else None
            process = ProcessPlan(name, service.service, service.port, device)
            services[name] = _start(process, options, _optimizer(options, services), services)
            services[name] = _ready(services[name], options, services, report)
    return True


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
    tls = tls_of(os.environ)
    for service in state.services:
        running = is_alive(service.pid, service.start_time)
        address = f"{state.host}:{service.port}"
        serving = running and service.port > 0 and asyncio.run(is_healthy(address, timeout, tls))
        device = (service.device, service.device_name)
        statuses.append(ServiceStatus(service.name, service.pid, address, running, serving, service.log, *device))
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
    if len(running) == len(state.services):
        raise AlreadyExistsError(f"the stack in {home} runs already: {names}. `enginehouse down` stops it")
    raise AlreadyExistsError(
        f"a part of the stack in {home} still runs: {names}. `enginehouse down` stops it; "
        f"the logs of the others are in {home / 'logs'}"
    )


def _check_ports(options: StackOptions, processes: Sequence[ProcessPlan]) -> None:
    for process in processes:
        if process.port:
            option = f"--{process.service}-port"
            check_free(process.port, what=process.name, option=option, host=options.contact)
    if options.metrics_port and "telemetry" in options.services:
        check_free(options.metrics_port, what="telemetry's metrics", option="--metrics-port")


def _optimizer(options: StackOptions, services: Mapping[str, ServiceState]) -> str:
    """The address of the optimizer that inference processes follow; empty for none."""
    if "optimizer" not in services:
        return options.optimizer
    return f"{options.contact}:{services['optimizer'].port}"


def _start(
    process: ProcessPlan, options: StackOptions, optimizer: str | None, others: Mapping[str, ServiceState]
) -> ServiceState:
    home = options.home.resolve()
    announcement_of(home, process.name).unlink(missing_ok=True)
    log = log_of(home, process.name)
    pid, start_time = start_detached(
        command_of(process.service), variables=variables_of(process, options, optimizer), log=log
    )
    device = process.device or LocalDevice("")
    started = ServiceState(process.name, pid, start_time, process.port, str(log), device.id, device.name)
    # At once, so that a `down` finds it even if we are killed before it is ready.
    write_state(home, _state({**others, process.name: started}, options))
    return started


def _ready(
    service: ServiceState, options: StackOptions, services: dict[str, ServiceState], report: Report
) -> ServiceState:
    home = options.home.resolve()
    announcement = announcement_of(home, service.name)
    tls = tls_of({**os.environ, **options.variables})
    ready = asyncio.run(wait_ready(service, options.contact, announcement, options.timeout, tls))
    services[service.name] = ready
    write_state(home, _state(services, options))
    where = " ".join(part for part in (service.device, service.device_name) if part)
    report(
        f"{ready.name} is ready at {options.contact}:{ready.port} (pid {ready.pid}{', on ' + where if where else ''})"
    )
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


def _state(services: Mapping[str, ServiceState], options: StackOptions) -> StackState:
    ordered = sorted(services.values(), key=lambda service: SERVICES.index(service.service))
    return StackState(tuple(ordered), options.contact)


__all__ = ["METRICS_PORT", "Report", "ServiceStatus", "StackOptions", "down", "restart_dead", "status", "up"]
