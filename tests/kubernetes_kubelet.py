"""Pods of the fake API server that really run: each container is a process of this machine.

    kubelet = Kubelet(cluster, {"worker:1": Image(python, variables)}, folder)

A scheduler, a kubelet and a Job controller in one, for Jobs of one pod. An image is an interpreter and its variables;
`python` in a command becomes that interpreter, and the mount path of an emptyDir a folder of the pod. What pods and
Jobs say on the way is what `tests/recordings/k8s` has of real ones.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from kubernetes_fake import FakeKubernetes
from kubernetes_store import ApiError, Object, containers_of, now

_TRACKING = "batch.kubernetes.io/job-tracking"


@dataclass(frozen=True)
class Image:
    """An interpreter, and variables that its containers have."""

    python: Path
    variables: Mapping[str, str] = field(default_factory=dict)


class Kubelet:
    """Runs the Jobs that are made from now on."""

    def __init__(self, cluster: FakeKubernetes, images: Mapping[str, Image], folder: Path) -> None:
        self._cluster = cluster
        self._images = images
        self._folder = folder
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._gone: set[str] = set()
        self._changing = threading.Lock()
        cluster.on_job = self._run
        cluster.on_pod_gone = self._kill

    def close(self) -> None:
        """Kill what runs."""
        for pod in self._cluster.store.select("pods", "", lambda _: True):
            self._kill(pod)

    def evict(self, pod: str, namespace: str = "enginehouse") -> None:
        """Take a pod away, as a drain does."""
        condition = {"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}
        condition["message"] = "Eviction API: evicting"
        self._update(namespace, pod, lambda value: value["status"].setdefault("conditions", []).append(condition))
        self._kill(self._cluster.store.get("pods", namespace, pod))

    def running(self) -> list[str]:
        """Names of the pods with a process."""
        return [name for name, process in self._processes.items() if process.poll() is None]

    def _run(self, job: Object) -> None:
        with contextlib.suppress(ApiError):  # the Job is gone
            while not self._attempt(job):
                pass

    def _attempt(self, job: Object) -> bool:
        """Run one pod of a Job; returns whether the Job has ended."""
        store, namespace = self._cluster.store, job["metadata"]["namespace"]
        pod = store.create("pods", _pod(job))
        pod_name = pod["metadata"]["name"]
        self._job(job, {"startTime": now(), "active": 1, "terminating": 0, "uncountedTerminatedPods": {}, "ready": 0})
        node = self._schedule(pod)
        self._update(namespace, pod_name, lambda value: value["spec"].update(nodeName=node))
        order = containers_of(pod)
        states: dict[str, Object] = {container: {"waiting": {"reason": "PodInitializing"}} for container in order}
        status, message = 0, ""
        for container in order:
            self._pull(pod, container, states)
            states[container] = {"running": {"startedAt": now()}}
            self._show(pod, states, "Running" if container == order[-1] else "Pending")
            status, message = self._container(pod, container)
            reason = "Completed" if status == 0 else "Error"
            terminated: Object = {"exitCode": status, "reason": reason, **({"message": message} if message else {})}
            states[container] = {"terminated": terminated}
            if status != 0:
                break
        self._show(pod, states, "Failed" if status else "Succeeded")
        conditions = store.get("pods", namespace, pod_name)["status"]["conditions"]
        if any(condition["type"] == "DisruptionTarget" for condition in conditions):
            store.delete("pods", namespace, pod_name)
            return False
        kinds = ("FailureTarget", "Failed") if status else ("SuccessCriteriaMet", "Complete")
        reason = "BackoffLimitExceeded" if status else "CompletionsReached"
        verdict = [{"type": kind, "status": "True", "reason": reason, "message": reason} for kind in kinds]
        ended = {"startTime": now(), "terminating": 0, "uncountedTerminatedPods": {}, "ready": 0}
        self._job(job, {**ended, "conditions": verdict[:1]})
        self._job(job, {**ended, "conditions": verdict, **({"failed": 1} if status else {"succeeded": 1})})
        return True

    def _schedule(self, pod: Object) -> str:
        """The node that a pod goes to, awaited."""
        store, metadata = self._cluster.store, pod["metadata"]
        wanted = pod["spec"].get("nodeSelector", {})
        while True:
            for node in store.select("nodes", "", lambda _: True):
                if wanted.items() <= node["metadata"]["labels"].items():
                    return str(node["metadata"]["name"])
            count = len(store.select("nodes", "", lambda _: True))
            message = f"0/{count} nodes are available: {count} node(s) didn't match Pod's node affinity/selector."
            condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
            change = {"phase": "Pending", "conditions": [condition]}
            self._update(metadata["namespace"], metadata["name"], partial(_set_status, change))
            with store.changed:
                if self._cluster.stopping.is_set() or metadata["uid"] in self._gone:
                    raise ApiError(404, "NotFound", "the pod is gone")
                store.changed.wait(0.2)

    def _pull(self, pod: Object, name: str, states: dict[str, Object]) -> None:
        """Wait for ever for an image that is not there."""
        specs = {c["name"]: c for c in (*pod["spec"]["initContainers"], *pod["spec"]["containers"])}
        image = specs[name]["image"]
        while image not in self._images:
            for reason in ("ErrImagePull", "ImagePullBackOff"):
                states[name] = {"waiting": {"reason": reason, "message": f'Back-off pulling image "{image}"'}}
                self._show(pod, states, "Pending")
            with self._cluster.store.changed:
                if self._cluster.stopping.is_set() or pod["metadata"]["uid"] in self._gone:
                    raise ApiError(404, "NotFound", "the pod is gone")
                self._cluster.store.changed.wait(0.2)

    def _container(self, pod: Object, name: str) -> tuple[int, str]:
        """Run a container to its end; returns its exit status and termination message."""
        spec = next(c for c in (*pod["spec"]["initContainers"], *pod["spec"]["containers"]) if c["name"] == name)
        image, uid, namespace = self._images[spec["image"]], pod["metadata"]["uid"], pod["metadata"]["namespace"]
        volumes = self._folder / uid
        message = volumes / f"{name}.message"
        mounts = {m["mountPath"]: str(volumes / m["name"]) for m in spec["volumeMounts"] if m["name"] == "stage"}
        for place in mounts.values():
            Path(place).mkdir(parents=True, exist_ok=True)

        def inside(text: str) -> str:
            for mount, place in mounts.items():
                text = place + text[len(mount) :] if text == mount or text.startswith(f"{mount}/") else text
            return text

        command = [str(image.python) if part == "python" else inside(part) for part in spec["command"]]
        given = {item["name"]: item["value"] for item in spec.get("env", ())}
        kept = {key: value for key, value in os.environ.items() if not key.startswith("ENGINEHOUSE_")}
        variables = {**kept, **given, **image.variables, "ENGINEHOUSE_TERMINATION_MESSAGE": str(message)}
        with self._changing:
            if uid in self._gone:
                return 137, ""
            process = subprocess.Popen(
                command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
            )
            self._processes[pod["metadata"]["name"]] = process
        assert process.stdout is not None
        self._cluster.write_log(namespace, pod["metadata"]["name"], name)
        for line in process.stdout:
            self._cluster.write_log(namespace, pod["metadata"]["name"], name, line.decode(errors="replace"))
        status = process.wait()
        self._cluster.write_log(namespace, pod["metadata"]["name"], name, closed=True)
        said = message.read_text() if message.exists() else ""
        if status or name == containers_of(pod)[-1]:
            shutil.rmtree(volumes, ignore_errors=True)
        return (128 - status if status < 0 else status), said

    def _show(self, pod: Object, states: Mapping[str, Object], phase: str) -> None:
        initial = {c["name"] for c in pod["spec"]["initContainers"]}
        specs = {c["name"]: c for c in (*pod["spec"]["initContainers"], *pod["spec"]["containers"])}
        entries = [
            {"name": n, "state": s, "lastState": {}, "ready": False, "restartCount": 0, "image": specs[n]["image"]}
            for n, s in states.items()
        ]

        def change(value: Object) -> None:
            conditions = [c for c in value["status"].get("conditions", ()) if c["type"] == "DisruptionTarget"]
            value["status"] = {
                "phase": phase,
                "conditions": [*conditions, {"type": "PodScheduled", "status": "True"}],
                "startTime": now(),
                "initContainerStatuses": [e for e in entries if e["name"] in initial],
                "containerStatuses": [e for e in entries if e["name"] not in initial],
            }

        self._update(pod["metadata"]["namespace"], pod["metadata"]["name"], change)

    def _job(self, job: Object, status: Object) -> None:
        metadata = job["metadata"]
        self._cluster.store.update(
            "jobs", metadata["namespace"], metadata["name"], lambda value: value.update(status=status)
        )

    def _update(self, namespace: str, name: str, change: Any) -> None:
        self._cluster.store.update("pods", namespace, name, change)

    def _kill(self, pod: Object) -> None:
        with self._changing:
            self._gone.add(pod["metadata"]["uid"])
            process = self._processes.get(pod["metadata"]["name"])
        if process is not None and process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def _set_status(status: Object, value: Object) -> None:
    value["status"] = status


def _pod(job: Object) -> Object:
    template, metadata = job["spec"]["template"], job["metadata"]
    owner = {
        "apiVersion": "batch/v1", "kind": "Job", "name": metadata["name"], "uid": metadata["uid"], "controller": True,
    }  # fmt: skip
    return {
        "metadata": {
            "generateName": f"{metadata['name']}-",
            "namespace": metadata["namespace"],
            "labels": template["metadata"]["labels"],
            "ownerReferences": [owner],
            "finalizers": [_TRACKING],
        },
        "spec": template["spec"],
        "status": {"phase": "Pending"},
    }
