"""A Kubernetes API server in a thread: real HTTP, objects in memory, Jobs that go as recorded ones went.

    with FakeKubernetes() as cluster:
        cluster.play("04a-job-oom", "oom-b0")          # what becomes of the Jobs created from now on
        cluster.kubeconfig(tmp_path / "kubeconfig")    # for KUBECONFIG

`cluster.store` holds the objects: tests add nodes or EndpointSlices there, and watches see it. `cluster.tokens` holds
who may call and whose tokens TokenReview knows. Requests and their bodies are kept in `cluster.requests`.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from kubernetes_http import handler_for
from kubernetes_replay import Replay, fill_from_recording
from kubernetes_store import KINDS, ApiError, Kind, Object, Store, containers_of

API_AUDIENCE = "https://kubernetes.default.svc"
ADMINISTRATOR = "administrator-token"


@dataclass(frozen=True)
class Account:
    """Whose a token is. `verbs` are what it may do, such as "jobs:create"; None: everything."""

    username: str
    audiences: tuple[str, ...] = (API_AUDIENCE,)
    uid: str = "1807b99d-0aa1-47f4-8cc2-cba5f00e4e61"
    groups: tuple[str, ...] = ()
    extra: dict[str, list[str]] = field(default_factory=dict)
    verbs: frozenset[str] | None = frozenset()

    @classmethod
    def service_account(
        cls, namespace: str, name: str, *audiences: str, verbs: frozenset[str] = frozenset()
    ) -> Account:
        groups = ("system:serviceaccounts", f"system:serviceaccounts:{namespace}", "system:authenticated")
        return cls(
            f"system:serviceaccount:{namespace}:{name}", audiences or (API_AUDIENCE,), groups=groups, verbs=verbs
        )


@dataclass
class Log:
    """What a container has written; closed once it has ended."""

    text: str = ""
    closed: bool = False


class FakeKubernetes:
    """The server. `url` is its address; use it as a context manager, or `start` and `stop` it."""

    def __init__(self, namespaces: tuple[str, ...] = ("enginehouse",)) -> None:
        self.store = Store()
        self.tokens: dict[str, Account] = {ADMINISTRATOR: Account("administrator", verbs=None)}
        self.logs: dict[tuple[str, str, str], Log] = {}
        self.requests: list[tuple[str, str, Any]] = []
        # Told each new Job, in a thread of its own.
        self.on_job: Callable[[Object], None] = lambda job: None
        self.on_pod_gone: Callable[[Object], None] = lambda pod: None
        self.stopping = threading.Event()
        self._threads: list[threading.Thread] = []
        for name in namespaces:
            self.store.create("namespaces", {"metadata": {"name": name}})
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler_for(self))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> FakeKubernetes:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def start(self) -> None:
        self.background(lambda: self._server.serve_forever(poll_interval=0.05))

    def stop(self) -> None:
        self.stopping.set()
        self._server.shutdown()
        self._server.server_close()
        for thread in self._threads:
            thread.join(timeout=10)

    def background(self, run: Callable[[], None]) -> None:
        """Run something in a thread until `stop`."""
        thread = threading.Thread(target=run, daemon=True)
        self._threads.append(thread)
        thread.start()

    def settled(self) -> None:
        """Wait until what happens in the background has happened."""
        for thread in self._threads[1:]:
            thread.join(timeout=10)

    def kubeconfig(self, path: Path, token: str = ADMINISTRATOR, namespace: str = "enginehouse") -> Path:
        """Write a kubeconfig for this server."""
        path.write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "clusters": [{"name": "fake", "cluster": {"server": self.url}}],
                    "users": [{"name": "fake", "user": {"token": token}}],
                    "contexts": [
                        {"name": "fake", "context": {"cluster": "fake", "user": "fake", "namespace": namespace}}
                    ],
                    "current-context": "fake",
                }
            )
        )
        return path

    def add_recorded_node(self, name: str = "gpu-node-1", **labels: str) -> Object:
        """A node as recorded, with other labels; an empty value takes a label away. `__` stands for / in a label."""
        node = fill_from_recording("08-nodes", "NodeList")
        node["metadata"]["name"] = name
        node["metadata"].pop("uid")
        given = {key.replace("__", "/").replace("_", "."): value for key, value in labels.items()}
        node["metadata"]["labels"] |= {"kubernetes.io/hostname": name, **given}
        node["metadata"]["labels"] = {key: value for key, value in node["metadata"]["labels"].items() if value}
        return self.store.create("nodes", node)

    def play(self, recording: str, job: str, *, subject: str | None = None, **options: Any) -> None:
        """Jobs created from now on go as that Job of a recording went. See `Replay` for the options.

        Args:
            subject: the container that does what the recorded one did; the first when absent.
        """
        replay = Replay.of(recording, job, subject=subject, **options)
        self.on_job = lambda created: replay.run(self, created)

    def log(self, namespace: str, pod: str, container: str) -> Log:
        """The log of a container, made when there is none."""
        return self.logs.setdefault((namespace, pod, container), Log())

    def write_log(self, namespace: str, pod: str, container: str, text: str = "", *, closed: bool = False) -> None:
        """Add to a container's log, and perhaps end it."""
        with self.store.changed:
            log = self.log(namespace, pod, container)
            log.text += text
            log.closed = log.closed or closed
            self.store.changed.notify_all()

    def created(self, plural: str) -> list[Any]:
        """The bodies that were posted to a collection."""
        return [body for method, path, body in self.requests if method == "POST" and path.endswith(f"/{plural}")]

    def delete_job(self, namespace: str, name: str, policy: str) -> Object:
        """What the server answers; with Background the Job is gone at once and its pods follow."""
        job = self.store.get("jobs", namespace, name)
        if policy == "Background":
            self.store.delete("jobs", namespace, name)
            self.background(lambda: self.end_pods(job))
            details = {**KINDS["jobs"].details(name), "uid": job["metadata"]["uid"]}
            return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details}

        def mark(value: Object) -> None:
            finalizer = "foregroundDeletion" if policy == "Foreground" else "orphan"
            value["metadata"] |= {
                "deletionTimestamp": value["metadata"]["creationTimestamp"],
                "deletionGracePeriodSeconds": 0,
                "finalizers": [finalizer],
                "generation": value["metadata"].get("generation", 1) + 1,
            }

        marked = self.store.update("jobs", namespace, name, mark)
        self.background(lambda: self._finish_deletion(job, orphan=policy != "Foreground"))
        return marked

    def end_pods(self, job: Object) -> None:
        """Pods of a Job go: first with a deletionTimestamp, then altogether."""
        namespace = job["metadata"]["namespace"]
        owner = job["metadata"]["uid"]
        for pod in self.store.select("pods", namespace, lambda pod: _owner(pod) == owner):
            name = pod["metadata"]["name"]

            def mark(value: Object) -> None:
                value["metadata"] |= {"deletionTimestamp": value["metadata"]["creationTimestamp"]}
                value["metadata"]["deletionGracePeriodSeconds"] = 5

            with contextlib.suppress(ApiError):
                self.store.update("pods", namespace, name, mark)
                self.on_pod_gone(pod)
                for container in containers_of(pod):
                    self.write_log(namespace, name, container, closed=True)
                self.store.delete("pods", namespace, name)

    def _finish_deletion(self, job: Object, *, orphan: bool) -> None:
        if not orphan:
            self.end_pods(job)
        time.sleep(0.05)
        with contextlib.suppress(ApiError):
            self.store.delete("jobs", job["metadata"]["namespace"], job["metadata"]["name"])

    # What the handler asks.

    def authenticate(self, token: str) -> Account:
        account = self.tokens.get(token)
        if account is None or API_AUDIENCE not in account.audiences:
            raise ApiError(401, "Unauthorized", "Unauthorized")
        return account

    def authorize(self, account: Account, verb: str, kind: Kind, sub: str, namespace: str, name: str) -> None:
        resource = f"{kind.plural}/{sub}" if sub else kind.plural
        if account.verbs is None or f"{resource}:{verb}" in account.verbs:
            return
        where = f'in the namespace "{namespace}"' if namespace else "at the cluster scope"
        subject = f'{kind.qualified} "{name}"' if name else kind.qualified
        raise ApiError(
            403,
            "Forbidden",
            f'{subject} is forbidden: User "{account.username}" cannot {verb} resource "{resource}" in API group '
            f'"{kind.group}" {where}',
            kind.details(name),
        )

    def token_review(self, body: Object) -> Object:
        token = body["spec"].get("token", "")
        if not token:
            raise ApiError(400, "BadRequest", "token is required for TokenReview in authentication")
        wanted = body["spec"].get("audiences") or [API_AUDIENCE]
        account = self.tokens.get(token)
        answer = {**body, "metadata": {}}
        if account is None:
            answer["status"] = {"user": {}, "error": "invalid bearer token"}
        elif not (shared := [audience for audience in account.audiences if audience in wanted]):
            named, asked = (" ".join(json.dumps(a) for a in many) for many in (account.audiences, wanted))
            error = f"[invalid bearer token, token audiences [{named}] is invalid for the target audiences [{asked}]]"
            answer["status"] = {"user": {}, "error": error}
        else:
            user: Object = {"username": account.username, "uid": account.uid, "groups": list(account.groups)}
            if account.extra:
                user["extra"] = account.extra
            answer["status"] = {"authenticated": True, "user": user, "audiences": shared}
        return answer


def _owner(pod: Object) -> str:
    return str((pod["metadata"].get("ownerReferences") or [{}])[0].get("uid", ""))


@contextlib.contextmanager
def running(*namespaces: str) -> Iterator[FakeKubernetes]:
    """A server for the length of a test."""
    with FakeKubernetes(namespaces or ("enginehouse",)) as cluster:
        yield cluster
