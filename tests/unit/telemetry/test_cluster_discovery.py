"""Finding agents: lists, names, and the EndpointSlices of a Service over HTTP as a real API server has them."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from enginehouse_telemetry.aggregator.discovery import AgentAddress, ListedAgents, split_addresses
from enginehouse_telemetry.aggregator.endpoint_slices import AgentService, Slices, agents_of, parse_service
from enginehouse_telemetry.aggregator.service_agents import ServiceAgents, kubernetes_api

sys.path.insert(0, str(Path(__file__).parents[2]))

from kubernetes_fake import Account, FakeKubernetes
from kubernetes_replay import exchanges

ENGINE = AgentService("enginehouse", "engine", "http")


def recorded_events() -> list[dict[str, Any]]:
    return next(line["events"] for line in exchanges("07-endpointslices") if line.get("events"))


def last_parts(agents: frozenset[AgentAddress]) -> list[str]:
    return sorted(agent.address.removeprefix("10.244.0.") for agent in agents)


def test_the_recorded_life_of_a_service() -> None:
    slices, seen = Slices(), []
    for event in recorded_events():
        slices.apply(event["type"], event["object"])
        seen.append(last_parts(slices.agents("http")))
    # Null endpoints first; unready pods count; those that terminate count as long as they serve.
    assert seen[0] == [] and seen[1] == ["26:8080"]
    assert ["26:8080", "27:8080", "28:8080"] in seen
    assert seen[-2] == ["26:8080"] and seen[-1] == []
    assert {agent.node for event in recorded_events() for agent in agents_of([event["object"]])} == {"gpu-node-1"}


def endpoint(*addresses: str, uid: str = "", **conditions: bool) -> dict[str, Any]:
    return {"addresses": list(addresses), "conditions": conditions, "targetRef": {"uid": uid}, "nodeName": "n"}


def test_ports_families_and_pods_that_end() -> None:
    ports = [{"name": "grpc", "port": 8020}, {"name": "metrics", "port": 9400}]
    six = {"addressType": "IPv6", "ports": ports, "endpoints": [endpoint("fd00::1", uid="p"), endpoint("fd00::2")]}
    four = {
        "addressType": "IPv4",
        "ports": ports,
        "endpoints": [endpoint("10.0.0.1", uid="p"), endpoint("10.0.0.3", terminating=True, serving=False)],
    }
    assert {agent.address for agent in agents_of([six, four])} == {"10.0.0.1:8020", "[fd00::2]:8020"}
    assert {agent.address for agent in agents_of([four], "metrics")} == {"10.0.0.1:9400"}
    assert {agent.address for agent in agents_of([four], "7")} == {"10.0.0.1:7"}
    assert not agents_of([four], "none") and not agents_of([{"endpoints": None, "ports": None}])


@pytest.mark.parametrize("text", ["", "agents", "a/b/c", "ns/name:", "ns/name:80:80", "NS/name:1"])
def test_services_of_no_form(text: str) -> None:
    with pytest.raises(ValueError, match="namespace/name:port"):
        parse_service(text)
    assert parse_service("ns/name:8020") == AgentService("ns", "name", "8020")
    assert parse_service("ns/name") == AgentService("ns", "name")


@pytest.mark.parametrize("text", ["host", "host:0", "host:99999", ":1", "a:1,b"])
def test_addresses_of_no_form(text: str) -> None:
    with pytest.raises(ValueError, match="host:port"):
        split_addresses(text)


async def test_names_are_looked_up_again_and_outlive_a_failure() -> None:
    answers: list[Sequence[str] | OSError] = [["10.0.0.1"], OSError("no DNS"), ["10.0.0.2", "10.0.0.1", "10.0.0.1"]]

    async def look(host: str, port: int) -> Sequence[str]:
        assert (host, port) == ("agents.example", 8020)
        answer = answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return answer

    source = ListedAgents(split_addresses("127.0.0.1:1, agents.example:8020,[::1]:2"), 0.01, look)
    watch = source.watch()
    fixed = {"127.0.0.1:1", "[::1]:2"}
    assert {agent.address for agent in await anext(watch)} == {*fixed, "10.0.0.1:8020"}
    assert {agent.address for agent in await anext(watch)} == {*fixed, "10.0.0.1:8020", "10.0.0.2:8020"}
    await watch.aclose()  # type: ignore[attr-defined]


@pytest.fixture
async def watch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[FakeKubernetes, Any]]:
    with FakeKubernetes() as cluster:
        monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig(tmp_path / "kubeconfig")))
        found = ServiceAgents(ENGINE, kubernetes_api(), first_wait=0.02).watch()
        yield cluster, found
        await found.aclose()  # type: ignore[attr-defined]


async def following(found: Any) -> frozenset[AgentAddress]:
    return await asyncio.wait_for(anext(found), 30)


def apply(cluster: FakeKubernetes, event: dict[str, Any]) -> None:
    value = json.loads(json.dumps(event["object"]))
    where = value["metadata"]["namespace"], value["metadata"]["name"]
    if event["type"] == "ADDED":
        cluster.store.create("endpointslices", value)
    elif event["type"] == "MODIFIED":
        cluster.store.update("endpointslices", *where, lambda current: current.update(value))
    else:
        cluster.store.delete("endpointslices", *where)


async def test_a_watch_over_http(watch: tuple[FakeKubernetes, Any]) -> None:
    cluster, found = watch
    assert await following(found) == frozenset()
    events = recorded_events()
    apply(cluster, events[0])
    apply(cluster, events[1])
    assert last_parts(await following(found)) == ["26:8080"]
    apply(cluster, events[3])
    assert last_parts(await following(found)) == ["26:8080", "27:8080"]
    apply(cluster, events[-1])
    assert last_parts(await following(found)) == []


async def test_a_watch_that_fell_behind_lists_again(watch: tuple[FakeKubernetes, Any]) -> None:
    cluster, _found = watch
    service = ServiceAgents(ENGINE, kubernetes_api(), first_wait=0.02)
    api = await kubernetes_api()()
    lists = 0

    class Behind:
        """Its first watch asks for a version that the server has forgotten."""

        async def get(self, path: str, **query: str) -> dict[str, Any]:
            nonlocal lists
            lists += 1
            answer = await api.get(path, **query)
            if lists == 1:
                answer["metadata"]["resourceVersion"] = "1"
                for event in recorded_events()[:3]:
                    apply(cluster, event)
                cluster.store.forget()
            return answer

        def watch(self, path: str, version: str, **query: str) -> AsyncIterator[Any]:
            return api.watch(path, version, **query)

        async def close(self) -> None: ...

    async def connect() -> Any:
        return Behind()

    service = ServiceAgents(ENGINE, connect, first_wait=0.02)
    behind = service.watch()
    assert await following(behind) == frozenset()
    assert last_parts(await following(behind)) == ["26:8080"] and lists == 2
    await behind.aclose()  # type: ignore[attr-defined]
    await api.close()


async def test_what_was_known_stands_while_the_server_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with FakeKubernetes() as cluster:
        cluster.tokens["agent-reader"] = Account("nobody")  # may nothing
        monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig(tmp_path / "kubeconfig", token="agent-reader")))
        found = ServiceAgents(ENGINE, kubernetes_api(), first_wait=0.02).watch()
        waiting = asyncio.ensure_future(following(found))
        while len(cluster.requests) < 3:
            await asyncio.sleep(0.01)
        assert not waiting.done()
        for event in recorded_events()[:3]:
            apply(cluster, event)
        cluster.tokens["agent-reader"] = Account(
            "reader", verbs=frozenset({"endpointslices:list", "endpointslices:watch"})
        )
        assert last_parts(await waiting) == ["26:8080"]
        await found.aclose()  # type: ignore[attr-defined]
    assert "PERMISSION_DENIED" in "".join(capfd.readouterr())
