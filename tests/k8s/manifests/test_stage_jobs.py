"""The Jobs that the optimizer makes over the pods of k8s/: valid, restricted, and with every container's needs."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from enginehouse_optimizer.kubernetes.template import ClusterSettings, JobOrder, job_name, load_template, make_job

from enginehouse.artifacts import digest_bytes
from tests.k8s.manifests.rendering import ROOT, TOOLS
from tests.k8s.manifests.test_pods import restricted_violations

KEY = digest_bytes(b"stage")
TEMPLATES = sorted(ROOT.glob("k8s/**/build-job-pod.yaml"))
GPU_RESOURCES = {"mig": "nvidia.com/mig-1g.10gb", "time-slicing": "nvidia.com/gpu.shared"}


def job(path: Path | None, gpu: str = "NVIDIA-H200", audience: str = "enginehouse") -> dict[str, Any]:
    settings = ClusterSettings(
        "enginehouse", {"tensorrt": "worker:1"}, "client:1", "optimizer:8010", template=load_template(path),
        token_audience=audience,
    )  # fmt: skip
    order = JobOrder(
        job_name("optimizer", "build", "default", KEY), "build", KEY, "default", "tensorrt", KEY, gpu, 3600.0
    )
    return make_job(settings, order)


def containers(made: Mapping[str, Any]) -> dict[str, Any]:
    pod = made["spec"]["template"]["spec"]
    return {container["name"]: container for container in (*pod["initContainers"], *pod["containers"])}


def test_jobs_are_valid() -> None:
    jobs = [job(path, gpu, audience) for path in (None, *TEMPLATES) for gpu in ("", "X") for audience in ("", "a")]
    assert TEMPLATES
    request = json.dumps({"versions": ["1.30", "1.37"], "objects": jobs})
    command = [str(TOOLS / "bin" / "python"), str(Path(__file__).with_name("validate_objects.py"))]
    done = subprocess.run(command, input=request, capture_output=True, text=True, timeout=240, check=True)
    assert json.loads(done.stdout) == []


@pytest.mark.parametrize("path", [None, *TEMPLATES], ids=lambda path: path.parent.name if path else "none")
def test_pods_run_under_the_restricted_level_with_what_they_need(path: Path | None) -> None:
    made = job(path)
    assert restricted_violations(made["spec"]["template"]) == []
    pod = made["spec"]["template"]["spec"]
    names = [volume["name"] for volume in pod["volumes"]]
    assert len(names) == len(set(names))
    for name, container in containers(made).items():
        mounts = [mount["mountPath"] for mount in container["volumeMounts"]]
        assert len(mounts) == len(set(mounts)) and {"/stage", "/tmp"} <= set(mounts), name
        assert {mount["name"] for mount in container["volumeMounts"]} <= set(names)
        variables = [variable["name"] for variable in container["env"]]
        assert len(variables) == len(set(variables))
    resource = GPU_RESOURCES.get(path.parent.name if path else "", "nvidia.com/gpu")
    limits = containers(made)["worker"]["resources"]["limits"]
    assert [name for name in limits if "/" in name] == [resource]
    assert pod["nodeSelector"]["nvidia.com/gpu.product"] == "NVIDIA-H200"
    without = job(path, gpu="")
    assert not any("/" in n for n in containers(without)["worker"].get("resources", {}).get("limits", {}))
    assert "nvidia.com/gpu.product" not in without["spec"]["template"]["spec"].get("nodeSelector", {})
    labels = made["spec"]["template"]["metadata"]["labels"]
    assert labels["app.kubernetes.io/component"] == "build", "which network policies go by"


def test_tokens_go_to_those_who_call_the_optimizer_only() -> None:
    found = containers(job(None))
    for name in ("fetch", "publish"):
        variables = {variable["name"]: variable["value"] for variable in found[name]["env"]}
        assert variables["ENGINEHOUSE_CLIENT_TOKEN_FILE"] == "/var/run/secrets/enginehouse/token"
    assert not any(mount["name"] == "token" for mount in found["worker"]["volumeMounts"])
    assert job(None)["spec"]["template"]["spec"]["automountServiceAccountToken"] is False
    assert not any(mount["name"] == "token" for mount in containers(job(None, audience=""))["fetch"]["volumeMounts"])
