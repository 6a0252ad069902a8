"""Settings and the announcement of ports."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from enginehouse_telemetry import main as main_module
from enginehouse_telemetry.settings import TelemetrySettings, default_node
from pydantic import ValidationError

from enginehouse import names
from enginehouse.rpc.announce import announce_file


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("ENGINEHOUSE_"):
            monkeypatch.delenv(name)


def test_defaults() -> None:
    settings = TelemetrySettings()
    assert (settings.port, settings.metrics_port, settings.sample_period_seconds) == (8020, 9400, 1.0)
    names.parse(f"projects/default/nodes/{settings.node_name}", "nodes")


def test_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENGINEHOUSE_NODE_NAME", "Node-1.example")
    monkeypatch.setenv("ENGINEHOUSE_METRICS_PORT", "off")
    monkeypatch.setenv("ENGINEHOUSE_SAMPLE_PERIOD_SECONDS", "0.1")
    settings = TelemetrySettings()
    assert (settings.node_name, settings.metrics_port, settings.sample_period_seconds) == ("Node-1.example", None, 0.1)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("NODE_NAME", "a/b"),
        ("NODE_NAME", ""),
        ("SAMPLE_PERIOD_SECONDS", "0.05"),
        ("METRICS_PORT", "no"),
        ("METRICS_PORT", "-1"),
    ],
)
def test_wrong_settings(name: str, value: str, monkeypatch: pytest.MonkeyPatch, capsys) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setenv(f"ENGINEHOUSE_{name}", value)
    with pytest.raises(ValidationError):
        TelemetrySettings()
    assert main_module.main([]) == 2
    assert name.lower() in capsys.readouterr().err


def test_a_hosts_name_becomes_a_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    for host, node in (("my_host.lan", "my_host.lan"), ("-ü host", "host"), ("", "node"), ("x" * 300, "x" * 191)):
        monkeypatch.setattr("socket.gethostname", lambda host=host: host)
        assert default_node() == node


def test_help_lists_every_setting(capsys) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(SystemExit):
        main_module.main(["--help"])
    text = capsys.readouterr().out
    assert all(f"ENGINEHOUSE_{name.upper()}" in text for name in TelemetrySettings.model_fields)


def test_announce(tmp_path: Path) -> None:
    target = tmp_path / "ports.json"
    announce_file({"ENGINEHOUSE_ANNOUNCE_FILE": str(target)})({"port": 1, "metrics_port": 2})
    assert json.loads(target.read_text()) == {"port": 1, "metrics_port": 2, "pid": os.getpid()}
    assert list(tmp_path.iterdir()) == [target]
    announce_file({})({"port": 1})
    with pytest.raises(OSError):
        announce_file({"ENGINEHOUSE_ANNOUNCE_FILE": str(tmp_path / "absent" / "x")})({"port": 1})
