"""The HTTP side of the fake API server: routes, lists, watches, logs."""

from __future__ import annotations

import http.server
import json
import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

from kubernetes_replay import admit_job
from kubernetes_store import KINDS, ApiError, Kind, Object, containers_of, field_selector, label_selector, not_found

if TYPE_CHECKING:
    from kubernetes_fake import FakeKubernetes

_PATH = re.compile(
    r"/(?:api|apis/(?P<group>[^/]+))/(?P<version>v\w+)"
    r"(?:/namespaces/(?P<namespace>[^/]+)(?=/))?/(?P<plural>[^/]+)(?:/(?P<name>[^/]+))?(?:/(?P<sub>[^/]+))?"
)
_VERBS = {"GET": "get", "POST": "create", "DELETE": "delete", "PATCH": "patch", "PUT": "update"}
# A quiet watch looks so often whether the server ends.
_TICK_SECONDS = 0.1


def handler_for(cluster: FakeKubernetes) -> type[http.server.BaseHTTPRequestHandler]:
    return type("Handler", (_Handler,), {"cluster": cluster})


class _Handler(http.server.BaseHTTPRequestHandler):
    cluster: FakeKubernetes
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None: ...

    def do_GET(self) -> None:
        self._answer()

    do_POST = do_DELETE = do_PATCH = do_PUT = do_GET  # noqa: N815

    def _answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        raw = self.rfile.read(length)
        try:
            self._route(json.loads(raw) if raw else None)
        except ApiError as error:
            self._json(error.code, error.body, **error.headers)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _route(self, body: Any) -> None:
        cluster, parts = self.cluster, urlsplit(self.path)
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        cluster.requests.append((self.command, parts.path, body))
        account = cluster.authenticate(self.headers.get("Authorization", "").partition(" ")[2])
        if parts.path == "/version":
            return self._json(200, {"major": "1", "minor": "36", "gitVersion": "v1.36.2"})
        found = _PATH.fullmatch(parts.path)
        if found is None:
            return self._text(404, "404 page not found\n")
        group, version, namespace, plural, name, sub = (value or "" for value in found.groups())
        if plural == "tokenreviews":
            kind = Kind("authentication.k8s.io", "v1", plural, "TokenReview", namespaced=False)
            cluster.authorize(account, "create", kind, "", "", "")
            return self._json(201, cluster.token_review(body))
        kind_or_none = KINDS.get(plural)
        if kind_or_none is None or (kind_or_none.group, kind_or_none.version) != (group, version):
            if group not in {kind.group for kind in KINDS.values()}:
                return self._text(404, "404 page not found\n")
            raise ApiError(404, "NotFound", "the server could not find the requested resource", {})
        kind = kind_or_none
        verb = _VERBS[self.command]
        if verb == "get" and not name:
            verb = "watch" if query.get("watch") in ("true", "1") else "list"
        cluster.authorize(account, verb, kind, sub, namespace, name)
        if sub == "log" and plural == "pods":
            return self._log(namespace, name, query)
        if verb == "list":
            return self._list(kind, namespace, query)
        if verb == "watch":
            return self._watch(kind, namespace, query)
        if verb == "get":
            return self._json(200, cluster.store.get(plural, namespace if kind.namespaced else "", name))
        if verb == "create":
            return self._create(kind, namespace, body, query)
        if verb == "delete" and name:
            return self._delete(kind, namespace, name, body, query)
        if verb == "patch":
            return self._patch(kind, namespace, name, body)
        raise ApiError(405, "MethodNotAllowed", "the server does not allow this method on the requested resource")

    def _list(self, kind: Kind, namespace: str, query: dict[str, str]) -> None:
        matches, store = self._matches(kind, query), self.cluster.store
        with store.changed:
            asked = self._version(query)
            if query.get("resourceVersionMatch") == "Exact" and asked < max(store.forgotten, 1000):
                raise ApiError(410, "Expired", "The resourceVersion for the provided list is too old.")
            items = store.select(kind.plural, namespace, matches)
            version = str(store.version)
        for item in items:  # objects in a list do not say what they are
            item.pop("kind", None)
            item.pop("apiVersion", None)
        metadata = {"resourceVersion": version}
        self._json(
            200, {"kind": f"{kind.kind}List", "apiVersion": kind.api_version, "metadata": metadata, "items": items}
        )

    def _watch(self, kind: Kind, namespace: str, query: dict[str, str]) -> None:
        matches, store = self._matches(kind, query), self.cluster.store
        version = self._version(query)
        ends = time.monotonic() + float(query.get("timeoutSeconds") or 3600)
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        seen: set[str] = set()
        with store.changed:
            if version == 0:
                version = store.version
                existing = store.select(kind.plural, namespace, matches)
            else:
                existing = []
                known = store.select(kind.plural, namespace, matches)
                seen = {
                    item["metadata"]["uid"] for item in known if int(item["metadata"]["resourceVersion"]) <= version
                }
        for item in existing:
            seen.add(item["metadata"]["uid"])
            self._event("ADDED", item)
        while time.monotonic() < ends and not self.cluster.stopping.is_set():
            with store.changed:
                try:
                    changes = store.since(kind.plural, version)
                except ApiError as error:
                    self._event("ERROR", error.body)
                    break
                if not changes:
                    store.changed.wait(_TICK_SECONDS)
                    continue
            for change in changes:
                version = change.version
                metadata = change.object["metadata"]
                if (namespace and metadata.get("namespace") != namespace) or not matches(change.object):
                    continue
                self._event(change.type, change.object)
        self._chunk(b"")

    def _create(self, kind: Kind, namespace: str, body: Any, query: dict[str, str]) -> None:
        cluster, store = self.cluster, self.cluster.store
        if not isinstance(body, dict) or body.get("kind", kind.kind) != kind.kind:
            raise ApiError(400, "BadRequest", f"the object provided is unrecognized (must be of type {kind.kind})")
        if kind.namespaced:
            if ("", namespace) not in store.objects["namespaces"]:
                raise not_found(KINDS["namespaces"], namespace)
            body.setdefault("metadata", {})["namespace"] = namespace
        if kind.plural != "jobs":
            return self._json(201, store.create(kind.plural, body))
        job = admit_job(body)
        if query.get("dryRun") == "All":
            return self._json(201, job)
        created = store.create("jobs", job)
        cluster.background(lambda: cluster.on_job(created))
        self._json(201, created)

    def _delete(self, kind: Kind, namespace: str, name: str, body: Any, query: dict[str, str]) -> None:
        cluster = self.cluster
        policy = query.get("propagationPolicy") or (body or {}).get("propagationPolicy") or ""
        if kind.plural == "jobs":
            answer = cluster.delete_job(namespace, name, policy)
            warning = {}
            if not policy:
                warning["Warning"] = (
                    '299 - "child pods are preserved by default when jobs are deleted; set '
                    "propagationPolicy=Background to remove them or set propagationPolicy=Orphan to suppress this "
                    'warning"'
                )
            return self._json(200, answer, **warning)
        removed = cluster.store.delete(kind.plural, namespace if kind.namespaced else "", name)
        if kind.plural in ("services", "pods"):
            return self._json(200, removed)
        details = {**kind.details(name), "uid": removed["metadata"]["uid"]}
        self._json(200, {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details})

    def _patch(self, kind: Kind, namespace: str, name: str, body: Any) -> None:
        content = self.headers.get("Content-Type", "")
        if "merge-patch" not in content:
            raise ApiError(415, "UnsupportedMediaType", f"the body of the request was in an unknown format - {content}")
        where = namespace if kind.namespaced else ""
        self._json(200, self.cluster.store.update(kind.plural, where, name, lambda value: _merge(value, body)))

    def _log(self, namespace: str, pod: str, query: dict[str, str]) -> None:
        cluster = self.cluster
        value = cluster.store.get("pods", namespace, pod)
        names = containers_of(value)
        name = query.get("container") or names[-1]
        if name not in names:
            raise ApiError(400, "BadRequest", f"container {name} is not valid for pod {pod}")
        if query.get("previous") == "true":
            raise ApiError(400, "BadRequest", f'previous terminated container "{name}" in pod "{pod}" not found')
        if not value["spec"].get("nodeName"):
            return self._json(204, None)
        log = cluster.logs.get((namespace, pod, name))
        if log is None:
            waiting = _waiting(value, name)
            raise ApiError(400, "BadRequest", f'container "{name}" in pod "{pod}" is waiting to start: {waiting}')
        if query.get("follow") != "true":
            lines = log.text.splitlines(keepends=True)
            return self._text(200, "".join(lines[-int(query.get("tailLines") or len(lines) or 1) :]))
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        sent = 0
        while not cluster.stopping.is_set():
            with cluster.store.changed:
                text, closed = log.text[sent:], log.closed
                if not text and not closed:
                    cluster.store.changed.wait(_TICK_SECONDS)
            if text:
                self._chunk(text.encode())
                sent += len(text)
            elif closed:
                break
        self._chunk(b"")

    def _matches(self, kind: Kind, query: dict[str, str]) -> Callable[[Object], bool]:
        labels = label_selector(query.get("labelSelector", ""))
        fields = field_selector(kind, query.get("fieldSelector", ""))
        return lambda value: labels(value) and fields(value)

    def _version(self, query: dict[str, str]) -> int:
        text = query.get("resourceVersion") or "0"
        if not text.isdigit():
            raise ApiError(
                400,
                "BadRequest",
                f'invalid resource version: resourceVersion: Invalid value: "{text}": strconv.ParseUint: parsing '
                f'"{text}": invalid syntax',
            )
        current = self.cluster.store.version
        if int(text) > current and query.get("watch") not in ("true", "1"):
            raise ApiError(
                504,
                "Timeout",
                f"Timeout: Too large resource version: {text}, current: {current}",
                {
                    "causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}],
                    "retryAfterSeconds": 1,
                },
                **{"Retry-After": "1"},
            )
        return int(text)

    def _event(self, event: str, value: Object) -> None:
        self._chunk(json.dumps({"type": event, "object": value}).encode() + b"\n")

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def _json(self, status: int, value: Any, **headers: str) -> None:
        self._send(status, b"" if value is None else json.dumps(value).encode(), "application/json", headers)

    def _text(self, status: int, text: str) -> None:
        self._send(status, text.encode(), "text/plain", {})

    def _send(self, status: int, data: bytes, content: str, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**({"Content-Type": content} if data else {}), **headers}.items():
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def _waiting(pod: Object, container: str) -> str:
    status = pod.get("status", {})
    for value in (*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ())):
        if value["name"] == container:
            reason = value["state"].get("waiting", {}).get("reason", "")
            pulling = {"ErrImagePull", "ImagePullBackOff"}
            return "trying and failing to pull image" if reason in pulling else str(reason)
    return "ContainerCreating"


def _merge(value: Object, patch: Object) -> None:
    """RFC 7386."""
    for key, item in patch.items():
        if item is None:
            value.pop(key, None)
        elif isinstance(item, dict) and isinstance(value.get(key), dict):
            _merge(value[key], item)
        else:
            value[key] = item
