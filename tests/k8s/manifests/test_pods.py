"""What pods must keep to that no schema says: security levels, drains, probes, budgets, rights, names that match."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import yaml

from tests.k8s.manifests.rendering import (
    CHART,
    K8S,
    ROOT,
    VARIANTS,
    Object,
    Variant,
    container_list,
    key,
    kustomized,
    of_kind,
    pods,
    templated,
    variables,
)

RESTRICTED_VOLUMES = {"configMap", "emptyDir", "persistentVolumeClaim", "projected", "secret"}

every_variant = pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)


def _pods(variant: Variant) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Pods of both installations; the test of `helm test` among them."""
    yield from pods(kustomized(variant))
    yield from pods(templated(variant))


def restricted_violations(pod: Mapping[str, Any]) -> list[str]:
    """Why the restricted Pod Security level would refuse a pod: the standard's controls, as of Kubernetes 1.37."""
    spec = pod["spec"]
    security = spec.get("securityContext", {})
    wrong = [name for name in ("hostNetwork", "hostPID", "hostIPC") if spec.get(name)]
    if not security.get("runAsNonRoot") or security.get("runAsUser") == 0:
        wrong.append("runAsNonRoot")
    if security.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"):
        wrong.append("seccompProfile")
    for volume in spec.get("volumes", []):
        wrong += [f"volume {volume['name']}: {kind}" for kind in set(volume) - {"name"} - RESTRICTED_VOLUMES]
    for container in container_list(pod):
        inner = container.get("securityContext", {})
        if inner.get("allowPrivilegeEscalation") is not False or inner.get("privileged"):
            wrong.append("allowPrivilegeEscalation")
        if inner.get("capabilities", {}).get("drop") != ["ALL"] or inner["capabilities"].get("add"):
            wrong.append("capabilities")
        wrong += ["hostPort" for port in container.get("ports", []) if port.get("hostPort")]
    return wrong


@every_variant
def test_all_but_the_agent_run_under_the_restricted_level(variant: Variant) -> None:
    checked = 0
    for name, namespace, pod in _pods(variant):
        if pod["spec"]["containers"][0]["name"] in ("fetch", "worker"):
            continue  # partial: the optimizer adds what is missing
        if namespace == "enginehouse-node":
            (mount,) = (volume for volume in pod["spec"]["volumes"] if "hostPath" in volume)
            assert mount["hostPath"]["path"] == "/var/lib/kubelet/pod-resources"
            assert sorted(restricted_violations(pod)) == ["runAsNonRoot", "volume pod-resources: hostPath"]
        else:
            assert restricted_violations(pod) == [], name
        checked += 1
    assert checked == 11


def test_a_lax_pod_is_found_out() -> None:
    (pod,) = (
        pod for name, _, pod in pods(kustomized(VARIANTS[0])) if name == "Deployment/enginehouse/enginehouse-optimizer"
    )
    loose = json.loads(json.dumps(pod))
    loose["spec"]["hostPID"] = True
    loose["spec"]["volumes"].append({"name": "host", "hostPath": {"path": "/"}})
    loose["spec"]["containers"][0]["securityContext"] = {"privileged": True}
    assert set(restricted_violations(loose)) == {
        "hostPID",
        "volume host: hostPath",
        "allowPrivilegeEscalation",
        "capabilities",
    }


@every_variant
def test_containers_write_to_volumes_only_and_say_what_they_take(variant: Variant) -> None:
    for name, _, pod in _pods(variant):
        for container in container_list(pod):
            if container["name"] in ("fetch", "publish"):
                continue
            assert container["securityContext"]["readOnlyRootFilesystem"] is True, name
            assert container["resources"]["requests"].keys() >= {"cpu", "memory"}, name
            assert "memory" in container["resources"]["limits"], name
            mounts = {mount["name"]: mount for mount in container.get("volumeMounts", [])}
            assert "tmp" in mounts, name
            assert mounts.keys() <= {volume["name"] for volume in pod["spec"]["volumes"]}, name
        for volume in pod["spec"]["volumes"]:
            assert "emptyDir" not in volume or volume["emptyDir"]["sizeLimit"], f"{name}: {volume['name']} has no limit"


@every_variant
def test_a_pod_has_longer_to_end_than_its_drain_takes(variant: Variant) -> None:
    drains = 0
    for name, _, pod in _pods(variant):
        drain = variables(pod).get("ENGINEHOUSE_DRAIN_SECONDS")
        if drain is None:
            continue
        (container,) = container_list(pod)
        wait = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        # Endpoints leave while the pod still answers, then calls finish, then workers and stages end.
        assert pod["spec"]["terminationGracePeriodSeconds"] >= wait + float(drain) + 20, name
        assert wait >= 5 or container["name"] == "agent", name
        drains += 1
    assert drains == 8


@every_variant
def test_budgets_never_block_a_drain(variant: Variant) -> None:
    for objects in (kustomized(variant), templated(variant)):
        replicas = {
            thing["metadata"]["name"]: thing["spec"].get("replicas") for thing in of_kind(objects, "Deployment")
        }
        for scaler in of_kind(objects, "HorizontalPodAutoscaler"):
            replicas[scaler["spec"]["scaleTargetRef"]["name"]] = scaler["spec"]["minReplicas"]
        for scaler in of_kind(objects, "ScaledObject"):
            replicas[scaler["spec"]["scaleTargetRef"]["name"]] = scaler["spec"]["minReplicaCount"]
        assert None not in replicas.values()
        budgets = {thing["metadata"]["name"]: thing["spec"] for thing in of_kind(objects, "PodDisruptionBudget")}
        assert set(budgets) == {name for name, count in replicas.items() if count > 1}
        for budget in budgets.values():
            assert budget["maxUnavailable"] == 1
            assert budget["unhealthyPodEvictionPolicy"] == "AlwaysAllow"


@every_variant
def test_probes_and_services_name_ports_that_containers_have(variant: Variant) -> None:
    for objects in (kustomized(variant), templated(variant)):
        labelled = [(name, namespace, pod) for name, namespace, pod in pods(objects)]
        for name, _, pod in labelled:
            for container in container_list(pod):
                numbers = {port["containerPort"] for port in container.get("ports", [])}
                probes = [container[probe] for probe in _PROBES if probe in container]
                assert {probe["grpc"]["port"] for probe in probes} <= numbers, name
                if numbers:
                    assert len(probes) == 3, name
                    environment = variables(pod)
                    assert int(environment["ENGINEHOUSE_PORT"]) in numbers, name
                    health = environment.get("ENGINEHOUSE_HEALTH_PORT", environment["ENGINEHOUSE_PORT"])
                    assert {probe["grpc"]["port"] for probe in probes} == {int(health)}, name
        for service in of_kind(objects, "Service"):
            chosen = [pod for _, namespace, pod in labelled if _selects(service, namespace, pod)]
            assert len(chosen) == 1, key(service)
            names = {port["name"]: port["containerPort"] for port in container_list(chosen[0])[0]["ports"]}
            for port in service["spec"]["ports"]:
                assert names[port["targetPort"]] == port["port"], key(service)


_PROBES = ("startupProbe", "readinessProbe", "livenessProbe")


def _selects(service: Object, namespace: str, pod: Mapping[str, Any]) -> bool:
    wanted = service["spec"]["selector"].items()
    return namespace == service["metadata"]["namespace"] and wanted <= pod["metadata"].get("labels", {}).items()


@every_variant
def test_tokens_are_mounted_only_where_the_api_server_is_called(variant: Variant) -> None:
    calling = {"optimizer", "aggregator"}
    for name, _, pod in _pods(variant):
        (first, *_) = container_list(pod)
        if "ENGINEHOUSE_AUTH" in variables(pod):
            calling.add(first["name"])
        mounted = pod["spec"]["automountServiceAccountToken"]
        assert mounted is (first["name"] in calling and "ports" in first), name
    for objects in (kustomized(variant), templated(variant)):
        accounts = {
            (thing["metadata"]["namespace"], thing["metadata"]["name"]) for thing in of_kind(objects, "ServiceAccount")
        }
        assert accounts == {(namespace, pod["spec"]["serviceAccountName"]) for _, namespace, pod in pods(objects)}


@every_variant
def test_roles_have_no_wildcard_and_no_secrets(variant: Variant) -> None:
    for role in of_kind((*kustomized(variant), *templated(variant)), "Role", "ClusterRole"):
        for rule in role["rules"]:
            assert "*" not in (*rule["verbs"], *rule["resources"], *rule["apiGroups"]), key(role)
            assert not {"secrets", "pods/exec", "serviceaccounts/token"} & set(rule["resources"]), key(role)
    cluster_wide = {
        (resource, verb)
        for role in of_kind(kustomized(variant), "ClusterRole")
        for rule in role["rules"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    assert cluster_wide <= {("nodes", "list"), ("tokenreviews", "create")}


@every_variant
def test_references_between_objects_hold(variant: Variant) -> None:
    made_elsewhere = {"enginehouse-s3"}  # a Secret with somebody's keys
    for objects in (kustomized(variant), templated(variant)):
        names = {key(thing) for thing in objects}
        secrets = {
            f"Secret/{thing['metadata']['namespace']}/{thing['spec']['secretName']}"
            for thing in of_kind(objects, "Certificate")
        }
        for name, namespace, pod in pods(objects):
            assert f"PriorityClass//{pod['spec'].get('priorityClassName', 'enginehouse-batch')}" in names, name
            for volume in pod["spec"]["volumes"]:
                if "configMap" in volume:
                    assert f"ConfigMap/{namespace}/{volume['configMap']['name']}" in names, name
                if "persistentVolumeClaim" in volume:
                    assert f"PersistentVolumeClaim/{namespace}/{volume['persistentVolumeClaim']['claimName']}" in names
                if "secret" in volume and secrets:
                    assert f"Secret/{namespace}/{volume['secret']['secretName']}" in secrets, name
            for container in container_list(pod):
                for entry in container.get("env", []):
                    reference = entry.get("valueFrom", {}).get("configMapKeyRef")
                    if reference:
                        (target,) = (o for o in objects if key(o) == f"ConfigMap/{namespace}/{reference['name']}")
                        assert reference["key"] in target["data"], name
                for source in container.get("envFrom", []):
                    assert source["secretRef"]["name"] in made_elsewhere


@every_variant
def test_users_without_rights_can_read_the_certificates_that_they_mount(variant: Variant) -> None:
    for name, _, pod in _pods(variant):
        security = pod["spec"]["securityContext"]
        if any("secret" in volume for volume in pod["spec"]["volumes"]) and security["runAsUser"]:
            assert security["fsGroup"] == security["runAsGroup"], name


def test_every_overlay_and_component_is_among_the_variants() -> None:
    folders = {path.parent.relative_to(K8S).as_posix() for path in K8S.rglob("kustomization.yaml")}
    tried = {variant.overlay for variant in VARIANTS}
    tried |= {f"components/{name}" for variant in VARIANTS for name in variant.components}
    assert folders - {".", "base"} == tried - {""}


def test_one_version_everywhere() -> None:
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.M)
    assert version
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == version[1]
    images = {
        container["image"]
        for _, _, pod in pods(kustomized(VARIANTS[0]))
        for container in container_list(pod)
        if "image" in container
    }
    assert {image.partition(":")[2] for image in images} == {version[1]}
