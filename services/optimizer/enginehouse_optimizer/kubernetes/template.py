"""The Job of a stage: a pod of three containers, one after the other, over what an operator's template says.

    fetch     (client image)   writes the inputs and the spec into the shared volume
    worker    (worker image)   runs the stage, on the wanted GPU
    publish   (client image)   uploads what the stage wrote

The first two are init containers, so each begins when the one before has ended well, and the pod fails with the first
that fails. They share an emptyDir, and neither the worker nor its image needs gRPC. A GPU that an init container asks
for is the pod's until it ends.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from enginehouse.artifacts import digest_json
from enginehouse.kubernetes.api import Object
from enginehouse.kubernetes.stage_files import SPEC
from enginehouse_optimizer.kubernetes.pod_template import FETCH, PUBLISH, WORKER, containers_of, joined, merged

FOLDER = "/stage"
TOKEN_FOLDER, TOKEN_FILE = "/var/run/secrets/enginehouse", "token"
GPU_PRODUCT = "nvidia.com/gpu.product"
DEFAULT_GPU_RESOURCE = "nvidia.com/gpu"
MANAGER = "enginehouse-optimizer"
MANAGED_BY, INSTANCE, KEY = "app.kubernetes.io/managed-by", "enginehouse/optimizer", "enginehouse/stage-key"
# Events go to standard output and everything else to standard error: the log keeps the lines of both apart, so that a
# framework's half a line and an event never become one.
_LAUNCH = (
    "import os, sys; os.dup2(1, 3); os.dup2(2, 1); "
    "os.execv(sys.executable, [sys.executable, '-m', 'enginehouse_worker', 'stage', '--spec', sys.argv[1], "
    "'--events-fd', '3'])"
)
_TOKEN_SECONDS = 3600
# What the restricted Pod Security level asks for.
_POD_SECURITY = {
    "runAsNonRoot": True,
    "runAsUser": 10001,
    "runAsGroup": 10001,
    "fsGroup": 10001,
    "seccompProfile": {"type": "RuntimeDefault"},
}
_CONTAINER_SECURITY = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}


@dataclass(frozen=True)
class ClusterSettings:
    """What all Jobs have in common.

    Attributes:
        namespace: where Jobs are made.
        images: worker image by environment.
        client_image: image of `fetch` and `publish`, which has the `enginehouse` package.
        optimizer: address of this optimizer as pods reach it.
        instance: tells this optimizer's Jobs from another one's in the namespace; a label's value.
        template: the operator's pod (`metadata`, `spec`); its containers named fetch, worker and publish are laid over
            ours. The extended resource that its worker's limits name is how a GPU is asked for.
        token_audience: of the service account token that the pod shows the optimizer; empty: none.
        plaintext: the optimizer speaks no TLS, so that the token goes over plain text (which its settings allow).
        pending_seconds: how long a pod may wait for a node.
        image_seconds: how long an image may fail to be pulled.
        kept_seconds: how long an ended Job that nobody deletes stays.
    """

    namespace: str
    images: Mapping[str, str]
    client_image: str
    optimizer: str
    instance: str = "optimizer"
    template: Mapping[str, Any] = field(default_factory=dict)
    token_audience: str = ""
    plaintext: bool = False
    pending_seconds: float = 1800.0
    image_seconds: float = 120.0
    kept_seconds: int = 86400

    @property
    def gpu_resource(self) -> str:
        """Such as "nvidia.com/gpu", or "nvidia.com/mig-1g.10gb"."""
        limits = _limits(containers_of(self.template).get(WORKER, {}))
        return next((name for name in limits if "/" in name), DEFAULT_GPU_RESOURCE)


@dataclass(frozen=True)
class JobOrder:
    """One stage: `gpu` is a product that its node must have, empty for none; `seconds` what it may take."""

    name: str
    stage: str
    key: str
    project: str
    environment: str
    order_digest: str
    gpu: str = ""
    seconds: float | None = None


def make_job(settings: ClusterSettings, order: JobOrder) -> Object:
    """The Job of a stage."""
    template = copy.deepcopy(dict(settings.template))
    metadata, spec = template.get("metadata") or {}, template.get("spec") or {}
    given = containers_of(settings.template)
    if not order.gpu and (limits := _limits(given.get(WORKER, {}))):
        given[WORKER]["resources"]["limits"] = {name: value for name, value in limits.items() if "/" not in name}
    containers = [merged(container, given.get(container["name"], {})) for container in _containers(settings, order)]
    labels = {
        "app.kubernetes.io/name": "enginehouse",
        "app.kubernetes.io/component": "build",
        **(metadata.get("labels") or {}),
        MANAGED_BY: MANAGER,
        INSTANCE: settings.instance,
        KEY: label_of(order.key),
    }
    annotations = {
        **(metadata.get("annotations") or {}),
        "enginehouse/project": order.project,
        "enginehouse/stage": order.stage,
        "enginehouse/key": order.key,
    }
    selector = {**(spec.get("nodeSelector") or {}), **({GPU_PRODUCT: order.gpu} if order.gpu else {})}
    pod = {
        "automountServiceAccountToken": False,
        **spec,
        "restartPolicy": "Never",
        "securityContext": merged(_POD_SECURITY, spec.get("securityContext") or {}),
        **({"nodeSelector": selector} if selector else {}),
        "initContainers": containers[:2],
        "containers": containers[2:],
        "volumes": joined(_volumes(settings), spec.get("volumes") or [], "name"),
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": order.name,
            "namespace": settings.namespace,
            "labels": labels,
            "annotations": annotations,
        },
        "spec": {
            # A stage that fails says why; running it again says the same. A pod that a drain or a lost node took away
            # is another matter: another one takes its place.
            "backoffLimit": 0,
            "podFailurePolicy": {
                "rules": [{"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}]
            },
            **_deadline(settings, order),
            "ttlSecondsAfterFinished": settings.kept_seconds,
            "template": {"metadata": {"labels": labels, "annotations": annotations}, "spec": pod},
        },
    }


def label_of(key: str) -> str:
    """A key as a label's value, which has at most 63 characters."""
    return key.rpartition(":")[2][:63]


def job_name(instance: str, stage: str, project: str, key: str) -> str:
    """The same stage of the same project has the same name, so that its Job is found again; another has another."""
    return f"enginehouse-{stage}-{digest_json([instance, project, key]).rpartition(':')[2][:20]}"


def _deadline(settings: ClusterSettings, order: JobOrder) -> Object:
    """A backstop for when nobody watches: the optimizer itself looks at the parts of this time."""
    if order.seconds is None:
        return {}
    return {"activeDeadlineSeconds": int(settings.pending_seconds + settings.image_seconds + 2 * order.seconds + 600)}


def _containers(settings: ClusterSettings, order: JobOrder) -> list[Object]:
    files = ["python", "-m", "enginehouse.kubernetes.stage_files"]
    variables = {
        "ENGINEHOUSE_OPTIMIZER": settings.optimizer,
        "ENGINEHOUSE_PROJECT": order.project,
        "HOME": "/tmp",
    }
    token = []
    if settings.token_audience:
        variables["ENGINEHOUSE_CLIENT_TOKEN_FILE"] = f"{TOKEN_FOLDER}/{TOKEN_FILE}"
        if settings.plaintext:
            variables["ENGINEHOUSE_CLIENT_ALLOW_PLAINTEXT"] = "true"
        token.append({"name": "token", "mountPath": TOKEN_FOLDER, "readOnly": True})
    mounts = [{"name": "stage", "mountPath": FOLDER}, {"name": "tmp", "mountPath": "/tmp"}]
    client: Object = {
        "image": settings.client_image,
        "env": [{"name": name, "value": value} for name, value in variables.items()],
        "volumeMounts": [*mounts, *token],
        "securityContext": _CONTAINER_SECURITY,
        "terminationMessagePolicy": "File",
        "resources": {"requests": {"cpu": "100m", "memory": "256Mi"}, "limits": {"memory": "1Gi"}},
    }
    worker: Object = {
        "name": WORKER,
        "image": settings.images[order.environment],
        "command": ["python", "-c", _LAUNCH, f"{FOLDER}/{SPEC}"],
        "env": [{"name": "HOME", "value": "/tmp"}, {"name": "PYTHONUNBUFFERED", "value": "1"}],
        "volumeMounts": mounts,
        "securityContext": _CONTAINER_SECURITY,
    }
    if order.gpu:
        worker["resources"] = {"limits": {settings.gpu_resource: "1"}}
    return [
        {**client, "name": FETCH, "command": [*files, "fetch", "--order", order.order_digest, "--folder", FOLDER]},
        worker,
        {**client, "name": PUBLISH, "command": [*files, "publish", "--folder", FOLDER]},
    ]


def _volumes(settings: ClusterSettings) -> list[Object]:
    volumes: list[Object] = [{"name": "stage", "emptyDir": {}}, {"name": "tmp", "emptyDir": {}}]
    if settings.token_audience:
        token = {
            "audience": settings.token_audience,
            "expirationSeconds": _TOKEN_SECONDS,
            "path": TOKEN_FILE,
        }
        volumes.append({"name": "token", "projected": {"sources": [{"serviceAccountToken": token}]}})
    return volumes


def _limits(container: Mapping[str, Any]) -> dict[str, Any]:
    return dict((container.get("resources") or {}).get("limits") or {})
