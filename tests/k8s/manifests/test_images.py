"""The images: each that a manifest names is built, as a user without rights, from arguments that one can set."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pynvml
import pytest

from tests.k8s.manifests.rendering import (
    K8S,
    ROOT,
    VARIANTS,
    Variant,
    container_list,
    kustomized,
    of_kind,
    pods,
    templated,
)

IMAGES = K8S / "images"


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"images_{name}", IMAGES / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


build, benchmark, podman_pods = _load("build"), _load("benchmark"), _load("podman_pods")


def test_every_image_of_the_manifests_is_built() -> None:
    named = set()
    for variant in VARIANTS:
        for objects in (kustomized(variant), templated(variant)):
            for _, _, pod in pods(objects):
                named |= {container["image"] for container in container_list(pod) if "image" in container}
            for deployment in of_kind(objects, "Deployment"):
                for container in deployment["spec"]["template"]["spec"]["containers"]:
                    values = {entry["name"]: entry.get("value") for entry in container["env"]}
                    named |= set(json.loads(values.get("ENGINEHOUSE_WORKER_IMAGES") or "{}").values())
    options = build.parse([])
    built = {build.reference(image.name, options) for image in build.plan()}
    assert named <= built
    assert {image.partition(":")[0].removeprefix("enginehouse/") for image in named} >= {
        *("optimizer", "telemetry", "client", "benchmark", "worker-tensorrt", "worker-tf-trt"),
        *("inference-tensorrt", "inference-tf-trt", "inference-onnxruntime"),
    }


@pytest.mark.parametrize("environments", [build.ENVIRONMENTS, ("onnxruntime",), ("onnxruntime", "tensorflow")])
def test_parents_are_built_first(environments: tuple[str, ...]) -> None:
    seen: set[str] = set()
    for image in build.plan(environments):
        assert set(image.parents.values()) <= seen
        text = (IMAGES / image.dockerfile).read_text()
        for argument in (*image.arguments, *image.parents, "PYTHON_IMAGE", "PIP_INDEX_URL", "PIP_CERT", "VERSION"):
            assert re.search(rf"^ARG {argument}\b", text, re.M), f"{image.dockerfile} has no {argument}"
        seen.add(image.name)


def test_a_build_command_has_what_was_asked_for() -> None:
    arguments = ["--engine", "podman", "--registry", "registry.example/team", "--python-image", "mine:1"]
    arguments += ["--ca-bundle", "/ca.pem", "--index-url", "https://index.example/simple", "--tensorrt-rtx"]
    options = build.parse(arguments)
    images = {image.name: image for image in build.plan(extras={"tensorrt": "tensorrt-rtx"})}
    worker = " ".join(build.build_command(images["worker-tensorrt"], options))
    assert "--build-arg ENVIRONMENT=tensorrt --build-arg EXTRA=tensorrt-rtx" in worker
    assert "--build-arg PYTHON_IMAGE=mine:1" in worker
    assert "--build-arg PIP_INDEX_URL=https://index.example/simple" in worker
    assert "--volume /ca.pem:/etc/ssl/certs/ca-certificates.crt:ro" in worker
    served = " ".join(build.build_command(images["inference-tensorrt"], options))
    assert "--build-arg WORKER_IMAGE=registry.example/team/enginehouse/worker-tensorrt:0.1.0" in served


def test_an_unknown_image_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert build.main(["--only", "optimiser"]) == 2
    assert "no image 'optimiser': expected of worker-onnxruntime" in capsys.readouterr().err


@pytest.mark.parametrize("path", sorted(IMAGES.glob("*.Dockerfile")), ids=lambda path: path.stem)
def test_images_run_as_the_manifests_user_and_have_no_health_check(path: Path) -> None:
    instructions = re.findall(r"^([A-Z]+)\b *(.*)$", path.read_text(), re.M)
    assert [value for name, value in instructions if name == "USER"] == ["10001:10001"]
    assert "HEALTHCHECK" not in {name for name, _ in instructions}
    last = max(i for i, (name, _) in enumerate(instructions) if name == "FROM")
    assert not [value for name, value in instructions[last:] if name == "RUN"], "the last stage only copies"
    assert {"LABEL", "USER"} <= {name for name, _ in instructions[last:]}


def test_constraints_of_every_environment_are_there() -> None:
    for image in build.plan():
        if image.dockerfile == "worker.Dockerfile":
            assert (ROOT / "constraints" / f"{image.arguments['EXTRA']}.txt").is_file()
    assert build.VERSION in (ROOT / "pyproject.toml").read_text()


def test_the_build_context_has_what_dockerfiles_copy() -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for path in IMAGES.glob("*.Dockerfile"):
        for sources in re.findall(r"^COPY (?!--from)(?:--chmod=\d+ )?(.+) \S+$", path.read_text(), re.M):
            for source in sources.split():
                assert source.rstrip("/") in kept, f"{path.name} copies {source}"
                assert (ROOT / source).exists()


def test_a_benchmark_goes_on_where_an_evicted_pod_left_off(tmp_path: Path) -> None:
    results = tmp_path / "bench-1"
    assert "--resume" not in benchmark.commands("paper", results)[0]
    results.mkdir()
    assert benchmark.commands("paper", results) == [
        ["enginehouse", "bench", "run", "paper", "--out", str(results), "--resume"],
        ["enginehouse", "report", str(results)],
    ]


def test_results_are_copied_to_object_storage(tmp_path: Path) -> None:
    results = tmp_path / "bench-1"
    (results / "plots").mkdir(parents=True)
    (results / "rows.jsonl").write_text("{}\n")
    (results / "plots" / "a.svg").write_text("<svg/>")
    store = tmp_path / "store"
    variables = {"RESULTS_URL": f"file://{store}/", "JOB": "bench-1", "RESULTS_OPTIONS": '{"auto_mkdir": true}'}
    assert benchmark.upload(results, variables) == f"file://{store}/bench-1"
    assert (store / "bench-1" / "rows.jsonl").read_text() == "{}\n"
    assert (store / "bench-1" / "plots" / "a.svg").exists()


def test_a_benchmark_builds_for_the_gpu_of_its_pod(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", missing)
    assert benchmark.gpu_product() == ""
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByIndex", lambda index: index)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetName", lambda handle: "NVIDIA H100 80GB HBM3")
    assert benchmark.gpu_product() == "NVIDIA-H100-80GB-HBM3"


def test_the_benchmark_script_runs_suite_and_report(tmp_path: Path) -> None:
    """With a stand-in for the command line, which the image has: statuses and order are the script's."""
    command = tmp_path / "bin" / "enginehouse"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\nmkdir -p {tmp_path}/results\ntest "$1" != bench\n')
    command.chmod(0o755)
    variables = {"PATH": f"{command.parent}:/usr/bin:/bin", "RESULTS": str(tmp_path / "results")}
    script = [sys.executable, str(IMAGES / "benchmark.py")]
    done = subprocess.run([*script, "quick"], env=variables, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1  # the suite's, though the report went well
    assert (tmp_path / "calls").read_text().splitlines() == [
        f"bench run quick --out {tmp_path}/results",
        f"report {tmp_path}/results",
    ]
    assert subprocess.run(script, env=variables, capture_output=True, timeout=60).returncode == 2


@pytest.mark.parametrize("variant", VARIANTS[:2], ids=lambda variant: variant.name)
def test_pods_for_podman_are_the_manifests_but_for_what_podman_lacks(variant: Variant) -> None:
    objects = kustomized(variant)
    made = {thing["metadata"]["name"]: thing for thing in podman_pods.playable(objects, "here")}
    workloads = [thing for thing in objects if thing["kind"] in ("Deployment", "DaemonSet")]
    assert len(workloads) == 4
    for workload in workloads:
        spec, given = made[workload["metadata"]["name"]]["spec"], workload["spec"]["template"]["spec"]
        assert spec["securityContext"] == given["securityContext"]
        assert ".svc" not in json.dumps(spec)
        names = {volume["name"] for volume in spec["volumes"]}
        for container, original in zip(spec["containers"], given["containers"], strict=True):
            assert container["image"] == f"localhost/{original['image']}"
            assert container["resources"] == original["resources"]
            assert container["securityContext"] == original["securityContext"]
            assert {mount["name"] for mount in container["volumeMounts"]} <= names
            assert all(
                isinstance(entry["value"], str) for entry in container["env"] if "secretKeyRef" not in str(entry)
            )
            assert not any(name.endswith("Probe") for name in container)
    own = [volume["name"] for pod in made.values() if pod["kind"] == "Pod" for volume in pod["spec"]["volumes"]]
    assert len(own) == len(set(own)), "podman would share them"
