"""The objects of a small Kubernetes API: versions, watches, selectors, and answers in the words of a real server.

What it does is what `tests/recordings/k8s` shows of Kubernetes 1.36; `tests/unit/test_kubernetes_fake.py` compares.
"""

from __future__ import annotations

import copy
import datetime
import re
import threading
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Object = dict[str, Any]


@dataclass(frozen=True)
class Kind:
    """A kind of objects; `fields` are those that a field selector may name."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = True
    fields: frozenset[str] = frozenset({"metadata.name", "metadata.namespace"})

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def qualified(self) -> str:
        return f"{self.plural}.{self.group}" if self.group else self.plural

    def details(self, name: str = "") -> Object:
        return {
            **({"name": name} if name else {}),
            **({"group": self.group} if self.group else {}),
            "kind": self.plural,
        }


_NAMES = {"metadata.name", "metadata.namespace"}
_EVENT_FIELDS = {"involvedObject.kind", "involvedObject.name", "involvedObject.uid", "reason", "type"}
KINDS: Mapping[str, Kind] = {
    kind.plural: kind
    for kind in (
        Kind("batch", "v1", "jobs", "Job", fields=frozenset({*_NAMES, "status.successful"})),
        Kind("", "v1", "pods", "Pod", fields=frozenset({*_NAMES, "status.phase", "spec.nodeName"})),
        Kind("", "v1", "events", "Event", fields=frozenset(_NAMES | _EVENT_FIELDS)),
        Kind("", "v1", "nodes", "Node", namespaced=False),
        Kind("", "v1", "namespaces", "Namespace", namespaced=False),
        Kind("", "v1", "configmaps", "ConfigMap"),
        Kind("", "v1", "services", "Service"),
        Kind("discovery.k8s.io", "v1", "endpointslices", "EndpointSlice"),
    )
}


class ApiError(Exception):
    """An answer that is an error: its HTTP status and its Status object."""

    def __init__(self, code: int, reason: str, message: str, details: Object | None = None, **headers: str) -> None:
        super().__init__(message)
        self.code = code
        self.headers = headers
        self.body: Object = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": message,
            **({"reason": reason} if reason else {}),
            **({"details": details} if details else {}),
            "code": code,
        }


def not_found(kind: Kind, name: str) -> ApiError:
    return ApiError(404, "NotFound", f'{kind.qualified} "{name}" not found', kind.details(name))


def now() -> str:
    """The time as API objects have it."""
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(frozen=True)
class Change:
    """One event of a watch."""

    version: int
    type: str
    plural: str
    object: Object


@dataclass
class Store:
    """All objects. Thread-safe; `changed` wakes whoever watches."""

    version: int = 1000
    objects: dict[str, dict[tuple[str, str], Object]] = field(default_factory=lambda: {name: {} for name in KINDS})
    changes: list[Change] = field(default_factory=list)
    # What happened before it is forgotten: watches from there get 410.
    forgotten: int = 0
    changed: threading.Condition = field(default_factory=lambda: threading.Condition(threading.RLock()))

    def create(self, plural: str, value: Object) -> Object:
        """Add an object. Raises ApiError when there is one of that name."""
        kind = KINDS[plural]
        with self.changed:
            metadata = value.setdefault("metadata", {})
            if "name" not in metadata and "generateName" in metadata:
                metadata["name"] = metadata["generateName"] + uuid.uuid4().hex[:5]
            name, namespace = metadata["name"], metadata.get("namespace", "")
            if (namespace, name) in self.objects[plural]:
                raise ApiError(409, "AlreadyExists", f'{kind.qualified} "{name}" already exists', kind.details(name))
            metadata.setdefault("uid", str(uuid.uuid4()))
            metadata.setdefault("creationTimestamp", now())
            return self._put("ADDED", kind, value)

    def get(self, plural: str, namespace: str, name: str) -> Object:
        """A copy of an object. Raises ApiError when there is none."""
        with self.changed:
            try:
                return copy.deepcopy(self.objects[plural][namespace, name])
            except KeyError:
                raise not_found(KINDS[plural], name) from None

    def update(self, plural: str, namespace: str, name: str, change: Callable[[Object], None]) -> Object:
        """Change an object in place. Raises ApiError when there is none."""
        with self.changed:
            value = self.get(plural, namespace, name)
            change(value)
            return self._put("MODIFIED", KINDS[plural], value)

    def delete(self, plural: str, namespace: str, name: str) -> Object:
        """Remove an object at once. Raises ApiError when there is none."""
        with self.changed:
            value = self.get(plural, namespace, name)
            del self.objects[plural][namespace, name]
            return self._record("DELETED", KINDS[plural], value)

    def select(self, plural: str, namespace: str, matches: Callable[[Object], bool]) -> list[Object]:
        """Copies of the objects that match, by name."""
        with self.changed:
            found = sorted(self.objects[plural].items())
            return [copy.deepcopy(v) for (where, _), v in found if (not namespace or where == namespace) and matches(v)]

    def since(self, plural: str, version: int) -> list[Change]:
        """What happened to objects of a kind after a version. Raises ApiError (410) when that is forgotten."""
        with self.changed:
            if version < self.forgotten:
                raise ApiError(410, "Expired", f"too old resource version: {version} ({self.forgotten})")
            return [change for change in self.changes if change.plural == plural and change.version > version]

    def forget(self) -> None:
        """What happened until now cannot be watched any more."""
        with self.changed:
            self.forgotten = self.version
            self.changes.clear()
            self.changed.notify_all()

    def _put(self, event: str, kind: Kind, value: Object) -> Object:
        value = {"kind": kind.kind, "apiVersion": kind.api_version, **value}
        metadata = value["metadata"]
        key = (metadata.get("namespace", "") if kind.namespaced else "", metadata["name"])
        recorded = self._record(event, kind, value)
        self.objects[kind.plural][key] = recorded
        return copy.deepcopy(recorded)

    def _record(self, event: str, kind: Kind, value: Object) -> Object:
        self.version += 1
        value["metadata"]["resourceVersion"] = str(self.version)
        self.changes.append(Change(self.version, event, kind.plural, copy.deepcopy(value)))
        self.changed.notify_all()
        return value


def label_selector(text: str) -> Callable[[Object], bool]:
    """Raises ApiError when it does not parse."""
    tests = [_requirement(part.strip()) for part in re.split(r",(?![^(]*\))", text) if part.strip()]
    return lambda value: all(test(value.get("metadata", {}).get("labels") or {}) for test in tests)


def _requirement(text: str) -> Callable[[Mapping[str, str]], bool]:
    if found := re.fullmatch(r"(\S+)\s+(in|notin)\s*\(([^)]*)\)", text):
        key, values = found.group(1), {v.strip() for v in found.group(3).split(",")}
        return lambda labels: (labels.get(key) in values) is (found.group(2) == "in")
    if found := re.fullmatch(r"([^\s=!]+)\s*(==|=|!=)\s*([^\s=!]*)", text):
        key, operator, value = found.groups()
        return lambda labels: (labels.get(key) == value) is (operator != "!=")
    if found := re.fullmatch(r"!?([^\s=!]+)", text):
        return lambda labels: (found.group(1) in labels) is not text.startswith("!")
    words = text.split()
    raise ApiError(
        400,
        "BadRequest",
        f"unable to parse requirement: found '{words[1]}', expected: in, notin, =, ==, !=, gt, lt",
    )


def field_selector(kind: Kind, text: str) -> Callable[[Object], bool]:
    """Raises ApiError for a field that the kind does not offer."""
    wanted = []
    for part in filter(None, text.split(",")):
        name, _, value = part.replace("==", "=").partition("=")
        if name not in kind.fields:
            raise ApiError(400, "BadRequest", f'field label "{name}" not supported for {kind.kind}')
        wanted.append((name.split("."), value))

    def matches(value: Object) -> bool:
        return all(_at(value, path) == expected for path, expected in wanted)

    return matches


def _at(value: Any, path: list[str]) -> str:
    for part in path:
        value = value.get(part, "") if isinstance(value, dict) else ""
    return str(value)


def containers_of(pod: Object) -> list[str]:
    spec = pod["spec"]
    return [container["name"] for container in (*spec.get("initContainers", ()), *spec["containers"])]
