"""Every ENGINEHOUSE_ variable of a manifest is a setting of its service, with a value that the service takes."""

from __future__ import annotations

import re
from collections.abc import Mapping

import pytest
from enginehouse_inference.settings import InferenceSettings
from enginehouse_optimizer.settings import OptimizerSettings
from enginehouse_telemetry.aggregator.settings import AggregatorSettings
from enginehouse_telemetry.settings import TelemetrySettings

from enginehouse.rpc.settings import ServerSettings
from tests.k8s.manifests.rendering import VARIANTS, Variant, container_list, kustomized, pods, templated

SETTINGS: Mapping[str, type[ServerSettings]] = {
    "optimizer": OptimizerSettings,
    "inference": InferenceSettings,
    "agent": TelemetrySettings,
    "aggregator": AggregatorSettings,
}
# What clients read: the SDK (enginehouse/client/addresses.py, enginehouse/rpc/channels.py) and the CLI.
CLIENT_VARIABLES = {
    *("HOME", "OPTIMIZER", "INFERENCE", "TELEMETRY"),
    *("CLIENT_TOKEN_FILE", "CLIENT_CA", "CLIENT_CERTIFICATE", "CLIENT_KEY"),
}
every_variant = pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)


@every_variant
def test_every_variable_is_a_setting_and_every_value_is_taken(
    variant: Variant, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, _, pod in (*pods(kustomized(variant)), *pods(templated(variant))):
        for container in container_list(pod):
            given = {entry["name"]: entry.get("value") for entry in container.get("env", [])}
            ours = {variable.removeprefix("ENGINEHOUSE_") for variable in given if variable.startswith("ENGINEHOUSE_")}
            settings = SETTINGS.get(container["name"])
            if (
                settings is None
                or container["name"] != pod["spec"]["containers"][0]["name"]
                or "ports" not in container
            ):
                assert ours <= CLIENT_VARIABLES, f"{name}: {sorted(ours - CLIENT_VARIABLES)}"
                continue
            known = {field.upper() for field in settings.model_fields}
            assert ours <= known, f"{name}: {sorted(ours - known)}"
            with monkeypatch.context() as environment:
                for variable, value in given.items():
                    if value is not None:
                        environment.setenv(variable, value)
                settings()


@every_variant
def test_variables_are_defined_before_they_are_used(variant: Variant) -> None:
    for name, _, pod in (*pods(kustomized(variant)), *pods(templated(variant))):
        for container in container_list(pod):
            seen: set[str] = set()
            for entry in container.get("env", []):
                assert set(re.findall(r"\$\((\w+)\)", entry.get("value") or "")) <= seen, f"{name}: {entry['name']}"
                seen.add(entry["name"])
