"""Rows and environments of the scripts under `benchmarks/`, as those of a suite. Pure.

The scripts run where only a framework's environment is (no service, no SDK), and write the project's rows with some
differences: a product's name for the device, upper-case precisions, a "sitting" in place of rounds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from enginehouse.bench.modes import mode_name
from enginehouse.bench.plan import ALL_GPUS
from enginehouse.bench.rows import Accuracy, accuracy_from_json

# Runtimes that are what a mode's name says; others have it in theirs.
_OWN_RUNTIMES = ("", "engine", "worker")


@dataclass(frozen=True)
class MeasuredAccuracy:
    """The accuracy of a mode's engine on labelled data, measured apart from its speed (`benchmarks/accuracy`)."""

    model: str
    mode: str
    device: str
    accuracy: Accuracy


def is_accuracy_row(value: Mapping[str, Any]) -> bool:
    """Whether a row says how accurate an engine is, and nothing of its speed."""
    return "accuracy" in value and "scope" not in value and "inferences_per_second" not in value


def accuracy_row(value: Mapping[str, Any]) -> MeasuredAccuracy:
    """The accuracy that a row says.

    Raises:
        KeyError: it lacks what every row has.
        InvalidArgumentError: its accuracy is none.
    """
    given = value["accuracy"]
    facts = {"samples": value.get("samples"), "data": "labelled", **given} if isinstance(given, Mapping) else given
    device = _device(value)
    return MeasuredAccuracy(
        str(value["model"]), _mode(value, str(value["precision"]).lower(), device), device, accuracy_from_json(facts)
    )


def is_script_row(value: Mapping[str, Any]) -> bool:
    """Whether a row is of a script: they name a variant, or a product for the device."""
    return "variant" in value or not _is_device(value.get("device", "cpu"))


def suite_row(value: Mapping[str, Any]) -> dict[str, Any] | None:
    """The row in the suite's form, or None for one that has no latencies, of several instances at once, or not all.

    Raises:
        KeyError: it lacks what every row has.
    """
    latency = value.get("latency_ms")
    if not latency or "mean" not in latency:
        return None
    row = {name: item for name, item in value.items() if name not in ("device", "mode", "interval_of")}
    row["precision"] = str(value["precision"]).lower()
    row["device"] = _device(value)
    row["mode"] = _mode(value, row["precision"], row["device"])
    row["latency_ms"] = {**latency, **{name: latency.get(name, latency["p99"]) for name in ("p95", "max")}}
    row.setdefault("stable", False)
    row.setdefault("environment", "")
    row.setdefault("time", "")
    clocks = value.get("clocks_mhz")
    if isinstance(clocks, Mapping):
        row["clocks_mhz"] = clocks.get("sm")
        if row["clocks_mhz"] is None:
            del row["clocks_mhz"]
    accuracy = value.get("accuracy")
    if isinstance(accuracy, Mapping):
        row["accuracy"] = {"data": "synthetic", **accuracy}
    if "sitting" in value:  # what a sitting measures of a network at a batch size goes in turns
        row.setdefault("round", f"{value['sitting']}/{value['model']}/{value['scope']}/{value['batch']}")
    return row


def suite_environment(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The environment in the suite's form: machine and software; one that has it already stays."""
    if "machine" in facts:
        return dict(facts)
    machine: dict[str, Any] = {"gpus": {"devices": []}}
    for name, key in (("cpu", "cpu"), ("cores", "usable_cores"), ("os", "os")):
        if name in facts:
            machine[key] = facts[name]
    if facts.get("gpu"):
        gpu = {"index": 0, "product": str(facts["gpu"])}
        if facts.get("compute_capability"):
            gpu["compute_capability"] = str(facts["compute_capability"])
        machine["gpus"] = {"devices": [gpu], **({"driver": facts["driver"]} if facts.get("driver") else {})}
    known = {"cpu", "cores", "os", "gpu", "driver", "power_limit", "compute_capability"}
    software = {name: str(value) for name, value in facts.items() if name not in known and isinstance(value, str | int)}
    return {"machine": machine, "software": software, "scope_of": "worker"}


def _device(value: Mapping[str, Any]) -> str:
    given = value.get("device")
    if _is_device(given):
        return str(given)
    mode = str(value.get("mode", ""))
    on_cpu = "-cpu-" in mode or (not mode and value.get("backend") == "onnxruntime")
    return "cpu" if on_cpu else "gpu:0"


def _is_device(value: object) -> bool:
    return isinstance(value, str) and (value in ("cpu", "gpu", ALL_GPUS) or value.startswith("gpu:"))


def _mode(value: Mapping[str, Any], precision: str, device: str) -> str:
    backend, runtime = str(value["backend"]), str(value.get("runtime", ""))
    if value.get("mode") and runtime != "torch":  # there it is torch.compile's
        return str(value["mode"])
    parts = [mode_name(backend, device, precision)]
    if runtime not in (*_OWN_RUNTIMES, "torch", backend):
        parts.append(runtime)
    if str(value.get("source", "")).endswith("-uint8"):  # images as bytes, normalized inside: another engine
        parts.append("uint8")
    return "-".join(parts)
