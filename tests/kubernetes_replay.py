"""What became of recorded Jobs, played again for Jobs of other names: every step of Job and pod, in the same order."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kubernetes_store import ApiError, Object

if TYPE_CHECKING:
    from kubernetes_fake import FakeKubernetes

RECORDINGS = Path(__file__).parent / "recordings" / "k8s"
_LABELS = ("batch.kubernetes.io/job-name", "batch.kubernetes.io/controller-uid", "job-name", "controller-uid")


@lru_cache
def exchanges(recording: str) -> tuple[Object, ...]:
    """The exchanges of a recording, such as "01-job-success"."""
    with (RECORDINGS / f"{recording}.jsonl").open() as lines:
        return tuple(json.loads(line) for line in lines)


def fill_from_recording(recording: str, list_kind: str) -> Object:
    """A copy of the first object of the fullest list of a kind that was recorded."""
    lists = [e["body"] for e in exchanges(recording) if isinstance(e.get("body"), dict) and e["body"].get("items")]
    found = max((body for body in lists if body["kind"] == list_kind), key=lambda body: len(json.dumps(body)))
    value: Object = json.loads(json.dumps(found["items"][0]))
    return value


def admit_job(job: Object) -> Object:
    """A Job as the server keeps it: defaults, selector and labels. Raises ApiError for one that it refuses."""
    metadata, spec = job["metadata"], job.get("spec") or {}
    name = metadata.get("name") or metadata.get("generateName", "")
    template = spec.get("template", {})
    causes = []
    if not re.fullmatch(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?", name) or len(name) > 63:
        causes.append(("metadata.name", f'Invalid value: "{name}": a lowercase RFC 1123 subdomain is expected'))
    containers = [*template.get("spec", {}).get("initContainers", ()), *template.get("spec", {}).get("containers", ())]
    for container in containers:
        resources = container.get("resources", {})
        limits = resources.get("limits", {})
        for resource in resources.get("requests", {}):
            if "/" in resource and resource not in limits:
                where = f"spec.template.spec.containers[{container['name']}].resources.limits"
                causes.append((where, "Required value: Limit must be set for non overcommitable resources"))
        if not container.get("image"):
            causes.append((f"spec.template.spec.containers[{container['name']}].image", "Required value"))
    if template.get("spec", {}).get("restartPolicy") not in ("Never", "OnFailure"):
        where = "spec.template.spec.restartPolicy"
        causes.append((where, 'Required value: valid values: "OnFailure", "Never"'))
    if causes:
        listed = [{"reason": "FieldValueInvalid", "message": what, "field": where} for where, what in causes]
        raise ApiError(
            422,
            "Invalid",
            f'Job.batch "{name}" is invalid: ' + ", ".join(f"{where}: {what}" for where, what in causes),
            {"name": name, "group": "batch", "kind": "Job", "causes": listed},
        )
    uid = str(uuid.uuid4())
    labels = dict(zip(_LABELS, (name, uid, name, uid), strict=True))
    metadata_of_pods = template.get("metadata", {})
    template["metadata"] = {**metadata_of_pods, "labels": {**metadata_of_pods.get("labels", {}), **labels}}
    for container in containers:
        container.setdefault("terminationMessagePath", "/dev/termination-log")
        container.setdefault("terminationMessagePolicy", "File")
        container.setdefault("imagePullPolicy", "IfNotPresent")
    pod = template["spec"]
    for key, value in {
        "dnsPolicy": "ClusterFirst",
        "securityContext": {},
        "schedulerName": "default-scheduler",
    }.items():
        pod.setdefault(key, value)
    pod.setdefault("terminationGracePeriodSeconds", 30)
    defaults = {
        "parallelism": 1,
        "completions": 1,
        "backoffLimit": 6,
        "completionMode": "NonIndexed",
        "suspend": False,
        "podReplacementPolicy": "TerminatingOrFailed",
        "manualSelector": False,
        "selector": {"matchLabels": {"batch.kubernetes.io/controller-uid": uid}},
    }
    return {**job, "metadata": {**metadata, "uid": uid, "generation": 1}, "spec": {**defaults, **spec}, "status": {}}


@dataclass
class Replay:
    """The steps of one recorded Job.

    Attributes:
        steps: what happened to the Job and its pods, in the order of resourceVersion.
        subject: the container of the new Job that does what the recorded one did; the first of `containers` when None.
            Those before it have ended well; those after it start when it has.
        log: what the subject writes; the recorded log when None.
        messages: termination messages of containers after the subject, which end well when the pod does.
        pause: seconds between steps.
    """

    job: str
    steps: list[Object]
    subject: str | None = None
    log: str = ""
    messages: Mapping[str, str] = field(default_factory=dict)
    pause: float = 0.01

    @classmethod
    def of(
        cls, recording: str, job: str, *, subject: str | None = None, log: str | None = None, **options: Any
    ) -> Replay:
        steps: list[Object] = []
        recorded_log = ""
        for exchange in exchanges(recording):
            query, path = exchange["request"].get("query") or {}, exchange["request"]["path"]
            about = query.get("fieldSelector", ""), query.get("labelSelector", "")
            wanted = about[0] == f"metadata.name={job}" or about[1] == f"batch.kubernetes.io/job-name={job}"
            if "events" in exchange and wanted:
                steps += exchange["events"]
            elif (
                path.endswith("/log")
                and f"/pods/{job}-" in path
                and exchange["status"] == 200
                and not query.get("timestamps")
            ):
                recorded_log = max(recorded_log, exchange["body"], key=len)
        if not steps:
            raise ValueError(f"{recording} has no watch of a Job {job}")
        steps = [step for step in steps if step["type"] in ("ADDED", "MODIFIED", "DELETED")]
        steps.sort(key=lambda step: int(step["object"]["metadata"]["resourceVersion"]))
        last = _first_deletion_by_the_client(job, recording, steps)
        return cls(job, steps[:last], subject, recorded_log if log is None else log, **options)

    def run(self, cluster: FakeKubernetes, created: Object) -> None:
        """Play the steps for a Job; ends when the Job is deleted."""
        namespace, name = created["metadata"]["namespace"], created["metadata"]["name"]
        uids: dict[str, str] = {}
        deleted = False  # as it was in the recording
        try:
            for step in self.steps:
                if cluster.stopping.wait(self.pause):
                    return
                if (
                    not deleted
                    and cluster.store.get("jobs", namespace, name)["metadata"]["uid"] != created["metadata"]["uid"]
                ):
                    return
                if step["object"]["kind"] == "Job":
                    self._job(cluster, created, step)
                    deleted = deleted or step["type"] == "DELETED"
                else:
                    self._pod(cluster, created, step, uids)
        except ApiError:
            return  # the Job is gone

    def _job(self, cluster: FakeKubernetes, created: Object, step: Object) -> None:
        namespace, name = created["metadata"]["namespace"], created["metadata"]["name"]
        if step["type"] == "ADDED":
            return
        if step["type"] == "DELETED":
            cluster.store.delete("jobs", namespace, name)
            return
        status = json.loads(json.dumps(step["object"].get("status", {})).replace(self.job, name))
        cluster.store.update("jobs", namespace, name, lambda value: value.update(status=status))

    def _pod(self, cluster: FakeKubernetes, created: Object, step: Object, uids: dict[str, str]) -> None:
        namespace, name = created["metadata"]["namespace"], created["metadata"]["name"]
        recorded = step["object"]
        pod_name = recorded["metadata"]["name"].replace(self.job, name)
        if step["type"] == "DELETED":
            removed = cluster.store.delete("pods", namespace, pod_name)
            for container in removed["spec"]["containers"]:
                cluster.write_log(namespace, pod_name, container["name"], closed=True)
            return
        template = created["spec"]["template"]
        order = [c["name"] for c in (*template["spec"].get("initContainers", ()), *template["spec"]["containers"])]
        subject = self.subject or template["spec"]["containers"][0]["name"]
        status = _status(recorded["status"], template["spec"], order, subject, self.messages, self.job, name)
        value = {
            "metadata": {
                **{k: v for k, v in recorded["metadata"].items() if k not in ("uid", "resourceVersion")},
                "name": pod_name,
                "generateName": f"{name}-",
                "namespace": namespace,
                "labels": template["metadata"]["labels"],
                "annotations": template["metadata"].get("annotations", {}),
                "uid": uids.setdefault(recorded["metadata"]["uid"], str(uuid.uuid4())),
                "ownerReferences": [
                    {
                        "apiVersion": "batch/v1",
                        "kind": "Job",
                        "name": name,
                        "uid": created["metadata"]["uid"],
                        "controller": True,
                        "blockOwnerDeletion": True,
                    }
                ],
            },
            "spec": {**recorded["spec"], **template["spec"]},
            "status": status,
        }
        if not value["metadata"]["annotations"]:
            del value["metadata"]["annotations"]
        if step["type"] == "ADDED":
            cluster.store.create("pods", value)
        else:

            def change(current: Object) -> None:
                current.update(value)
                for field_name in ("finalizers", "deletionTimestamp"):
                    if field_name not in value["metadata"]:
                        current["metadata"].pop(field_name, None)

            cluster.store.update("pods", namespace, pod_name, change)
        self._logs(cluster, namespace, pod_name, status)

    def _logs(self, cluster: FakeKubernetes, namespace: str, pod: str, status: Object) -> None:
        for entry in (*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ())):
            state = entry["state"]
            if "waiting" in state:
                continue
            log = cluster.log(namespace, pod, entry["name"])
            text = self.log if entry["name"] == (self.subject or entry["name"]) and not log.text else ""
            cluster.write_log(namespace, pod, entry["name"], text, closed="terminated" in state)


def _first_deletion_by_the_client(job: str, recording: str, steps: list[Object]) -> int:
    """Where the recording's own client deleted the Job at the end, to tidy up: that is no part of what is played."""
    deletions = [i for i, step in enumerate(steps) if step["type"] == "DELETED" and step["object"]["kind"] == "Job"]
    if not deletions or job.startswith("del-"):
        return len(steps)
    return deletions[0]


def _status(
    recorded: Object,
    spec: Object,
    order: list[str],
    subject: str,
    messages: Mapping[str, str],
    old_job: str,
    new_job: str,
) -> Object:
    """A recorded pod's status, said of a pod with these containers."""
    status: Object = json.loads(json.dumps(recorded).replace(old_job, new_job).replace("[main]", f"[{subject}]"))
    main = (status.pop("containerStatuses", None) or [None])[0]
    if main is None:
        return status
    images = {c["name"]: c["image"] for c in (*spec.get("initContainers", ()), *spec["containers"])}
    main = {**main, "name": subject, "image": images[subject]}
    at = order.index(subject)
    started = "waiting" not in main["state"]
    ended = main["state"].get("terminated")
    entries = {}
    for index, name in enumerate(order):
        if index == at:
            entries[name] = main
        elif index < at:
            # What came before has ended by the time that the recorded container was seen to be created.
            state = _completed("") if started else {"waiting": {"reason": "PodInitializing"}}
            entries[name] = _entry(main, name, images[name], state)
        elif ended and ended["exitCode"] == 0:
            entries[name] = _entry(main, name, images[name], _completed(messages.get(name, "")))
        else:
            entries[name] = _entry(main, name, images[name], {"waiting": {"reason": "PodInitializing"}})
    initial = {c["name"] for c in spec.get("initContainers", ())}
    if initial:
        status["initContainerStatuses"] = [entries[name] for name in order if name in initial]
    status["containerStatuses"] = [entries[name] for name in order if name not in initial]
    return status


def _entry(like: Object, name: str, image: str, state: Object) -> Object:
    return {
        **{key: value for key, value in like.items() if key not in ("allocatedResourcesStatus", "state")},
        "name": name,
        "image": image,
        "state": state,
        "ready": False,
        "started": False,
    }


def _completed(message: str) -> Object:
    terminated: Object = {"exitCode": 0, "reason": "Completed"}
    return {"terminated": {**terminated, **({"message": message} if message else {})}}
