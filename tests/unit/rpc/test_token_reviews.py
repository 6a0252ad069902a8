"""Service account tokens: the answers of a real API server, and a server of ours that asks one."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from guarded_server import ROLES, guarded, refused
from kubernetes_fake import API_AUDIENCE, Account, FakeKubernetes

from enginehouse.errors import (
    FailedPreconditionError,
    PermissionDeniedError,
    ResourceExhaustedError,
    UnauthenticatedError,
    UnavailableError,
)
from enginehouse.kubernetes.api_server import ApiServer
from enginehouse.rpc import token_checks
from enginehouse.rpc.authorization import Principal
from enginehouse.rpc.token_checks import REVIEWS, TokenReviews, seconds_left, verdict_of

TESTS = Path(__file__).resolve().parents[2]
OURS, WEB, OTHER = "b3Vycw.b3Vycw.b3Vycw", "d2Vi.d2Vi.d2Vi", "b3RoZXI.b3RoZXI.b3RoZXI"
REVIEWER = Account.service_account("enginehouse", "optimizer", verbs=frozenset({"tokenreviews:create"}))


def recorded() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Note, audience asked for, and answer of each TokenReview that a real API server answered."""
    for line in (TESTS / "recordings" / "k8s" / "09-tokens.jsonl").read_text().splitlines():
        exchange = json.loads(line)
        if exchange["request"]["path"] == REVIEWS and exchange["status"] == 201:
            spec = exchange["request"]["body"]["spec"]
            yield exchange.get("note", ""), (spec.get("audiences") or [API_AUDIENCE])[0], exchange["body"]


def test_recorded_verdicts() -> None:
    good = []
    for note, audience, answer in recorded():
        principal, reason = verdict_of(answer, audience)
        if principal is None:
            assert reason, note
        else:
            good.append(note)
            assert principal == Principal(
                "system:serviceaccount:enginehouse:runner",
                True,
                ("system:serviceaccounts", "system:serviceaccounts:enginehouse", "system:authenticated"),
            )
            assert verdict_of(answer, "elsewhere.example")[0] is None
    assert len(good) == 5 and good[0] == "good" and "wrong audience" not in good


@pytest.mark.parametrize(
    "status",
    [
        None,
        {},
        {"authenticated": True},
        {"authenticated": True, "user": {}, "audiences": ["enginehouse"]},
        {"authenticated": True, "user": {"username": "a"}},  # a server that does not know audiences
        {"authenticated": "true", "user": {"username": "a"}, "audiences": ["enginehouse"]},
        {"user": {"username": "a"}, "audiences": ["enginehouse"]},
    ],
)
def test_an_answer_that_does_not_say_yes_is_a_no(status: Any) -> None:
    assert verdict_of({"status": status}, "enginehouse")[0] is None


def jwt(**claims: Any) -> str:
    return "e30." + base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=") + ".eA"


def test_when_a_token_ends() -> None:
    assert seconds_left(jwt(exp=1100), 1000.0) == 100.0
    for unknown in (jwt(), "a.b.c", jwt(exp="soon"), "e30.W10.eA"):
        assert seconds_left(unknown, 0.0) == float("inf")


@pytest.fixture
def cluster() -> Iterator[FakeKubernetes]:
    with FakeKubernetes() as cluster:
        cluster.tokens[OURS] = REVIEWER
        cluster.tokens[WEB] = Account.service_account("apps", "web", "enginehouse")
        cluster.tokens[OTHER] = Account.service_account("apps", "web")  # for the API server, not for us
        yield cluster


def api_of(cluster: FakeKubernetes, folder: Path, token: str = OURS) -> ApiServer:
    (folder / "own-token").write_text(token + "\n")
    return ApiServer(cluster.url, folder / "own-token", timeout=5)


def settings_for(cluster: FakeKubernetes, folder: Path) -> dict[str, Any]:
    (folder / "roles.yaml").write_text(ROLES)
    (folder / "own-token").write_text(OURS)
    return {
        "auth": "kubernetes",
        "auth_roles_file": folder / "roles.yaml",
        "auth_kubernetes_url": cluster.url,
        "auth_kubernetes_token_file": folder / "own-token",
    }


async def test_service_accounts_call_a_server(cluster: FakeKubernetes, tmp_path: Path) -> None:
    async with guarded(settings_for(cluster, tmp_path)) as it:
        assert (await it.find(WEB)).complete
        assert it.blobs.principals[0].name == "system:serviceaccount:apps:web"
        assert "system:serviceaccounts:apps" in it.blobs.principals[0].groups
        assert isinstance(await refused(it.write(WEB)), PermissionDeniedError)
        for token in ("", OTHER, "garbage", "a.b.c"):
            assert isinstance(await refused(it.find(token)), UnauthenticatedError)
    reviewed = [body["spec"] for body in cluster.created("tokenreviews")]
    assert all(spec["audiences"] == ["enginehouse"] for spec in reviewed)
    # One question for each token, however often it came, and none for what is no token.
    assert [spec["token"] for spec in reviewed] == [WEB, OTHER, "a.b.c"]


async def test_an_api_server_that_is_away_is_unavailable(cluster: FakeKubernetes, tmp_path: Path) -> None:
    async with guarded(settings_for(cluster, tmp_path)) as it:
        cluster.stop()
        error = await refused(it.find(WEB))
        assert isinstance(error, UnavailableError) and error.retry_after_seconds == 1.0
        assert cluster.url not in error.message and it.blobs.principals == []


async def test_rights_that_are_missing_are_told_to_the_operator_alone(
    cluster: FakeKubernetes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.tokens[OURS] = Account.service_account("enginehouse", "optimizer")
    async with guarded(settings_for(cluster, tmp_path)) as it:
        error = await refused(it.find(WEB))
        assert isinstance(error, UnavailableError) and "forbidden" not in error.message
        # Our own token refused altogether.
        (tmp_path / "own-token").write_text("gone")
        assert isinstance(await refused(it.find(WEB)), UnavailableError)
        (tmp_path / "own-token").unlink()
        assert isinstance(await refused(it.find(WEB)), UnavailableError)
    said = "".join(capsys.readouterr())
    assert "system:auth-delegator" in said and "answered 401" in said
    assert WEB not in said and OURS not in said


class Clock:
    """`time.monotonic` in the test's hands."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


async def test_verdicts_are_remembered_for_a_while(cluster: FakeKubernetes, tmp_path: Path) -> None:
    clock = Clock()
    reviews = TokenReviews(api_of(cluster, tmp_path), "enginehouse", clock=clock)

    async def asked(token: str = WEB) -> int:
        before = len(cluster.created("tokenreviews"))
        await reviews.principal(token)
        while reviews._asking:
            await asyncio.sleep(0.01)
        return len(cluster.created("tokenreviews")) - before

    await asyncio.gather(*(reviews.principal(WEB) for _ in range(20)))
    assert len(cluster.created("tokenreviews")) == 1
    assert await asked() == 0
    clock.now += token_checks.FRESH_SECONDS
    assert await asked() == 1  # beside the call
    # Revoked: the call after the next look is refused.
    account = cluster.tokens.pop(WEB)
    clock.now += token_checks.FRESH_SECONDS
    assert await asked() == 1
    with pytest.raises(UnauthenticatedError):
        await reviews.principal(WEB)
    # A no holds for seconds only.
    cluster.tokens[WEB] = account
    with pytest.raises(UnauthenticatedError):
        await reviews.principal(WEB)
    clock.now += token_checks.BAD_SECONDS
    assert await asked() == 1
    # The API server away: what is remembered holds to its end and not longer.
    cluster.stop()
    clock.now += token_checks.GOOD_SECONDS - 1
    assert await asked() == 0
    clock.now += 1
    with pytest.raises(UnavailableError):
        await reviews.principal(WEB)


async def test_a_verdict_does_not_outlive_its_token(
    cluster: FakeKubernetes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    token = jwt(exp=5010)
    cluster.tokens[token] = Account.service_account("apps", "web", "enginehouse")
    monkeypatch.setattr(token_checks.time, "time", lambda: 5000.0)
    reviews = TokenReviews(api_of(cluster, tmp_path), "enginehouse", clock=clock)
    await reviews.principal(token)
    del cluster.tokens[token]
    clock.now += 9.9
    await reviews.principal(token)
    clock.now += 0.1
    with pytest.raises(UnauthenticatedError):
        await reviews.principal(token)


async def test_strangers_do_not_flood_the_api_server(
    cluster: FakeKubernetes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_checks, "MAX_WAITING", 8)
    monkeypatch.setattr(token_checks, "MAX_REMEMBERED", 4)
    reviews = TokenReviews(api_of(cluster, tmp_path), "enginehouse")
    found = await asyncio.gather(*(reviews.principal(f"a.b.c{number}") for number in range(50)), return_exceptions=True)
    kinds = [type(error) for error in found]
    assert kinds.count(UnauthenticatedError) == 8 and kinds.count(ResourceExhaustedError) == 42
    assert len(cluster.created("tokenreviews")) == 8 and len(reviews._known) == 4
    with pytest.raises(UnauthenticatedError):
        await reviews.principal("a.b." + "c" * 100_000)
    assert len(cluster.created("tokenreviews")) == 8


def test_where_the_api_server_is(tmp_path: Path) -> None:
    found = ApiServer.in_cluster(variables={"KUBERNETES_SERVICE_HOST": "10.0.0.1", "KUBERNETES_SERVICE_PORT": "6443"})
    assert found.url == "https://10.0.0.1:6443"
    assert str(found.token) == "/var/run/secrets/kubernetes.io/serviceaccount/token"
    assert ApiServer.in_cluster(variables={"KUBERNETES_SERVICE_HOST": "fd00::1"}).url == "https://[fd00::1]:443"
    with pytest.raises(FailedPreconditionError, match="not in a pod"):
        ApiServer.in_cluster(variables={})
