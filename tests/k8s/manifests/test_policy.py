"""A policy scan of manifests and Dockerfiles; what it may find fault with is listed here, with the reason."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import yaml

from tests.k8s.manifests.rendering import K8S, TOOLS, VARIANTS, kustomized, run

IMAGES = K8S / "images"
AGENT = "DaemonSet.enginehouse-node.enginehouse-telemetry"
# Of everything.
ACCEPTED = {
    "CKV_K8S_11": "no CPU limits: throttling a server costs latency, and requests share the CPUs fairly",
    "CKV_K8S_15": "IfNotPresent: tags name a version, and an image of gigabytes is not fetched at each start",
    "CKV_K8S_43": "digests are the installer's (kustomize edit set image, image.digest): the images are built there",
    "CKV_DOCKER_2": "no HEALTHCHECK: Kubernetes ignores it and probes",
    "CKV_DOCKER_7": "the base image is a build argument, with a tag, which the scan does not follow",
}
# Of one resource.
ACCEPTED_OF = {
    ("CKV_K8S_23", AGENT): "user 0: the kubelet's pod-resources folder is root's",
    ("CKV_K8S_40", AGENT): "the same",
    ("CKV_K8S_38", "Deployment.enginehouse.enginehouse-optimizer"): "it makes Jobs",
    ("CKV_K8S_38", "Deployment.enginehouse.enginehouse-telemetry-aggregator"): "it watches EndpointSlices",
}


def findings(folder: Path) -> set[tuple[str, str]]:
    """Checks that fail, each with its resource."""
    command = [str(TOOLS / "bin" / "checkov"), "--directory", str(folder), "--framework", "kubernetes", "dockerfile"]
    command += ["--skip-download", "--quiet", "--compact", "--soft-fail", "--output", "json"]
    reports = json.loads(run(command))
    assert {report["check_type"] for report in reports} == {"kubernetes", "dockerfile"}
    assert all(report["summary"]["passed"] > 50 and not report["summary"]["parsing_errors"] for report in reports)
    return {
        (found["check_id"], found["resource"]) for report in reports for found in report["results"]["failed_checks"]
    }


def test_the_policy_scan_finds_nothing_but_what_was_decided(tmp_path: Path) -> None:
    (root,) = (variant for variant in VARIANTS if variant.name == "root")
    loose = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "loose", "namespace": "x"}}
    loose["spec"] = {"containers": [{"name": "c", "image": "i", "securityContext": {"privileged": True}}]}
    (tmp_path / "root.yaml").write_text(yaml.safe_dump_all([*kustomized(root), loose]))
    for dockerfile in IMAGES.glob("*.Dockerfile"):
        shutil.copy(dockerfile, tmp_path)
    found = findings(tmp_path)
    assert ("CKV_K8S_16", "Pod.x.loose") in found  # it looks
    found = {(check, resource) for check, resource in found if resource != "Pod.x.loose"}
    assert {pair for pair in found if pair[0] not in ACCEPTED} == set(ACCEPTED_OF)


def test_hadolint_finds_nothing(tmp_path: Path) -> None:
    hadolint = str(TOOLS / "bin" / "hadolint")
    files = sorted(str(path) for path in IMAGES.glob("*.Dockerfile"))
    assert len(files) == 6
    assert run([hadolint, *files]) == ""
    wrong = tmp_path / "Dockerfile"
    wrong.write_text("FROM debian:latest\nRUN apt-get install curl\n")
    assert subprocess.run([hadolint, str(wrong)], capture_output=True, timeout=60).returncode == 1
