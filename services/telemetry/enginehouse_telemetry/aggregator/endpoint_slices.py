"""Agents in the EndpointSlices of their Service. Pure: objects are the API server's JSON."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from enginehouse_telemetry.aggregator.discovery import AgentAddress, join

Object = Mapping[str, Any]

_SERVICE = re.compile(r"^(?P<namespace>[a-z0-9-]+)/(?P<name>[a-z0-9-]+)(?::(?P<port>[a-z0-9-]+))?$")


@dataclass(frozen=True)
class AgentService:
    """A Service. `port`: a number, the name of one of its ports, or "" for its only one or the one called "grpc"."""

    namespace: str
    name: str
    port: str = ""

    @property
    def path(self) -> str:
        """Of its EndpointSlices at the API server."""
        return f"/apis/discovery.k8s.io/v1/namespaces/{self.namespace}/endpointslices"

    @property
    def selector(self) -> str:
        """The labels of its EndpointSlices, whose names are random."""
        return f"kubernetes.io/service-name={self.name}"


def parse_service(text: str) -> AgentService:
    """The Service that `namespace/name:port` names.

    Raises:
        ValueError: it is of another form.
    """
    found = _SERVICE.match(text.strip())
    if found is None:
        raise ValueError(f'agents_service {text!r} is not valid: expected "namespace/name:port"')
    return AgentService(found["namespace"], found["name"], found["port"] or "")


def agents_of(slices: Iterable[Object], port: str = "") -> frozenset[AgentAddress]:
    """The agents that some slices list.

    A pod that is not ready counts: what its agent has to say may be why. One that terminates counts as long as it
    still serves. A pod with addresses of both families is one agent.
    """
    found: dict[str, AgentAddress] = {}
    # IPv4 first, so that it stays where a pod has both.
    for item in sorted(slices, key=lambda item: str(item.get("addressType", ""))):
        number = _port(item.get("ports") or (), port)
        for endpoint in item.get("endpoints") or ():
            conditions = endpoint.get("conditions") or {}
            if conditions.get("terminating") and not conditions.get("serving"):
                continue
            addresses = endpoint.get("addresses") or ()
            if number is None or not addresses:
                continue
            # All addresses of an endpoint are the same pod's; the first is as good as any.
            agent = AgentAddress(join(str(addresses[0]), number), str(endpoint.get("nodeName") or ""))
            target = endpoint.get("targetRef") or {}
            found.setdefault(str(target.get("uid") or agent.address), agent)
    return frozenset(found.values())


def _port(ports: Iterable[Object], wanted: str) -> int | None:
    if wanted.isdigit():
        return int(wanted)
    known = {str(port.get("name") or ""): port.get("port") for port in ports}
    number = known.get(wanted or "grpc")
    if number is None and not wanted and len(known) == 1:
        (number,) = known.values()
    return None if number is None else int(number)


class Slices:
    """The slices as of the last list and the events since."""

    def __init__(self) -> None:
        self._slices: dict[str, Object] = {}

    def replace(self, items: Iterable[Object]) -> None:
        """Take a list: what it lacks is gone."""
        self._slices = {str(item["metadata"]["name"]): item for item in items}

    def apply(self, kind: str, item: Object) -> None:
        """Take an event: ADDED, MODIFIED, DELETED; a BOOKMARK, which has no name, changes nothing."""
        if kind == "DELETED":
            self._slices.pop(str(item["metadata"]["name"]), None)
        elif kind in ("ADDED", "MODIFIED"):
            self._slices[str(item["metadata"]["name"])] = item

    def agents(self, port: str) -> frozenset[AgentAddress]:
        return agents_of(self._slices.values(), port)
