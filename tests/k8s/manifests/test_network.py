"""The network policies let through what pods call, and nothing needs more."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pytest

from tests.k8s.manifests.rendering import (
    VARIANTS,
    Object,
    Variant,
    key,
    kustomized,
    of_kind,
    pods,
    templated,
    variables,
)

Peer = tuple[str, Mapping[str, str]]
"""A namespace, and a pod's labels."""

every_variant = pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
_ADDRESS = re.compile(r"(?P<service>[a-z-]+)\.(?P<namespace>[a-z-]+)\.svc:(?P<port>\d+)")
_SERVICE = re.compile(r"(?P<namespace>[a-z-]+)/(?P<service>[a-z-]+):(?P<port>\d+)")


@every_variant
def test_network_policies_let_through_what_pods_call(variant: Variant) -> None:
    """Each address in a variable is one that the caller's egress and the target's ingress allow."""
    for objects in (kustomized(variant), templated(variant)):
        policies = of_kind(objects, "NetworkPolicy")
        services = {key(thing).partition("/")[2]: thing for thing in of_kind(objects, "Service")}
        labels = {name: (namespace, pod["metadata"]["labels"]) for name, namespace, pod in pods(objects)}
        components = {peer[1]["app.kubernetes.io/component"]: peer for peer in labels.values()}
        calls = 0
        for name, _, pod in pods(objects):
            for variable, value in variables(pod).items():
                address = _ADDRESS.fullmatch(value) or _SERVICE.fullmatch(value)
                if address is None or variable == "ENGINEHOUSE_KUBERNETES_OPTIMIZER":  # for the pods of its Jobs
                    continue
                service = services[f"{address['namespace']}/{address['service']}"]
                target = components[service["spec"]["selector"]["app.kubernetes.io/component"]]
                port = int(address["port"])
                assert allowed(policies, "egress", labels[name], target, port), f"{name} may not call {value}"
                assert allowed(policies, "ingress", target, labels[name], port), f"{value} takes no calls of {name}"
                calls += 1
        assert calls >= 5


def test_what_nobody_allowed_is_refused() -> None:
    objects = kustomized(VARIANTS[0])
    policies = of_kind(objects, "NetworkPolicy")
    labels = {name.rpartition("/")[2]: (space, pod["metadata"]["labels"]) for name, space, pod in pods(objects)}
    optimizer, inference = labels["enginehouse-optimizer"], labels["enginehouse-inference"]
    stranger = ("shop", {"app": "web"})
    for target, port in ((optimizer, 8010), (inference, 8001), (labels["enginehouse-telemetry"], 8020)):
        assert not allowed(policies, "ingress", target, stranger, port)
    assert not allowed(policies, "egress", inference, ("shop", {}), 443)
    assert not allowed(policies, "ingress", optimizer, inference, 22)


def test_namespaces_and_pods_with_the_label_are_clients() -> None:
    policies = of_kind(kustomized(VARIANTS[0]), "NetworkPolicy")
    client = {"enginehouse.dev/client": "true"}
    for component, port in (("optimizer", 8010), ("inference", 8001), ("telemetry-aggregator", 8021)):
        target = ("enginehouse", _labels(component))
        assert allowed(policies, "ingress", target, ("shop", {}), port, namespace_labels=client)
        assert allowed(policies, "ingress", target, ("enginehouse", client), port)


def _labels(component: str) -> dict[str, str]:
    names = {"name": "enginehouse", "instance": "enginehouse", "component": component}
    return {f"app.kubernetes.io/{name}": value for name, value in names.items()}


def allowed(
    policies: list[Object],
    way: str,
    own: Peer,
    other: Peer,
    port: int,
    namespace_labels: Mapping[str, str] | None = None,
) -> bool:
    """Whether a policy of `own` lets it call `other` (way "egress"), or be called ("ingress"), on a port."""
    for policy in policies:
        spec = policy["spec"]
        if policy["metadata"]["namespace"] != own[0] or not _matches(spec["podSelector"], own[1]):
            continue
        for rule in spec.get(way, []):
            if port in {entry["port"] for entry in rule["ports"]}:
                peers = rule.get("from" if way == "ingress" else "to")
                if peers is None or any(_is_peer(peer, own[0], other, namespace_labels or {}) for peer in peers):
                    return True
    return False


def _is_peer(peer: Mapping[str, Any], namespace: str, other: Peer, namespace_labels: Mapping[str, str]) -> bool:
    spaces = peer.get("namespaceSelector")
    if spaces is None and other[0] != namespace:
        return False
    if spaces is not None and not _matches(spaces, {"kubernetes.io/metadata.name": other[0], **namespace_labels}):
        return False
    return _matches(peer.get("podSelector", {}), other[1])


def _matches(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    if not selector.get("matchLabels", {}).items() <= labels.items():
        return False
    return all(labels.get(wanted["key"]) in wanted["values"] for wanted in selector.get("matchExpressions", []))
