"""The Jobs that the optimizer makes over the pods of k8s/: valid, restricted, and with every container's needs."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from enginehouse_optimizer.kubernetes.template import ClusterSettings, JobOrder, job_name, make_job

from enginehouse.artifacts import digest_bytes
from tests.k8s.manifests.rendering import TOOLS, VARIANTS, Object, Variant, build_pod, kustomized
from tests.k8s.manifests.test_pods import restricted_violations

KEY = digest_bytes(b"stage")
GPU_RESOURCES = {"mig": "nvidia.com/mig-1g.10gb", "time-slicing": "nvidia.com/gpu.shared"}


def config_map(variant: Variant) -> Object:
    return next(thing for thing in kustomized(variant) if thing["metadata"]["name"] == "enginehouse-build-job")


def change(variant: Variant) -> str:
    return json.dumps(config_map(variant)["data"])


# One of each that differ in their files.
BUILDING = list({change(variant): variant for variant in reversed(VARIANTS)}.values())


def job(variant: Variant | None, gpu: str = "NVIDIA-H200", audience: str = "enginehouse") -> dict[str, Any]:
    settings = ClusterSettings(
        "enginehouse", {"tensorrt": "worker:1"}, "client:1", "optimizer:8010",
        template=build_pod(config_map(variant)) if variant else {},
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
    jobs = [job(variant, gpu, audience) for variant in (None, *BUILDING) for gpu in ("", "X") for audience in ("", "a")]
    assert len(BUILDING) >= 7
    request = json.dumps({"versions": ["1.30", "1.37"], "objects": jobs})
    command = [str(TOOLS / "bin" / "python"), str(Path(__file__).with_name("validate_objects.py"))]
    done = subprocess.run(command, input=request, capture_output=True, text=True, timeout=240, check=True)
    assert json.loads(done.stdout) == []


@pytest.mark.parametrize("variant", [None, *BUILDING], ids=lambda variant: variant.name if variant else "none")
def test_pods_run_under_the_restricted_level_with_what_they_need(variant: Variant | None) -> None:
    made = job(variant)
    components = variant.components if variant else ()
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
    resource = next((GPU_RESOURCES[name] for name in components if name in GPU_RESOURCES), "nvidia.com/gpu")
    limits = containers(made)["worker"]["resources"]["limits"]
    assert [name for name in limits if "/" in name] == [resource]
    assert pod["nodeSelector"]["nvidia.com/gpu.product"] == "NVIDIA-H200"
    assert pod.get("runtimeClassName") == ("nvidia" if "runtimeclass" in components else None)
    secured = [
        name
        for name, container in containers(made).items()
        if any(mount["name"] == "tls" for mount in container["volumeMounts"])
    ]
    assert secured == (["fetch", "publish"] if "tls" in components else [])
    without = job(variant, gpu="")
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
