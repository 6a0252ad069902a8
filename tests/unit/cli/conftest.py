"""Servers for the commands; makes `client_servers` importable."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from enginehouse.cli.run import run
from enginehouse.client.portal import Portal

sys.path.insert(0, str(Path(__file__).parents[1] / "client"))

from client_servers import Servers


class Result(NamedTuple):
    status: int
    out: str
    err: str


Enginehouse = Callable[..., Result]


@pytest.fixture
def servers() -> Iterator[Servers]:
    portal, running = Portal(), Servers()
    portal.run(running.start())
    yield running
    portal.run(running.stop())
    portal.close()


@pytest.fixture
def enginehouse(
    servers: Servers, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Enginehouse:
    """Runs a command in an empty folder against the servers."""
    for name in ("OPTIMIZER", "INFERENCE", "TELEMETRY"):
        monkeypatch.setenv(f"ENGINEHOUSE_{name}", servers.address)
    monkeypatch.delenv("ENGINEHOUSE_HOME", raising=False)
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> Result:
        status = run(arguments)
        captured = capfd.readouterr()
        return Result(status, captured.out, captured.err)

    return call
