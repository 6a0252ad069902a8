"""The fake API server against recordings of a real one: what it answers has the same status, shape and words."""

from __future__ import annotations

import json
import re
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from kubernetes_fake import ADMINISTRATOR, Account, FakeKubernetes
from kubernetes_replay import exchanges

# What differs from run to run, and what a server of another make adds.
_VOLATILE = re.compile(
    r"(resourceVersion|uid|.*[tT]ime(stamp)?|.*controller-uid|containerID|imageID|podIPs?|resourceID)$"
)
_LEFT_OUT = {"volumes", "volumeMounts", "name", "generateName", "image", "generation", "terminationGracePeriodSeconds"}
JOBS = [
    ("01-job-success", "engine-run-1"),
    ("02-job-pending", "pend-selector"),
    ("03-job-image-pull", "pull-missing"),
    ("04a-job-oom", "oom-b0"),
    ("04a-job-oom", "oom-b1"),
    ("04b-job-exit-code-and-deadline", "exit3-b0"),
    ("04b-job-exit-code-and-deadline", "deadline"),
    ("05-job-deleted-and-evicted", "del-running"),
    ("05-job-deleted-and-evicted", "evict-me"),
    ("05-job-deleted-and-evicted", "evict-ignored"),
]


@pytest.fixture
def cluster() -> Iterator[FakeKubernetes]:
    with FakeKubernetes() as cluster:
        yield cluster


def call(
    cluster: FakeKubernetes, method: str, path: str, query: Any = None, body: Any = None, token: str = ADMINISTRATOR,
    content_type: str = "application/json",
) -> tuple[int, Any, dict[str, str]]:  # fmt: skip
    url = cluster.url + path + ("?" + urllib.parse.urlencode(query) if query else "")
    data = None if body is None else json.dumps(body).encode()
    headers = {"Authorization": f"Bearer {token}", "Content-Type": content_type}
    request = urllib.request.Request(url, data, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            status, raw, got = answer.status, answer.read(), dict(answer.headers)
    except urllib.error.HTTPError as error:
        status, raw, got = error.code, error.read(), dict(error.headers)
    text = raw.decode()
    if status == 200 and query and query.get("watch"):
        return status, [json.loads(line) for line in text.splitlines() if line], got
    return status, json.loads(text) if text.startswith("{") else text, got


def same(value: Any, names: dict[str, str]) -> Any:
    """A value without what differs from run to run, with the names of the recording."""
    if isinstance(value, dict):
        return {
            key: same(item, names)
            for key, item in sorted(value.items())
            if not _VOLATILE.match(key) and key not in _LEFT_OUT and item not in ({}, None)
        }
    if isinstance(value, list):
        return [same(item, names) for item in value]
    if isinstance(value, str):
        for new, old in names.items():
            value = value.replace(new, old)
    return value


@pytest.mark.parametrize(("recording", "job"), JOBS)
def test_a_played_job_is_seen_as_the_recorded_one(cluster: FakeKubernetes, recording: str, job: str) -> None:
    posted = next(
        exchange
        for exchange in exchanges(recording)
        if exchange["request"]["method"] == "POST" and exchange["request"]["body"]["metadata"].get("name") == job
    )
    cluster.play(recording, job, pause=0.0)
    path = posted["request"]["path"]
    body = json.loads(json.dumps(posted["request"]["body"]).replace(job, "another-name"))
    status, created, _ = call(cluster, "POST", path, body=body)
    assert status == posted["status"]
    cluster.settled()
    names = {"another-name": job}
    assert same(created, names) == same(posted["body"], names)
    for exchange in exchanges(recording):
        query = dict(exchange["request"].get("query") or {})
        if "events" not in exchange or not any(value.endswith(f"={job}") for value in query.values()):
            continue
        if not any(event["type"] == "ADDED" for event in exchange["events"]):
            continue
        query = {key: value.replace(job, "another-name") for key, value in query.items()}
        query |= {"resourceVersion": "1000", "timeoutSeconds": "0.05"}
        status, events, _ = call(cluster, "GET", exchange["request"]["path"], query)
        assert status == 200
        shown = [(e["type"], same(e["object"].get("status"), names)) for e in events]
        recorded = [(e["type"], same(e["object"].get("status"), names)) for e in exchange["events"]]
        assert shown == recorded[: len(shown)]
        left_out = [kind for kind, _ in recorded[len(shown) :]]
        assert set(left_out) <= {"MODIFIED", "DELETED"}  # the recording's client tidied up


def errors_as_recorded() -> list[Any]:
    """Requests of the recordings that ask for nothing that a test would have to make first."""
    wanted = [("06-errors", n) for n in (0, 1, 2, 3, 4, 5, 29, 31, 33, 35, 36, 47, 48, 55, 63, 67)]
    wanted += [("08-nodes", n) for n in (7, 8, 10)] + [("09-tokens", n) for n in (6, 7, 8, 11, 14, 29, 33)]
    return [pytest.param(*key, exchanges(key[0])[key[1]], id=f"{key[0]}-{key[1]}") for key in wanted]


@pytest.mark.parametrize(("recording", "number", "exchange"), errors_as_recorded())
def test_an_answer_is_as_recorded(cluster: FakeKubernetes, recording: str, number: int, exchange: Any) -> None:
    token = exchanges("09-tokens")[6]["request"]["body"]["spec"]["token"]
    runner = Account.service_account("enginehouse", "runner", "enginehouse.example")
    credential = {"authentication.kubernetes.io/credential-id": ["JTI=d234a5ba-0847-4262-a0eb-c174fb6a7f23"]}
    cluster.tokens[token] = Account(**{**vars(runner), "extra": credential})
    for name in ("nobody", "runner"):
        cluster.tokens[name] = Account.service_account("enginehouse", name)
    cluster.store.forgotten = int(
        (re.findall(r"too old resource version: \d+ \((\d+)\)", json.dumps(exchange)) or [424])[0]
    )
    request = exchange["request"]
    callers = {"bad token": "x", "token of a deleted ServiceAccount": "y"}
    who = request.get("as") or ""
    caller = callers.get(who) or (who.rpartition("/")[2] if who else ADMINISTRATOR)
    status, body, headers = call(
        cluster, request["method"], request["path"], request.get("query"), request.get("body"), caller
    )
    assert status == exchange["status"]
    if "events" in exchange:
        assert same(body, {}) == same(exchange["events"], {})
    else:
        assert same(body, {}) == same(exchange["body"], {})
    assert headers.get("Retry-After") == exchange["headers"].get("retry-after")


def test_deletions_answer_as_recorded(cluster: FakeKubernetes) -> None:
    recorded = exchanges("01-job-success")
    for posted, deleted in ((3, 18), (23, 24), (28, 29)):
        request = recorded[posted]["request"]
        name = request["body"]["metadata"]["name"]
        call(cluster, "POST", request["path"], body=json.loads(json.dumps(request["body"])))
        again = recorded[deleted]["request"]
        status, body, headers = call(cluster, "DELETE", again["path"], again.get("query"), again.get("body"))
        assert (status, body["kind"]) == (200, recorded[deleted]["body"]["kind"])
        assert (headers.get("Warning") is not None) == ("warning" in recorded[deleted]["headers"])
        assert body["metadata"].get("finalizers") == recorded[deleted]["body"]["metadata"].get("finalizers")
        if deleted == 18:
            assert call(cluster, "GET", f"{request['path']}/{name}")[0] == 404


def test_logs_answer_as_recorded(cluster: FakeKubernetes) -> None:
    recorded = exchanges("01-job-success")
    cluster.play("01-job-success", "engine-run-1", pause=0.0)
    call(cluster, "POST", recorded[3]["request"]["path"], body=json.loads(json.dumps(recorded[3]["request"]["body"])))
    wait_for_pod(cluster, "Succeeded")
    for number in (10, 12, 13):
        request = recorded[number]["request"]
        status, body, _ = call(cluster, "GET", request["path"], request.get("query"))
        assert (status, body) == (recorded[number]["status"], recorded[number]["body"])
    followed = call(cluster, "GET", recorded[7]["request"]["path"], {"follow": "true"})
    assert followed[:2] == (200, recorded[10]["body"])


@pytest.mark.parametrize(
    ("recording", "job", "number"), [("02-job-pending", "pend-selector", 11), ("03-job-image-pull", "pull-missing", 15)]
)
def test_logs_of_waiting_pods_answer_as_recorded(
    cluster: FakeKubernetes, recording: str, job: str, number: int
) -> None:
    recorded = exchanges(recording)
    cluster.play(recording, job, pause=0.0)
    request = recorded[3]["request"]
    call(cluster, "POST", request["path"], body=json.loads(json.dumps(request["body"])))
    cluster.settled()
    status, body, _ = call(cluster, "GET", recorded[number]["request"]["path"])
    assert (status, body) == (recorded[number]["status"], recorded[number]["body"])


def test_endpoint_slices_are_listed_and_watched(cluster: FakeKubernetes) -> None:
    recorded = exchanges("07-endpointslices")
    path, selector = recorded[0]["request"]["path"], {"labelSelector": "kubernetes.io/service-name=engine"}
    _, before, _ = call(cluster, "GET", path, selector)
    assert same(before, {}) == same(recorded[0]["body"], {})
    for event in recorded[1]["events"]:
        value = json.loads(json.dumps(event["object"]))
        where = value["metadata"]["namespace"], value["metadata"]["name"]
        if event["type"] == "ADDED":
            cluster.store.create("endpointslices", value)
        elif event["type"] == "MODIFIED":
            cluster.store.update("endpointslices", *where, lambda current, value=value: current.update(value))
        else:
            cluster.store.delete("endpointslices", *where)
    version = before["metadata"]["resourceVersion"]
    query = {**selector, "watch": "true", "timeoutSeconds": "0.3", "resourceVersion": version}
    _, events, _ = call(cluster, "GET", path, query)
    assert same(events, {}) == same(recorded[1]["events"], {})


def wait_for_pod(cluster: FakeKubernetes, phase: str) -> Any:
    for _ in range(200):
        pods = cluster.store.select("pods", "enginehouse", lambda pod: pod["status"].get("phase") == phase)
        if pods:
            return pods[0]
        time.sleep(0.02)
    raise AssertionError(f"no pod became {phase}")
