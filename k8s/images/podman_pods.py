"""What `podman kube play` can run of the manifests: pods, over the host's network, of what kubectl made.

Podman 4 has no Services, no gRPC probes, no fsGroup and no node, and pods share empty folders of one name. So each
workload becomes one Pod; names of Services are the host itself; probes go (whoever starts the pods asks for health);
empty folders get the pod's name; the kubelet's folder, which is not there, goes.
Users, read-only roots, dropped capabilities, limits, variables and volumes stay as they are.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

Object = dict[str, Any]

WORKLOADS = ("Deployment", "DaemonSet")
_PROBES = ("startupProbe", "readinessProbe", "livenessProbe", "lifecycle")
_HERE = "127.0.0.1"
_KUBELET = "pod-resources"
# An address for what the cluster's API would say.
_INSTEAD = {"ENGINEHOUSE_AGENTS_SERVICE": ("ENGINEHOUSE_AGENTS", "127.0.0.1:8020")}
_WITHOUT = ("ENGINEHOUSE_POD_RESOURCES_SOCKET",)


def playable(objects: Iterable[Mapping[str, Any]], node: str) -> list[Object]:
    """The ConfigMaps that pods mount, and a Pod for each Deployment and DaemonSet.

    Args:
        objects: what `kubectl kustomize` made.
        node: the name of this machine.
    """
    given = list(objects)
    services = [
        f"{thing['metadata']['name']}.{thing['metadata']['namespace']}.svc"
        for thing in given
        if thing["kind"] == "Service"
    ]
    pods = [_pod(thing, services, node) for thing in given if thing["kind"] in WORKLOADS]
    mounted = {
        volume["configMap"]["name"] for pod in pods for volume in pod["spec"]["volumes"] if "configMap" in volume
    }
    configs = [
        copy.deepcopy(dict(thing))
        for thing in given
        if thing["kind"] == "ConfigMap" and thing["metadata"]["name"] in mounted
    ]
    return [*configs, *pods]


def _pod(workload: Mapping[str, Any], services: list[str], node: str) -> Object:
    template = copy.deepcopy(workload["spec"]["template"])
    spec = template["spec"]
    spec["hostNetwork"] = True
    own = f"{workload['metadata']['name']}-"
    spec["volumes"] = [
        {**volume, "name": own + volume["name"]} for volume in spec["volumes"] if volume["name"] != _KUBELET
    ]
    for container in spec["containers"]:
        container["image"] = f"localhost/{container['image']}"
        container["volumeMounts"] = [
            {**mount, "name": own + mount["name"]} for mount in container["volumeMounts"] if mount["name"] != _KUBELET
        ]
        container["env"] = [
            _variable(entry, workload, services, node) for entry in container["env"] if entry["name"] not in _WITHOUT
        ]
        container.pop("ports", None)  # the host's own
        for name in _PROBES:
            container.pop(name, None)
    metadata = {"name": workload["metadata"]["name"], "labels": template["metadata"]["labels"]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def _variable(entry: Mapping[str, Any], workload: Mapping[str, Any], services: list[str], node: str) -> Object:
    if entry["name"] in _INSTEAD:
        name, value = _INSTEAD[entry["name"]]
        return {"name": name, "value": value}
    if "value" in entry:
        value = entry["value"]
        for service in services:  # podman heeds no hostAliases on the host's network
            value = value.replace(service, _HERE)
        return {"name": entry["name"], "value": value}
    if "fieldRef" not in entry["valueFrom"]:
        return dict(entry)
    fields = {
        "metadata.namespace": workload["metadata"]["namespace"],
        "metadata.name": workload["metadata"]["name"],
        "spec.nodeName": node,
        "status.hostIP": _HERE,
        "status.podIP": _HERE,
    }
    return {"name": entry["name"], "value": fields[entry["valueFrom"]["fieldRef"]["fieldPath"]]}
