"""The local stack with small services: start, refuse, fail, clean up, stop."""

from __future__ import annotations

import dataclasses
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "rpc"))

from certificates_for_tests import make_ca, sign

from enginehouse import Client
from enginehouse.errors import AlreadyExistsError, FailedPreconditionError, UnavailableError
from enginehouse.local import stack
from enginehouse.local.devices import LocalDevice
from enginehouse.local.plan import StackOptions, processes_of, variables_of
from enginehouse.local.processes import is_alive, start_time_of
from enginehouse.local.state import ServiceState, StackState, read_state, write_state

FAKE = Path(__file__).with_name("fake_service.py")


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StackOptions]:
    monkeypatch.setattr(stack, "command_of", lambda service: [sys.executable, str(FAKE), service])
    monkeypatch.setattr(stack, "check_installed", lambda services: None)
    variables = {"PYTHONPATH": os.pathsep.join(sys.path)}
    free = {"optimizer": 0, "inference": 0, "telemetry": 0}
    options = StackOptions(tmp_path / "home", free, metrics_port=0, timeout=20, variables=variables)
    yield options
    stack.down(options.home, timeout=0.2)


def _with(options: StackOptions, **variables: str) -> StackOptions:
    return dataclasses.replace(options, variables={**options.variables, **variables})


def test_up_status_down(options: StackOptions) -> None:
    lines: list[str] = []
    state = stack.up(options, lines.append)
    assert [s.name for s in state.services] == ["optimizer", "inference", "telemetry"]
    assert read_state(options.home) == state and len(lines) == 3
    assert all(s.running and s.serving for s in stack.status(options.home))
    client = Client.from_environment({"ENGINEHOUSE_HOME": str(options.home)})
    assert client.addresses.inference == state.addresses()["inference"]
    inference = (options.home / "logs" / "inference.log").read_text()
    assert state.addresses()["optimizer"] in inference
    # A second one says that it runs, and changes nothing.
    with pytest.raises(AlreadyExistsError, match=rf"optimizer \(pid {state.services[0].pid}.*enginehouse down"):
        stack.up(options)
    assert read_state(options.home) == state
    # One of them dies: the status and the next `up` say so.
    os.kill(state.services[2].pid, signal.SIGKILL)
    while is_alive(state.services[2].pid, state.services[2].start_time):
        pass
    assert [s.running for s in stack.status(options.home)] == [True, True, False]
    with pytest.raises(AlreadyExistsError, match="a part of the stack"):
        stack.up(options)
    stopped = stack.down(options.home)
    assert [s.name for s in stopped] == ["optimizer", "inference"]
    assert not any(is_alive(s.pid, s.start_time) for s in state.services)
    assert "drained" in (options.home / "logs" / "optimizer.log").read_text()
    assert stack.status(options.home) == [] and stack.down(options.home) == []


@pytest.mark.parametrize("trusted", ["CA", "certificate"])
def test_services_with_tls_are_asked_over_tls(
    options: StackOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trusted: str
) -> None:
    ca = make_ca(tmp_path)
    certificate, key = sign(tmp_path, "server")
    monkeypatch.setenv("ENGINEHOUSE_TLS_CERTIFICATE", str(certificate))
    monkeypatch.setenv("ENGINEHOUSE_TLS_KEY", str(key))
    if trusted == "CA":
        monkeypatch.setenv("ENGINEHOUSE_CLIENT_CA", str(ca))
    else:
        # As one that signed itself: what it was signed with comes after it.
        certificate.write_text(certificate.read_text() + ca.read_text())
    stack.up(options)
    assert all(service.serving for service in stack.status(options.home))
    monkeypatch.delenv("ENGINEHOUSE_TLS_CERTIFICATE")
    assert not any(service.serving for service in stack.status(options.home, timeout=0.5))


def test_a_crash_is_shown_with_its_log_and_stops_the_others(options: StackOptions) -> None:
    with pytest.raises(FailedPreconditionError, match=r"(?s)telemetry ended before.*no such device"):
        stack.up(_with(options, FAKE_TELEMETRY="crash"))
    assert read_state(options.home) is None
    assert "drained" in (options.home / "logs" / "optimizer.log").read_text()


def test_a_service_that_is_never_ready_is_named(options: StackOptions) -> None:
    quick = dataclasses.replace(_with(options, FAKE_OPTIMIZER="hang"), timeout=1.5)
    with pytest.raises(FailedPreconditionError, match=r"optimizer was not ready after 1\.5 s"):
        stack.up(quick)


def test_a_stubborn_service_is_killed(options: StackOptions) -> None:
    state = stack.up(_with(options, FAKE_INFERENCE="stubborn"))
    lines: list[str] = []
    stack.down(options.home, timeout=0.3, report=lines.append)
    assert lines[-1] == "inference did not end within 0.3 s and was killed"
    assert not any(is_alive(s.pid, s.start_time) for s in state.services)


def test_concurrent_ups_start_one_stack(options: StackOptions) -> None:
    results: list[object] = []

    def one() -> None:
        try:
            results.append(stack.up(options))
        except AlreadyExistsError as error:
            results.append(error)

    threads = [threading.Thread(target=one) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(type(result).__name__ for result in results) == ["AlreadyExistsError", "StackState"]


def test_a_port_in_use_is_named_with_what_to_do(options: StackOptions) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        wanted = dataclasses.replace(options, ports={**options.ports, "inference": port})
        with pytest.raises(UnavailableError, match=rf"port {port} for inference is in use.*--inference-port"):
            stack.up(wanted)
        wanted = dataclasses.replace(options, metrics_port=port)
        with pytest.raises(UnavailableError, match="--metrics-port"):
            stack.up(wanted)
    assert read_state(options.home) is None


def test_what_a_crash_left_is_no_running_stack(options: StackOptions) -> None:
    options.home.mkdir()
    own = os.getpid()
    # Our own pid, but of a process that started at another time: the pid was reused.
    left = ServiceState("optimizer", own, (start_time_of(own) or 0) - 1000, 1, "log")
    write_state(options.home, StackState((left,)))
    assert [s.running for s in stack.status(options.home)] == [False]
    assert stack.down(options.home) == []
    assert read_state(options.home) is None
    assert is_alive(own, start_time_of(own) or 0)


def test_each_service_is_told_what_is_its_own(options: StackOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENGINEHOUSE_PORT", "1")
    monkeypatch.setenv("ENGINEHOUSE_METRICS_PORT", "2")
    _, telemetry_plan, plan = processes_of(options, [LocalDevice("cpu")])
    inference = variables_of(plan, options, "127.0.0.1:5")
    telemetry = variables_of(telemetry_plan, dataclasses.replace(options, metrics_port=None), None)
    assert (inference["ENGINEHOUSE_PORT"], inference["ENGINEHOUSE_OPTIMIZER"]) == ("0", "127.0.0.1:5")
    assert inference["ENGINEHOUSE_METRICS_PORT"] == "0" and telemetry["ENGINEHOUSE_METRICS_PORT"] == "off"
    assert inference["ENGINEHOUSE_DATA_DIR"] != telemetry["ENGINEHOUSE_DATA_DIR"]
