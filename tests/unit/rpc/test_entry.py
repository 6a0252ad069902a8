"""The entry point of the services: help, wrong settings, exit statuses; the same for all three."""

from __future__ import annotations

import importlib
from collections.abc import Iterator

import pytest
import structlog
from pydantic import Field

from enginehouse.errors import UnavailableError
from enginehouse.rpc.entry import run_service
from enginehouse.rpc.settings import ServerSettings

SERVICES = ("optimizer", "inference", "telemetry")


@pytest.fixture(autouse=True)
def _logs_as_before() -> Iterator[None]:
    yield
    structlog.reset_defaults()  # or later tests would log to this test's captured stream
    structlog.contextvars.clear_contextvars()


class Settings(ServerSettings):
    slots: dict[str, int] = Field(default_factory=lambda: {"convert": 1}, description="A JSON object.")
    size: int = Field(default=3, ge=1, description="A number.")
    options: dict[str, int] = Field(default_factory=dict, repr=False, description="What nobody is to see.")


async def _serve(settings: ServerSettings) -> None:
    return None


async def _fail(settings: ServerSettings) -> None:
    raise UnavailableError("the port is in use")


def test_statuses(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_service("test", "A test.", Settings, _serve, arguments=[]) == 0
    assert run_service("test", "A test.", Settings, _fail, arguments=[]) == 1
    assert capsys.readouterr().err == "enginehouse-test: the port is in use\n"


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("SIZE", "0", "ENGINEHOUSE_SIZE='0' (size): Input should be greater than or equal to 1"),
        ("SLOTS", "convert", '"slots"'),
        ("SLOTS", '{"convert": "many"}', "ENGINEHOUSE_SLOTS__CONVERT='many'"),
        ("TLS_KEY", "key.pem", "set both or neither"),
        ("LOG_LEVEL", "loud", "ENGINEHOUSE_LOG_LEVEL='loud'"),
    ],
)
def test_wrong_settings_are_named(
    name: str, value: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(f"ENGINEHOUSE_{name}", value)
    assert run_service("test", "A test.", Settings, _serve, arguments=[]) == 2
    error = capsys.readouterr().err
    assert said in error and "enginehouse-test: wrong settings" in error and "Traceback" not in error


@pytest.mark.parametrize("value", ["hunter2", '["hunter2"]', '{"key": "hunter2"}'])
def test_a_wrong_setting_that_may_hold_a_secret_is_not_shown(
    value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ENGINEHOUSE_OPTIONS", value)
    assert run_service("test", "A test.", Settings, _serve, arguments=[]) == 2
    error = capsys.readouterr().err
    assert "options" in error and "hunter2" not in error


@pytest.mark.parametrize("service", SERVICES)
def test_every_service_explains_every_setting(service: str, capsys: pytest.CaptureFixture[str]) -> None:
    module = importlib.import_module(f"enginehouse_{service}.main")
    settings: type[ServerSettings] = next(
        kind for kind in vars(module).values() if isinstance(kind, type) and issubclass(kind, ServerSettings)
    )
    with pytest.raises(SystemExit) as end:
        module.main(["--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    for name, field in settings.model_fields.items():
        assert field.description and f"ENGINEHOUSE_{name.upper()} [" in text and field.description in text
    assert "ENGINEHOUSE_ANNOUNCE_FILE" in text


@pytest.mark.parametrize("service", SERVICES)
def test_every_service_refuses_wrong_settings(
    service: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ENGINEHOUSE_PORT", "high")
    assert importlib.import_module(f"enginehouse_{service}.main").main([]) == 2
    assert f"enginehouse-{service}: wrong settings" in capsys.readouterr().err
