"""What the manifests are once kubectl and helm have put them together."""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from enginehouse_optimizer.kubernetes.pod_template import load_template

ROOT = Path(__file__).resolve().parents[3]
K8S = ROOT / "k8s"
CHART = K8S / "chart"
TOOLS = ROOT / ".venv" / "k8s-tools"
KUBECTL, HELM = TOOLS / "bin" / "kubectl", TOOLS / "bin" / "helm"

Object = dict[str, Any]

# libyaml's where PyYAML has it: ten times as fast.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class Variant:
    """One installation, said in both ways.

    Attributes:
        overlay: folder under k8s/; the root when empty.
        components: names of folders under k8s/components, put on it.
        helm: arguments of `helm template` that say the same.
    """

    name: str
    overlay: str = ""
    components: tuple[str, ...] = ()
    helm: tuple[str, ...] = ()


def _sets(*values: str) -> tuple[str, ...]:
    return tuple(part for value in values for part in ("--set", value))


_S3 = _sets("store.url=s3://enginehouse/store", "store.resultsUrl=s3://enginehouse/benchmarks")
VARIANTS = (
    Variant("root"),
    Variant("dev", "overlays/dev", helm=("--values", str(CHART / "values-dev.yaml"))),
    Variant("single-gpu", "overlays/single-gpu", helm=_sets("inference.replicas=1")),
    Variant("l4", "overlays/l4", helm=_sets("gpu.product=NVIDIA-L4")),
    Variant("a100", "overlays/a100", helm=_sets("gpu.product=NVIDIA-A100-SXM4-80GB")),
    Variant("h100", "overlays/h100", helm=_sets("gpu.product=NVIDIA-H100-80GB-HBM3")),
    Variant("h200", "overlays/h200", helm=_sets("gpu.product=NVIDIA-H200")),
    Variant("runtimeclass", components=("runtimeclass",), helm=_sets("runtimeClassName=nvidia")),
    Variant("mig", components=("mig",), helm=_sets("gpu.resource=nvidia.com/mig-1g.10gb")),
    Variant("time-slicing", components=("time-slicing",), helm=_sets("gpu.resource=nvidia.com/gpu.shared")),
    Variant("tf-trt", components=("tf-trt",), helm=_sets("inference.backend=tf-trt")),
    Variant("s3", components=("s3",), helm=_S3),
    Variant("autoscaling", components=("autoscaling",), helm=_sets("autoscaling.kind=hpa")),
    Variant("keda", components=("keda",), helm=_sets("autoscaling.kind=keda")),
    Variant("tls", components=("tls",), helm=_sets("tls.enabled=true")),
    Variant(
        "cert-manager",
        components=("tls", "cert-manager"),
        helm=_sets("tls.enabled=true", "tls.certManager.enabled=true"),
    ),
    Variant(
        "mig-with-tls",
        components=("tls", "runtimeclass", "mig"),
        helm=_sets("tls.enabled=true", "runtimeClassName=nvidia", "gpu.resource=nvidia.com/mig-1g.10gb"),
    ),
    Variant(
        "time-slicing-with-tls",
        components=("time-slicing", "tls", "runtimeclass"),
        helm=_sets("tls.enabled=true", "runtimeClassName=nvidia", "gpu.resource=nvidia.com/gpu.shared"),
    ),
    Variant("auth", components=("tls", "auth"), helm=_sets("tls.enabled=true", "auth.enabled=true")),
    Variant("monitoring", components=("monitoring",), helm=_sets("monitoring.enabled=true")),
    Variant(
        "together",
        "overlays/h200",
        components=("tls", "cert-manager", "monitoring", "autoscaling", "s3", "tf-trt", "auth"),
        helm=(
            *_S3,
            *_sets("gpu.product=NVIDIA-H200", "tls.enabled=true", "tls.certManager.enabled=true"),
            *_sets("monitoring.enabled=true", "autoscaling.kind=hpa", "inference.backend=tf-trt", "auth.enabled=true"),
        ),
    ),
)


@functools.cache
def kustomized(variant: Variant) -> tuple[Object, ...]:
    """The objects of `kubectl kustomize`."""

    def render() -> str:
        with tempfile.TemporaryDirectory() as folder:
            overlay = K8S / variant.overlay
            if variant.components:
                content = {
                    "resources": [os.path.relpath(overlay, folder)],
                    "components": [os.path.relpath(K8S / "components" / name, folder) for name in variant.components],
                }
                overlay = Path(folder)
                (overlay / "kustomization.yaml").write_text(yaml.safe_dump(content))
            return run([str(KUBECTL), "kustomize", str(overlay)])

    return _objects(_kept("kustomize", variant.overlay, *variant.components, render=render))


@functools.cache
def templated(variant: Variant, release: str = "enginehouse", namespace: str = "enginehouse") -> tuple[Object, ...]:
    """The objects of `helm template`, the tests of `helm test` among them."""
    arguments = (*variant.helm, "--set", "namespace.create=true")

    def render() -> str:
        return helm_template(*arguments, release=release, namespace=namespace)

    return _objects(_kept("helm", release, namespace, *arguments, render=render))


@functools.cache
def _sources() -> str:
    """A digest of everything under k8s/."""
    digest = hashlib.sha256()
    for path in sorted(path for path in K8S.rglob("*") if path.is_file() and "__pycache__" not in path.parts):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(K8S)} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def _kept(*what: str, render: Callable[[], str]) -> str:
    """A rendering, made once for the processes that run tests and kept until the sources change."""
    folder = TOOLS / "rendered" / _sources()
    path = folder / f"{hashlib.sha256(chr(0).join(what).encode()).hexdigest()}.yaml"
    if not path.exists():
        for old in folder.parent.glob("*"):
            if old != folder:
                shutil.rmtree(old, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(f".{os.getpid()}")
        draft.write_text(render())
        draft.replace(path)
    return path.read_text()


def helm_template(*arguments: str, release: str = "enginehouse", namespace: str = "enginehouse") -> str:
    """What `helm template` prints.

    Raises:
        subprocess.CalledProcessError: the values are refused; `stderr` says why.
    """
    return run([str(HELM), "template", release, str(CHART), "--namespace", namespace, *arguments])


def run(command: list[str]) -> str:
    """A command's standard output, without a cluster's configuration and without a network."""
    variables = {"PATH": os.environ["PATH"], "HOME": tempfile.gettempdir(), "KUBECONFIG": os.devnull}
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120, env=variables).stdout


def key(thing: Object) -> str:
    """Kind, namespace and name."""
    return "/".join((thing["kind"], thing["metadata"].get("namespace", ""), thing["metadata"]["name"]))


def of_kind(objects: tuple[Object, ...], *kinds: str) -> list[Object]:
    return [thing for thing in objects if thing["kind"] in kinds]


def pods(objects: tuple[Object, ...]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Each pod that the objects make: what makes it, its namespace, its template (metadata and spec)."""
    for thing in objects:
        namespace = thing["metadata"].get("namespace", "")
        if thing["kind"] in ("Deployment", "DaemonSet"):
            yield key(thing), namespace, thing["spec"]["template"]
        elif thing["kind"] == "CronJob":
            yield key(thing), namespace, thing["spec"]["jobTemplate"]["spec"]["template"]
        elif thing["kind"] == "Pod":
            yield key(thing), namespace, thing
        elif thing["kind"] == "ConfigMap" and "pod.yaml" in thing["data"]:
            yield key(thing), namespace, build_pod(thing)


def build_pod(config: Mapping[str, Any]) -> dict[str, Any]:
    """The pod that the optimizer makes of the files in the ConfigMap of build Jobs."""
    with tempfile.TemporaryDirectory() as folder:
        for name, text in config["data"].items():
            Path(folder, name).write_text(text)
        return {"apiVersion": "v1", "kind": "Pod", **load_template(Path(folder))}


def container_list(template: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """A pod's containers."""
    return list(template["spec"]["containers"])


def variables(template: Mapping[str, Any]) -> dict[str, str]:
    """The environment variables of a pod's first container that are said in the manifest."""
    return {entry["name"]: entry.get("value", "") for entry in container_list(template)[0].get("env", [])}


def _objects(text: str) -> tuple[Object, ...]:
    return tuple(thing for thing in yaml.load_all(text, Loader=_LOADER) if thing)
