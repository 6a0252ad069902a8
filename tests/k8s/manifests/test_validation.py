"""Every object of every variant is one that the API servers of Kubernetes 1.30 to 1.37 know, down to its fields."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.k8s.manifests.rendering import (
    K8S,
    TOOLS,
    VARIANTS,
    Object,
    Variant,
    build_pod,
    kustomized,
    of_kind,
    templated,
)

VERSIONS = tuple(f"1.{minor}" for minor in range(30, 38))
HERE = Path(__file__).parent
# Groups whose objects come from other projects; kubernetes-validate does not know them.
CUSTOM = ("monitoring.coreos.com", "keda.sh", "cert-manager.io")
RULES = K8S / "chart" / "files" / "rules.yaml"


def _distinct(*made: Callable[[Variant], tuple[Object, ...]]) -> list[Object]:
    """The objects of all variants, each once; of Kustomize and of Helm when nothing else is said."""
    found = {}
    for make in made or (kustomized, templated):
        for variant in VARIANTS:
            for thing in make(variant):
                found[json.dumps(thing, sort_keys=True)] = thing
    return list(found.values())


def _is_custom(thing: Object) -> bool:
    return str(thing["apiVersion"]).split("/")[0] in CUSTOM


def _invalid(objects: list[Object], versions: tuple[str, ...] = VERSIONS) -> list[str]:
    request = json.dumps({"versions": versions, "objects": objects})
    command = [str(TOOLS / "bin" / "python"), str(HERE / "validate_objects.py")]
    done = subprocess.run(command, input=request, capture_output=True, text=True, timeout=240, check=True)
    answer: list[str] = json.loads(done.stdout)
    return answer


def _invalid_custom(objects: list[Object]) -> list[str]:
    if not (TOOLS / "schemas" / "node_modules").is_dir() or shutil.which("node") is None:
        pytest.skip("no npm when the tools were installed: no schemas of other projects' objects")
    command = ["node", str(HERE / "validate_custom.mjs"), str(TOOLS / "schemas")]
    done = subprocess.run(command, input=json.dumps(objects), capture_output=True, text=True, timeout=120, check=True)
    answer: list[str] = json.loads(done.stdout)
    return answer


def test_objects_are_valid_in_every_version() -> None:
    objects = [thing for thing in _distinct(kustomized) if not _is_custom(thing)]
    assert len(objects) > 60
    assert _invalid(objects) == []


def test_objects_of_the_chart_are_valid_in_the_oldest_and_the_newest_version() -> None:
    """They are the same as Kustomize's (test_chart.py), but for labels."""
    objects = [thing for thing in _distinct(templated) if not _is_custom(thing)]
    assert len(objects) > 60
    assert _invalid(objects, (VERSIONS[0], VERSIONS[-1])) == []


def test_the_pod_of_build_jobs_is_valid() -> None:
    templates = [build_pod(thing) for thing in _distinct() if "pod.yaml" in thing.get("data", {})]
    assert len(templates) > 3
    for pod in templates:
        # What the optimizer adds.
        pod["metadata"]["name"] = "build"
        pod["spec"]["containers"][0]["image"] = "worker"
    assert _invalid(templates) == []


def _with(**change: Any) -> Object:
    thing = copy.deepcopy(of_kind(kustomized(VARIANTS[0]), "Deployment")[0])
    thing.update(change)
    return thing


@pytest.mark.parametrize("wrong", [_with(kind="Deploymint"), _with(apiVersion="apps/v9"), _with(specs={})])
def test_unknown_kinds_versions_and_fields_fail(wrong: Object) -> None:
    assert len(_invalid([wrong], ("1.30",))) == 1


def test_objects_of_other_projects_are_valid() -> None:
    objects = [thing for thing in _distinct() if _is_custom(thing)]
    assert {thing["kind"] for thing in objects} == {
        "ServiceMonitor",
        "PodMonitor",
        "PrometheusRule",
        "ScaledObject",
        "ClusterIssuer",
        "Certificate",
    }
    assert _invalid_custom(objects) == []


def test_wrong_objects_of_other_projects_fail() -> None:
    rule = {"apiVersion": "monitoring.coreos.com/v1", "kind": "PrometheusRule", "metadata": {"name": "r"}}
    unknown = {**rule, "kind": "PrometheusRuler", "spec": {}}
    typed = {**rule, "spec": {"groups": [{"name": 1}]}}
    assert len(_invalid_custom([rule, unknown, typed])) == 3


@pytest.mark.skipif(
    not (TOOLS / "bin" / "promtool").exists(), reason="no apt when the tools were installed: no promtool"
)
def test_promtool_takes_the_rules(tmp_path: Path) -> None:
    def checked(path: Path) -> subprocess.CompletedProcess[str]:
        command = [str(TOOLS / "bin" / "promtool"), "check", "rules", str(path)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)

    assert checked(RULES).returncode == 0, checked(RULES).stderr
    broken = tmp_path / "broken.yaml"
    broken.write_text(RULES.read_text().replace("clamp_min(", "clamp_least("))
    assert checked(broken).returncode != 0
