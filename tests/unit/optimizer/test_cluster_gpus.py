"""Which GPU a target is built on, in a cluster and here; templates that are none; names of Jobs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from enginehouse_optimizer.kubernetes.gpus import place_target, products_of
from enginehouse_optimizer.kubernetes.pod_template import load_template
from enginehouse_optimizer.kubernetes.template import job_name
from enginehouse_optimizer.pipeline.gpus import LocalGpus
from enginehouse_optimizer.pipeline.inputs import Target
from enginehouse_optimizer.pipeline.machine import GPU

sys.path.insert(0, str(Path(__file__).parents[2]))

from kubernetes_replay import fill_from_recording

from enginehouse.artifacts import digest_bytes
from enginehouse.errors import FailedPreconditionError


def node(product: str = "NVIDIA-H200", **change: Any) -> dict[str, Any]:
    value = fill_from_recording("08-nodes", "NodeList")
    value["metadata"]["labels"]["nvidia.com/gpu.product"] = product
    for path, item in change.items():
        value[path] |= item
    return value


def tensorrt(gpu: str = "") -> Target:
    return Target("tensorrt", "FP16", gpu_product=gpu)


def test_products_are_counted_as_recorded_nodes_have_them() -> None:
    cordoned = node("NVIDIA-A100", spec={"unschedulable": True})
    first, second = products_of([node(), cordoned, node()], "nvidia.com/gpu")
    assert (first.name, first.nodes, first.open_nodes, first.gpus) == ("NVIDIA-A100", 1, 0, 4)
    assert (second.name, second.nodes, second.gpus, second.driver) == ("NVIDIA-H200", 2, 8, "570.124.06")
    assert products_of([node()], "nvidia.com/mig-1g.10gb")[0].gpus == 0


def test_a_target_goes_to_the_product_that_it_names_or_the_only_one() -> None:
    one, two = products_of([node()], "nvidia.com/gpu"), products_of([node(), node("NVIDIA-A100")], "nvidia.com/gpu")
    assert place_target(tensorrt(), one).gpu_product == "NVIDIA-H200"
    assert place_target(tensorrt("NVIDIA-A100"), two).gpu_product == "NVIDIA-A100"
    assert place_target(Target("onnxruntime", "FP32"), two).gpu_product == ""
    assert place_target(Target("onnxruntime", "FP32", gpu_product="NVIDIA-A100"), two).gpu_product == "NVIDIA-A100"
    wrong = [
        (tensorrt(), two, r"several: name one.*NVIDIA-A100 \(4 GPUs on 1 node\), NVIDIA-H200"),
        (tensorrt(), [], "label nvidia.com/gpu.product.*feature discovery"),
        (tensorrt("NVIDIA-B200"), two, r"'NVIDIA-B200': it has NVIDIA-A100 \(4 GPUs on 1 node\), NVIDIA-H200"),
        (tensorrt("NVIDIA-B200"), [], "no node with the label"),
        (tensorrt(), products_of([node()], "nvidia.com/none"), "device plugin"),
    ]
    for target, products, said in wrong:
        with pytest.raises(FailedPreconditionError, match=said):
            place_target(target, products)


def test_this_machine_builds_for_the_gpu_that_it_has() -> None:
    here = LocalGpus(lambda: {GPU: json.dumps(["NVIDIA H200"])})
    assert here.place_target(tensorrt("nvidia-h200")) == here.place_target(tensorrt()) == tensorrt()
    for gpus, facts in (("NVIDIA-B200", ["NVIDIA H200"]), ("NVIDIA-H200", [])):
        elsewhere = LocalGpus(lambda facts=facts: {GPU: json.dumps(facts)})  # type: ignore[misc]
        with pytest.raises(FailedPreconditionError, match=r"not on this machine.*ENGINEHOUSE_EXECUTOR=kubernetes"):
            elsewhere.place_target(tensorrt(gpus))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("spec: [", "cannot be read"),
        ("- a", "is no pod"),
        ("metadata: {}", "is no pod"),
        ("spec: {containers: [{name: main}]}", "container 'main': expected only fetch, worker, publish"),
    ],
)
def test_templates_that_are_none(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "pod.yaml"
    path.write_text(text)
    with pytest.raises(FailedPreconditionError, match=said):
        load_template(path)
    with pytest.raises(FailedPreconditionError, match="cannot be read"):
        load_template(tmp_path / "none")


def test_a_folder_of_templates_is_put_together(tmp_path: Path) -> None:
    files = {
        "pod.yaml": "{metadata: {labels: {a: b}}, spec: {tolerations: [{key: gpu}], volumes: [{name: tmp}], "
        "containers: [{name: worker, env: [{name: A, value: '1'}, {name: B, value: '1'}], "
        "resources: {limits: {memory: 1Gi, nvidia.com/gpu: 1}}}]}}",
        "b-last.yaml": "spec: {runtimeClassName: last, tolerations: null}",
        "a-mig.yaml": "spec: {runtimeClassName: first, volumes: [{name: tls}, {name: tmp, emptyDir: {}}], "
        "containers: [{name: worker, env: [{name: B, value: '2'}], "
        "resources: {limits: {nvidia.com/gpu: null, nvidia.com/mig: 1}}}, "
        "{name: fetch}]}",
        "notes.txt": "not a pod",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "..2026.yaml").mkdir()  # as a mounted ConfigMap has
    assert load_template(tmp_path) == {
        "metadata": {"labels": {"a": "b"}},
        "spec": {
            "runtimeClassName": "last",
            "volumes": [{"name": "tls"}, {"name": "tmp", "emptyDir": {}}],
            "containers": [
                {
                    "name": "worker",
                    "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}],
                    "resources": {"limits": {"memory": "1Gi", "nvidia.com/mig": 1}},
                },
                {"name": "fetch"},
            ],
        },
    }
    (tmp_path / "c-wrong.yaml").write_text("spec: {containers: [{name: main}]}")
    with pytest.raises(FailedPreconditionError, match=r"c-wrong\.yaml has a container 'main'"):
        load_template(tmp_path)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(FailedPreconditionError, match=r"no \*\.yaml file: expected pod\.yaml"):
        load_template(empty)


def test_names_of_jobs() -> None:
    key = digest_bytes(b"k")
    names = {
        job_name("o", stage, project, key)
        for stage in ("build", "verify")
        for project in ("p", "a_very.long-project" * 3)
    }
    assert len(names) == 4, "a Job of one project is no other project's"
    assert all(len(name) <= 63 for name in names)
    assert job_name("o", "build", "p", key) == job_name("o", "build", "p", key)
