"""Result rows: one JSON object a line, the same for every benchmark. A quantity that was not measured is absent."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from enginehouse.bench.modes import mode_name
from enginehouse.bench.statistics import Latency
from enginehouse.errors import InvalidArgumentError


@dataclass(frozen=True)
class Lane:
    """What a row is about: one model in one mode on one device, at one batch size, seen from one scope.

    Attributes:
        device: "cpu", "gpu" (which of several is the service's choice), "gpu:N", or "gpu:all" for all of the machine at
            once, a process each.
        scope: "engine" (device buffers to device buffers), "host" (host memory to host memory) or "served" (over gRPC).
        concurrency: requests in flight.
        instances: execution contexts that served them; None when unknown.
        cuda_graph: whether a CUDA graph was replayed; None when it does not apply.
    """

    model: str
    mode: str
    backend: str
    precision: str
    device: str
    batch: int
    scope: str
    concurrency: int = 1
    instances: int | None = 1
    cuda_graph: bool | None = None

    def __str__(self) -> str:
        served = f" concurrency {self.concurrency}" if self.scope == "served" else ""
        return f"{self.model} {self.mode} {self.device} batch {self.batch} {self.scope}{served}"


@dataclass(frozen=True)
class Accuracy:
    """What verification measured of the engine. Fractions in [0, 1] but `sqnr_db`; `data` names what it was measured
    on."""

    data: str
    top1: float | None = None
    top5: float | None = None
    reference_top1: float | None = None
    reference_top5: float | None = None
    sqnr_db: float | None = None
    cosine: float | None = None
    top1_agreement: float | None = None
    samples: int | None = None


@dataclass(frozen=True)
class Row:
    """One result.

    Attributes:
        inferences_per_second: samples (for the CNNs: images) a second over the windows of the result.
        latency_ms: of calls, milliseconds.
        interval: of the throughput, samples a second: its confidence interval where `confidence` says which, else the
            lowest and highest of the windows.
        stable: the windows agreed.
        environment: key in `environments.json`.
        time: when it was finished, UTC, ISO 8601.
        round: rows of one round were measured interleaved, so their ratio is meaningful.
        windows: how many windows were measured in all.
        calls: how many calls the latencies come from.
        cpu_ms: CPU milliseconds of the inferring process for each inference.
        warmup_seconds: how long it took until throughput was stable, or was given up on.
        gpus: how many GPUs worked at once, where the lane's device is "gpu:all".
        power_w, gpu_utilization and memory_utilization (percent), temperature_c, clocks_mhz (of the SMs): means over
            the windows of the result; of several GPUs the power is their sum and the temperature the highest.
        throttled: whether the device slowed itself down for heat or power in them.
        throttle_reasons: every reason for lower clocks that the driver named in them.
        other_processes: processes of others on the GPU in them.
    """

    lane: Lane
    inferences_per_second: float
    latency_ms: Latency
    interval: tuple[float, float]
    stable: bool
    environment: str
    time: str
    round: str | None = None
    windows: int | None = None
    calls: int | None = None
    cpu_ms: float | None = None
    confidence: float | None = None
    warmup_seconds: float | None = None
    gpus: int | None = None
    power_w: float | None = None
    gpu_utilization: float | None = None
    memory_utilization: float | None = None
    temperature_c: float | None = None
    clocks_mhz: float | None = None
    throttled: bool | None = None
    throttle_reasons: tuple[str, ...] | None = None
    other_processes: int | None = None
    accuracy: Accuracy | None = None
    engine_key: str | None = None
    command: str | None = None

    @property
    def per_joule(self) -> float | None:
        """Samples a joule (samples a second and watt), of the GPUs or of the CPU package; None without power."""
        return self.inferences_per_second / self.power_w if self.power_w else None

    @property
    def joules(self) -> float | None:
        """Joules a sample. None without power."""
        return self.power_w / self.inferences_per_second if self.power_w else None

    def to_json(self) -> dict[str, Any]:
        """The row as JSON; what was not measured is absent."""
        values = present(dataclasses.asdict(self))
        lane = values.pop("lane")
        values["interval"] = list(self.interval)
        if self.throttle_reasons is not None:
            values["throttle_reasons"] = list(self.throttle_reasons)
        return {**lane, **values}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Row:
        """The row of a JSON object. Unknown keys are ignored, so that rows of newer versions can be read.

        Raises:
            InvalidArgumentError: a required key is missing or has a wrong type.
        """
        try:
            low, high = value["interval"]
            accuracy = value.get("accuracy")
            optional = {name: value[name] for name in _OPTIONAL if name in value}
            if "throttle_reasons" in optional:
                optional["throttle_reasons"] = tuple(str(reason) for reason in optional["throttle_reasons"])
            return cls(
                lane=lane_from_json(value),
                inferences_per_second=float(value["inferences_per_second"]),
                latency_ms=Latency(**{name: float(value["latency_ms"][name]) for name in _LATENCY}),
                interval=(float(low), float(high)),
                stable=bool(value["stable"]),
                environment=str(value["environment"]),
                time=str(value["time"]),
                accuracy=None if accuracy is None else _accuracy(accuracy),
                **optional,
            )
        except KeyError as error:
            raise InvalidArgumentError(f"result row: key {error.args[0]!r} is missing") from error
        except (TypeError, ValueError) as error:
            raise InvalidArgumentError(f"result row: {error}") from error


@dataclass(frozen=True)
class NotRun:
    """A lane that was wanted and could not be measured, with the reason. `code` is a gRPC status name."""

    lane: Lane
    reason: str
    time: str
    code: str = "FAILED_PRECONDITION"

    def to_json(self) -> dict[str, Any]:
        return {**present(dataclasses.asdict(self.lane)), "reason": self.reason, "code": self.code, "time": self.time}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> NotRun:
        """Raises InvalidArgumentError when a key is missing."""
        try:
            return cls(
                lane_from_json(value), str(value["reason"]), str(value["time"]), str(value.get("code", "UNKNOWN"))
            )
        except KeyError as error:
            raise InvalidArgumentError(f"not-run entry: key {error.args[0]!r} is missing") from error


def lane_from_json(value: Mapping[str, Any]) -> Lane:
    """The lane of a row's JSON object; a row without `mode` gets the mode's usual name.

    Raises:
        KeyError: a required key is missing.
    """
    backend, precision, device = str(value["backend"]), str(value["precision"]), str(value["device"])
    return Lane(
        model=str(value["model"]),
        mode=str(value.get("mode") or mode_name(backend, device, precision)),
        backend=backend,
        precision=precision,
        device=device,
        batch=int(value["batch"]),
        scope=str(value["scope"]),
        concurrency=int(value.get("concurrency", 1)),
        instances=value.get("instances"),
        cuda_graph=value.get("cuda_graph"),
    )


def accuracy_from_json(value: Any) -> Accuracy:
    """The accuracy of a row's JSON object; unknown keys are ignored.

    Raises:
        InvalidArgumentError: it is no object, or lacks `data`.
    """
    try:
        return _accuracy(value)
    except (AttributeError, TypeError) as error:
        raise InvalidArgumentError(f"result row: accuracy: {error}") from error


def present(value: Any) -> Any:
    """`value` without the mapping entries that are None, at any depth."""
    if isinstance(value, dict):
        return {key: present(item) for key, item in value.items() if item is not None}
    return value


def to_line(value: Mapping[str, Any]) -> str:
    """One JSON line, newline included. NaN and infinity are refused.

    Raises:
        ValueError: a number is not finite.
    """
    return json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n"


_LATENCY = tuple(field.name for field in dataclasses.fields(Latency))
_OPTIONAL = (
    "round", "windows", "calls", "cpu_ms", "confidence", "warmup_seconds", "gpus", "power_w", "gpu_utilization",
    "memory_utilization", "temperature_c", "clocks_mhz", "throttled", "throttle_reasons", "other_processes",
    "engine_key", "command",
)  # fmt: skip


def _accuracy(value: Mapping[str, Any]) -> Accuracy:
    names = {field.name for field in dataclasses.fields(Accuracy)}
    return Accuracy(**{name: item for name, item in value.items() if name in names})
