"""The operator's pod that is laid under the pods of Jobs: read from a file, or put together from a folder of them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from enginehouse.errors import FailedPreconditionError
from enginehouse.kubernetes.api import Object

FETCH, WORKER, PUBLISH = CONTAINERS = ("fetch", "worker", "publish")
# In a folder, the file that the others change.
FIRST = "pod.yaml"
# What tells the items of a container's lists apart.
_KEYS = {"env": "name", "volumeMounts": "mountPath"}


def load_template(path: Path | None) -> dict[str, Any]:
    """Read a Pod, a PodTemplate or the bare template of one; an empty one when there is no path.

    Of a folder, `pod.yaml` is read first, and then the other `*.yaml` files by name, each laid over what came before:
    objects field by field, containers and volumes by name, variables by name, mounts by path, any other list whole. A
    field that is null is taken away.

    Raises:
        FailedPreconditionError: one cannot be read, or is no pod; or a folder has none.
    """
    if path is None:
        return {}
    template: dict[str, Any] = {}
    for file in _files(path):
        template = _laid_over(template, _read(file))
    return template


def containers_of(template: Mapping[str, Any]) -> dict[str, Any]:
    """Copies of a template's containers, by name."""
    spec = template.get("spec") or {}
    containers = [*(spec.get("initContainers") or ()), *(spec.get("containers") or ())]
    return {str(container.get("name")): copy.deepcopy(container) for container in containers}


def merged(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Object:
    """Objects field by field, variables and mounts one by one, anything else as they say; null takes away."""
    result = copy.deepcopy(dict(ours))
    for name, value in theirs.items():
        if value is None:
            result.pop(name, None)
        elif isinstance(value, dict):
            found = result.get(name)
            result[name] = merged(found if isinstance(found, dict) else {}, value)
        elif name in _KEYS and isinstance(value, list):
            result[name] = joined(result.get(name) or [], value, _KEYS[name])
        else:
            result[name] = copy.deepcopy(value)
    return result


def joined(ours: list[Object], theirs: list[Object], key: str) -> list[Object]:
    """Both, less those of ours that theirs replace."""
    known = {item.get(key) for item in theirs}
    return [*(item for item in ours if item.get(key) not in known), *copy.deepcopy(theirs)]


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    # A mounted ConfigMap also has folders whose names begin with a dot.
    files = [file for file in path.glob("*.yaml") if not file.name.startswith(".")]
    if not files:
        raise FailedPreconditionError(f"{_what(path)} has no *.yaml file: expected {FIRST}, and what changes it")
    return sorted(files, key=lambda file: (file.name != FIRST, file.name))


def _read(path: Path) -> dict[str, Any]:
    what = _what(path)
    try:
        value: Any = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise FailedPreconditionError(f"{what} cannot be read: {error}") from error
    if isinstance(value, dict) and value.get("kind") == "PodTemplate":
        value = value.get("template")
    if not isinstance(value, dict) or not isinstance(value.get("spec"), dict):
        raise FailedPreconditionError(f"{what} is no pod: expected `metadata` and `spec`")
    if unknown := sorted(set(containers_of(value)) - set(CONTAINERS)):
        raise FailedPreconditionError(
            f"{what} has a container {unknown[0]!r}: expected only {', '.join(CONTAINERS)}, whose fields are laid over "
            "those of the stage's pod"
        )
    return {name: value[name] for name in ("metadata", "spec") if value.get(name)}


def _laid_over(base: Mapping[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    if not base:
        return dict(patch)
    old, new = base.get("spec") or {}, patch.get("spec") or {}
    spec = merged(old, {name: value for name, value in new.items() if name not in _BY_NAME})
    containers = containers_of(base)
    for name, container in containers_of(patch).items():
        containers[name] = merged(containers.get(name, {}), container)
    spec.pop("initContainers", None)
    spec["containers"] = list(containers.values())
    spec["volumes"] = joined(old.get("volumes") or [], new.get("volumes") or [], "name")
    return {"metadata": merged(base.get("metadata") or {}, patch.get("metadata") or {}), "spec": spec}


_BY_NAME = ("initContainers", "containers", "volumes")


def _what(path: Path) -> str:
    return f"ENGINEHOUSE_KUBERNETES_JOB_TEMPLATE {path}"
