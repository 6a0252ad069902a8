"""The protocol's trace and log settings: what can be read, what can be changed, and what to do about the rest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tritonclient.grpc import service_pb2

from enginehouse.errors import FailedPreconditionError, InvalidArgumentError, UnimplementedError
from enginehouse_inference.tracing.trace import Tracing

# Triton's words for no traces, and for the times that ours have.
OFF, TIMESTAMPS = "OFF", "TIMESTAMPS"
_LEVELS = ("debug", "info", "warning", "error")


class TraceSettings:
    """`trace_level` and `trace_rate` can be changed; one answer for all models."""

    def __init__(self, tracing: Tracing, initial_rate: int) -> None:
        self._tracing = tracing
        self._initial_rate = initial_rate

    def answer(self, request: Any) -> service_pb2.TraceSettingResponse:
        """Change what the request names, and say how it is then. Nothing is changed when any of it is wrong.

        Raises:
            InvalidArgumentError: a value that the setting cannot have.
            UnimplementedError: a setting that there is not, or one for a model.
            FailedPreconditionError: tracing was not set up when the process started.
        """
        if request.model_name and request.settings:
            raise UnimplementedError(
                f"trace settings for model {request.model_name!r}: they are the server's, expected no model_name"
            )
        changes = [self._change(key, list(setting.value)) for key, setting in request.settings.items()]
        for change in changes:
            change()
        response = service_pb2.TraceSettingResponse()
        for key, value in self._values().items():
            response.settings[key].value.append(value)
        return response

    def _values(self) -> dict[str, str]:
        tracing = self._tracing
        return {
            "trace_level": TIMESTAMPS if tracing.enabled else OFF,
            "trace_rate": str(tracing.rate),
            "trace_count": "-1",
            "trace_mode": "opentelemetry",
        }

    def _change(self, key: str, values: Sequence[str]) -> Callable[[], None]:
        """What makes a setting so; an empty value is the one that the process started with."""
        if key == "trace_level":
            return self._level(values)
        if key == "trace_rate":
            return self._rate(values)
        known = self._values()
        if key not in known:
            raise UnimplementedError(
                f"there is no trace setting {key!r}: expected trace_level or trace_rate; where traces go is said by "
                "ENGINEHOUSE_TRACING and OTEL_EXPORTER_OTLP_ENDPOINT when the server starts"
            )
        if list(values) not in ([], [known[key]]):
            raise UnimplementedError(f"trace setting {key!r} cannot be {list(values)}: it is always {known[key]!r}")
        return lambda: None

    def _level(self, values: Sequence[str]) -> Callable[[], None]:
        if any(value not in (OFF, TIMESTAMPS) for value in values) or (OFF in values and len(values) > 1):
            raise InvalidArgumentError(f"trace_level is {list(values)}: expected {OFF} or {TIMESTAMPS}")
        wanted = TIMESTAMPS in values if values else self._tracing.exporter is not None
        if wanted and self._tracing.exporter is None:
            raise FailedPreconditionError(
                "trace_level: this server sends traces nowhere: start it with ENGINEHOUSE_TRACING=otlp and "
                "OTEL_EXPORTER_OTLP_ENDPOINT; ModelStatistics and the metrics have times per model"
            )
        return lambda: setattr(self._tracing, "enabled", wanted)

    def _rate(self, values: Sequence[str]) -> Callable[[], None]:
        text = values[0] if len(values) == 1 else ""
        if values and not (text.isdecimal() and 0 < int(text) < 2**31):
            raise InvalidArgumentError(f"trace_rate is {list(values)}: expected a whole number from 1 on")
        rate = int(text) if values else self._initial_rate
        return lambda: setattr(self._tracing, "rate", rate)


class LogSettings:
    """Can be read. Logs are set up when the process starts."""

    def __init__(self, level: str, format: str) -> None:  # noqa: A002 - the setting's name
        rank = _LEVELS.index(level)
        self._values: dict[str, bool | int | str] = {
            "log_file": "",  # standard error
            "log_info": rank <= _LEVELS.index("info"),
            "log_warning": rank <= _LEVELS.index("warning"),
            "log_error": True,
            "log_verbose_level": int(level == "debug"),
            "log_format": format,
        }

    def answer(self, request: Any) -> service_pb2.LogSettingsResponse:
        """Say how logs are.

        Raises:
            InvalidArgumentError: there is no such setting.
            UnimplementedError: the request would change one.
        """
        for key, setting in request.settings.items():
            if key not in self._values:
                raise InvalidArgumentError(f"there is no log setting {key!r}: expected {', '.join(self._values)}")
            choice = setting.WhichOneof("parameter_choice")
            wanted = getattr(setting, choice) if choice else self._values[key]
            if wanted != self._values[key]:
                raise UnimplementedError(
                    f"log setting {key!r} is {self._values[key]!r} and cannot become {wanted!r} while the server runs: "
                    "set ENGINEHOUSE_LOG_LEVEL and ENGINEHOUSE_LOG_FORMAT, and restart it"
                )
        response = service_pb2.LogSettingsResponse()
        for key, value in self._values.items():
            kind = {bool: "bool_param", int: "uint32_param", str: "string_param"}[type(value)]
            setattr(response.settings[key], kind, value)
        return response
