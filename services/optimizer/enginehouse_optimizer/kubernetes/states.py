"""What a Job and its pods say, as one state: waits, runs, has ended well, or has failed and why. Data alone.

| what the cluster says | state, error |
|---|---|
| no pod, or one without a node | Waiting; the scheduler's words |
| image cannot be pulled, its name is wrong, the container cannot be made | Waiting, with the kubelet's words |
| container `worker` runs | Running |
| Job Complete | Ended; the termination message of `publish` |
| Job gone | Failed ABORTED |
| DeadlineExceeded | Failed DEADLINE_EXCEEDED |
| OOMKilled | Failed RESOURCE_EXHAUSTED |
| evicted, preempted, node lost | Waiting while another pod takes its place; Failed UNAVAILABLE when none does |
| evicted for what it used itself | Failed RESOURCE_EXHAUSTED |
| another exit | Failed INTERNAL, with the container whose log says more |
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from enginehouse.errors import (
    AbortedError,
    DeadlineExceededError,
    EnginehouseError,
    FailedPreconditionError,
    InternalError,
    ResourceExhaustedError,
    UnavailableError,
)
from enginehouse.kubernetes.api import Object
from enginehouse_optimizer.kubernetes.pod_template import PUBLISH, WORKER

SCHEDULING, IMAGE, STARTING = "scheduling", "image", "starting"
# No time heals these.
_HOPELESS = frozenset({"InvalidImageName", "ErrImageNeverPull"})
_IMAGE = frozenset({"ErrImagePull", "ImagePullBackOff", "ImageInspectError", "RegistryUnavailable", *_HOPELESS})
_NOT_MADE = frozenset({"CreateContainerConfigError", "CreateContainerError", "RunContainerError"})
_DISRUPTION = "DisruptionTarget"


@dataclass(frozen=True)
class Waiting:
    """For a node (SCHEDULING), an image or a container (IMAGE), or for its turn (STARTING); `error` if it lasts."""

    what: str
    message: str
    error: EnginehouseError | None = None
    hopeless: bool = False


@dataclass(frozen=True)
class Running:
    """The stage's container runs, or has ended well and its files are being published."""

    pod: str


@dataclass(frozen=True)
class Ended:
    """Well; `message` is what `publish` left."""

    pod: str
    message: str


@dataclass(frozen=True)
class Failed:
    """`container` is the one that exited with an error of its own, whose log and last event say why; else empty."""

    error: EnginehouseError
    pod: str = ""
    container: str = ""


State = Waiting | Running | Ended | Failed


def observe(name: str, job: Object | None, pods: Iterable[Object]) -> State:
    """The state of a Job.

    Args:
        name: of the Job, for messages.
        job: the Job, None when it is gone.
        pods: its pods, also those that end.
    """
    known = sorted(pods, key=lambda pod: (pod["metadata"]["creationTimestamp"], pod["metadata"]["name"]))
    if job is None:
        return Failed(
            AbortedError(
                f"the Job {name} was deleted while it ran, and not by this optimizer: start the operation again",
                details={"job": name},
            )
        )
    conditions = {str(c["type"]): c for c in job.get("status", {}).get("conditions") or () if c["status"] == "True"}
    if "Complete" in conditions:
        return _ended(name, known)
    failure = conditions.get("Failed") or conditions.get("FailureTarget")
    if failure is not None:
        return _failed(name, failure, known)
    alive = [pod for pod in known if not _over(pod)]
    if alive:
        return _state_of_pod(alive[-1])
    if known and _disruption(known[-1]):
        return Waiting(STARTING, f"its pod was taken away ({_disruption(known[-1])}): another one takes its place")
    if known and known[-1].get("status", {}).get("phase") in ("Succeeded", "Failed"):
        # The Job's own verdict follows.
        name_of_pod = str(known[-1]["metadata"]["name"])
        return Running(name_of_pod) if started(known[-1:]) else Waiting(STARTING, f"its pod {name_of_pod} has ended")
    return Waiting(STARTING, f"the Job {name} waits for its pod")


def disruptions(pods: Iterable[Object]) -> set[str]:
    """UIDs of the pods that were taken away."""
    return {str(pod["metadata"]["uid"]) for pod in pods if _disruption(pod)}


def started(pods: Iterable[Object]) -> dict[str, bool]:
    """Names of the pods whose stage has started, each with whether it has ended."""
    found = {}
    for pod in pods:
        state = _container(pod, WORKER).get("state", {})
        if "running" in state or "terminated" in state:
            found[str(pod["metadata"]["name"])] = "terminated" in state
    return found


def _ended(name: str, pods: list[Object]) -> State:
    for pod in reversed(pods):
        if pod.get("status", {}).get("phase") == "Succeeded":
            terminated = _container(pod, PUBLISH).get("state", {}).get("terminated", {})
            return Ended(pod["metadata"]["name"], str(terminated.get("message", "")))
    return Failed(
        InternalError(
            f"the Job {name} is complete, but its pod is gone and with it the list of what it made: try again"
        )
    )


def _failed(name: str, failure: Mapping[str, str], pods: list[Object]) -> State:
    reason, message = str(failure.get("reason", "")), str(failure.get("message", ""))
    details = {"job": name, "reason": reason}
    if reason == "DeadlineExceeded":
        return Failed(
            DeadlineExceededError(
                f"the Job {name} was stopped: it ran and waited for longer than its deadline ({message})",
                details=details,
            )
        )
    for pod in reversed(pods):
        status = pod.get("status", {})
        pod_name = str(pod["metadata"]["name"])
        details = {**details, "pod": pod_name, "node": str(pod.get("spec", {}).get("nodeName", ""))}
        if disruption := _disruption(pod):
            return Failed(
                UnavailableError(f"the pod {pod_name} was taken away: {disruption}", details=details), pod_name
            )
        if status.get("reason") == "Evicted":
            return Failed(_evicted(pod_name, str(status.get("message", "")), details), pod_name)
        for container in _statuses(pod):
            terminated = container.get("state", {}).get("terminated") or {}
            if terminated.get("exitCode", 0) != 0:
                return _exited(pod, str(container["name"]), terminated, details)
    return Failed(InternalError(f"the Job {name} failed: {reason}: {message}", details=details))


def _exited(pod: Object, container: str, terminated: Mapping[str, object], details: Mapping[str, str]) -> Failed:
    name = str(pod["metadata"]["name"])
    code, reason = terminated.get("exitCode"), str(terminated.get("reason", ""))
    if reason == "OOMKilled":
        limit = _memory_limit(pod, container)
        return Failed(
            ResourceExhaustedError(
                f"the container {container!r} of pod {name} was killed for want of memory"
                f"{f' (its limit is {limit})' if limit else ''}: raise its memory limit in the Job template "
                "(ENGINEHOUSE_KUBERNETES_JOB_TEMPLATE), or use smaller batches",
                details={**details, "reason": reason},
            ),
            name,
            container,
        )
    said = f" ({reason})" if reason not in ("", "Error") else ""
    killed = ": it was killed" if code == 137 else ""
    return Failed(
        InternalError(
            f"the container {container!r} of pod {name} exited with status {code}{said}{killed}",
            details={**details, "exit_code": str(code)},
        ),
        name,
        container,
    )


def _evicted(pod: str, message: str, details: Mapping[str, str]) -> EnginehouseError:
    own = "exceed" in message.lower() or "usage of" in message.lower()
    kind = ResourceExhaustedError if own else UnavailableError
    return kind(f"the pod {pod} was evicted by its node: {message}", details={**details, "reason": "Evicted"})


def _state_of_pod(pod: Object) -> State:
    name = str(pod["metadata"]["name"])
    status = pod.get("status", {})
    scheduled = _condition(pod, "PodScheduled")
    if not pod["spec"].get("nodeName"):
        message = str(scheduled.get("message") or "not looked at by the scheduler yet")
        return Waiting(SCHEDULING, f"waits for a node: {message}", _unschedulable(name, message))
    for container in _statuses(pod):
        waiting = container.get("state", {}).get("waiting") or {}
        reason, words = str(waiting.get("reason", "")), str(waiting.get("message", ""))
        if reason in _IMAGE or reason in _NOT_MADE:
            what = f"the image {container.get('image')!r}" if reason in _IMAGE else "the container"
            error = FailedPreconditionError(
                f"{what} of container {container['name']!r} of pod {name} cannot be had: {reason}: {words}. "
                "Check ENGINEHOUSE_WORKER_IMAGES, the Job template and the pull secrets",
                details={"pod": name, "reason": reason, "image": str(container.get("image", ""))},
            )
            return Waiting(IMAGE, f"{reason}: {words}"[:500], error, reason in _HOPELESS)
    stage = _container(pod, WORKER).get("state", {})
    if "running" in stage or "terminated" in stage or status.get("phase") in ("Succeeded", "Failed"):
        return Running(name)
    return Waiting(STARTING, f"starts on {pod['spec']['nodeName']}")


def _unschedulable(pod: str, message: str) -> EnginehouseError:
    kind = ResourceExhaustedError if "Insufficient" in message else FailedPreconditionError
    return kind(f"no node took the pod {pod}: {message}", details={"pod": pod, "reason": "Unschedulable"})


def _over(pod: Object) -> bool:
    return "deletionTimestamp" in pod["metadata"] or pod.get("status", {}).get("phase") in ("Succeeded", "Failed")


def _disruption(pod: Object) -> str:
    """Why a pod was taken away, in the cluster's words; empty when it was not."""
    condition = _condition(pod, _DISRUPTION)
    if condition.get("status") != "True":
        return ""
    return f"{condition.get('reason', '')}: {condition.get('message', '')}"


def _condition(pod: Object, kind: str) -> Mapping[str, str]:
    return next((c for c in pod.get("status", {}).get("conditions") or () if c["type"] == kind), {})


def _statuses(pod: Object) -> list[Object]:
    status = pod.get("status", {})
    return [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]


def _container(pod: Object, name: str) -> Object:
    return next((status for status in _statuses(pod) if status["name"] == name), {})


def _memory_limit(pod: Object, container: str) -> str:
    spec = pod["spec"]
    for given in (*(spec.get("initContainers") or ()), *(spec.get("containers") or ())):
        if given["name"] == container:
            return str(given.get("resources", {}).get("limits", {}).get("memory", ""))
    return ""
