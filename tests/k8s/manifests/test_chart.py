"""The Helm chart: it says the same as the kustomizations, and refuses wrong values with a sentence."""

from __future__ import annotations

import re
import subprocess
from typing import Any

import pytest
import yaml

from tests.k8s.manifests.rendering import (
    CHART,
    HELM,
    VARIANTS,
    Object,
    Variant,
    build_pod,
    container_list,
    helm_template,
    key,
    kustomized,
    of_kind,
    pods,
    run,
    templated,
)

# Who made an object; by design not the same.
MAKER = {"app.kubernetes.io/managed-by", "helm.sh/chart", "app.kubernetes.io/version", "app.kubernetes.io/part-of"}
# Empty, these say "all" or "with defaults".
MEANT_EMPTY = {"podSelector", "emptyDir", "selfSigned"}


def comparable(value: Any, name: str = "") -> Any:
    """An object without what may differ: the maker's labels, the order of named things, absent or empty."""
    if isinstance(value, dict):
        if name == "labels":
            value = {label: text for label, text in value.items() if label not in MAKER}
        if name == "data" and "pod.yaml" in value:
            value = {"pod": build_pod({"data": value})}
        elif name == "data":
            value = {file: _content(file, text) for file, text in value.items()}
        walked = {field: comparable(inner, field) for field, inner in value.items()}
        return {field: inner for field, inner in walked.items() if field in MEANT_EMPTY or inner not in (None, {}, [])}
    if isinstance(value, list):
        items = [comparable(item) for item in value]
        named = items and all(isinstance(item, dict) and "name" in item for item in items)
        return sorted(items, key=lambda item: str(item["name"])) if named else items
    return value


def _content(name: str, text: str) -> Any:
    return yaml.safe_load(text) if name.endswith((".yaml", ".json")) else text


def _by_key(objects: tuple[Object, ...]) -> dict[str, Any]:
    hooks = {key(thing) for thing in objects if "helm.sh/hook" in thing["metadata"].get("annotations", {})}
    found = {key(thing): comparable(thing) for thing in objects if key(thing) not in hooks}
    assert len(found) == len(objects) - len(hooks), "two objects have one name"
    return found


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_kustomize_and_helm_make_the_same_objects(variant: Variant) -> None:
    ours, theirs = _by_key(kustomized(variant)), _by_key(templated(variant))
    assert sorted(ours) == sorted(theirs)
    for name in ours:
        assert ours[name] == theirs[name], name


def test_helm_lint_is_content() -> None:
    for values in ([], ["--values", str(CHART / "values-dev.yaml")]):
        run([str(HELM), "lint", "--strict", str(CHART), *values])


# What is wrong, and what the refusal must say.
REFUSED = [
    (("inference.replicas=-1",), "replicas"),
    (("inference.backend=pytorch",), "backend"),
    (("inference.replica=3",), "replica"),
    (("optimizer.image.digest=sha256:12",), "digest"),
    (("autoscaling.kind=vertical",), "kind"),
    (("image.pullPolicy=Sometimes",), "pullPolicy"),
    (("optimizer.env.LOG_LEVEL=debug",), "LOG_LEVEL"),
    (("store.options=[]",), "options"),
    (("namespace.node=Not_A_Name",), "node"),
    (("gpu.enabled=false",), "set inference.backend=onnxruntime, or gpu.enabled=true"),
    (("auth.enabled=true",), "plain text: set tls.enabled=true"),
    (("tls.certManager.enabled=true",), "set tls.enabled=true too"),
    (
        ("autoscaling.kind=hpa", "autoscaling.minReplicas=9"),
        "minReplicas is 9 and maxReplicas 8: set maxReplicas to at least minReplicas",
    ),
    (("telemetry.agent.enabled=false",), "or telemetry.aggregator.enabled=false"),
    (
        ("benchmark.enabled=false", "store.url=s3://b", "store.resultsUrl=s3://b/r"),
        "set it to true, or leave store.resultsUrl empty",
    ),
    (("namespace.node=enginehouse",), "Set namespace.node to another name"),
]


@pytest.mark.parametrize(
    ("values", "said"), REFUSED, ids=lambda value: " ".join(value) if isinstance(value, tuple) else ""
)
def test_wrong_values_are_refused_with_a_sentence(values: tuple[str, ...], said: str) -> None:
    with pytest.raises(subprocess.CalledProcessError) as refused:
        helm_template(*(part for value in values for part in ("--set", value)))
    assert said in refused.value.stderr


def test_every_value_has_a_schema() -> None:
    schema = yaml.safe_load((CHART / "values.schema.json").read_text())

    def walk(values: Any, known: Any, path: str) -> None:
        if not isinstance(values, dict) or not values or "properties" not in known:
            return
        assert known.get("additionalProperties") is False, f"{path or 'the root'} takes any name"
        for name, value in values.items():
            where = f"{path}.{name}".lstrip(".")
            assert name in known["properties"], f"no schema for {where}"
            inner = known["properties"][name]
            walk(value, schema["$defs"][inner["$ref"].rpartition("/")[2]] if "$ref" in inner else inner, where)

    walk(yaml.safe_load((CHART / "values.yaml").read_text()), schema, "")


def test_images_take_a_registry_a_tag_and_digests() -> None:
    digest = "sha256:" + "0123456789abcdef" * 4
    text = helm_template(
        "--set",
        f"image.registry=registry.example/team/,image.tag=v1.2,optimizer.image.digest={digest}",
        "--set",
        f"workers.tensorrt.digest={digest},inference.image.repository=mine/inference,inference.image.tag=v9",
    )
    images = {image for _, _, pod in pods(tuple(yaml.safe_load_all(text))) for image in _images(pod)}
    assert {
        f"registry.example/team/enginehouse/optimizer:v1.2@{digest}",
        "registry.example/team/mine/inference:v9",
        "registry.example/team/enginehouse/telemetry:v1.2",
    } <= images
    assert f"registry.example/team/enginehouse/worker-tensorrt:v1.2@{digest}" in text


def _images(pod: Any) -> list[str]:
    return [entry["image"] for entry in pod["spec"]["containers"] if "image" in entry]


def test_releases_of_other_names_and_namespaces_hold_together() -> None:
    """No name of the default release is left over in another one's."""
    objects = templated(VARIANTS[0], release="blue", namespace="vision")
    for thing in objects:
        node = thing["metadata"].get("namespace") == "enginehouse-node"
        if thing["kind"] != "Namespace":
            assert thing["metadata"]["name"].startswith("blue-enginehouse"), key(thing)
            assert node or thing["metadata"].get("namespace", "vision") == "vision", key(thing)
    text = re.sub(r"- enginehouse-\S+|enginehouse/\S+", "", yaml.safe_dump_all(objects))  # commands and images
    assert re.findall(r"(?<!blue-)enginehouse-(?:optimizer|inference|telemetry|build|benchmark|client)\b", text) == []


def test_environment_variables_and_disruption_budget_follow_values() -> None:
    arguments = ("--set", "inference.env.ENGINEHOUSE_LOG_LEVEL=debug", "--set", "inference.replicas=1")
    objects = tuple(yaml.safe_load_all(helm_template(*arguments)))
    (pod,) = (pod for name, _, pod in pods(objects) if name.endswith("Deployment/enginehouse/enginehouse-inference"))
    assert {"name": "ENGINEHOUSE_LOG_LEVEL", "value": "debug"} in container_list(pod)[0]["env"]
    assert of_kind(objects, "PodDisruptionBudget") == []


def test_the_notes_name_the_next_commands() -> None:
    install = [str(HELM), "install", "eh-enginehouse", str(CHART), "--namespace", "vision", "--dry-run=client"]
    notes = run(install).partition("NOTES:")[2]
    for command in (
        "kubectl -n vision rollout status deployment/eh-enginehouse-optimizer",
        "helm test eh-enginehouse -n vision",
        "create job bench-1 --from=cronjob/eh-enginehouse-benchmark",
    ):
        assert command in notes


def test_helm_test_calls_optimizer_and_inference() -> None:
    (test,) = (thing for thing in templated(VARIANTS[0]) if thing["kind"] == "Pod")
    assert test["metadata"]["annotations"]["helm.sh/hook"] == "test"
    assert [entry["command"] for entry in test["spec"]["containers"]] == [
        ["enginehouse", "engines", "list"],
        ["enginehouse", "serving"],
    ]
