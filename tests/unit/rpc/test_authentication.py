"""Tokens on real calls: let in, refused before anything is read, and never in a log."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from guarded_server import CI_TOKEN, ROLES, VIEWER_TOKEN, bearer, guarded, refused, with_tokens
from pydantic import ValidationError

from enginehouse.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    PermissionDeniedError,
    UnauthenticatedError,
)
from enginehouse.rpc import watched_file
from enginehouse.rpc.authorization import Principal
from enginehouse.rpc.logging import configure_logging
from enginehouse.rpc.server import RpcServer
from enginehouse.rpc.settings import ServerSettings
from enginehouse.rpc.static_tokens import digest_of, new_token, parse_tokens, token_line
from enginehouse.v1 import blobs_pb2, blobs_pb2_grpc

STRANGER = "stranger-token-stranger-token-stranger"


async def test_a_token_says_who_calls_on_every_kind_of_method(tmp_path: Path) -> None:
    async with guarded(with_tokens(tmp_path)) as it:
        assert (await it.find(CI_TOKEN)).complete
        assert (await it.write(CI_TOKEN)).committed_bytes == 2
        assert len([message async for message in it.read(VIEWER_TOKEN, "projects/any")]) == 3
        ci = Principal("ci", authenticated=True)
        assert it.blobs.principals == [ci, ci, Principal("eve", True, ("viewers", "others"))]


async def test_who_is_unknown_or_may_not_is_refused_on_every_kind_of_method(tmp_path: Path) -> None:
    async with guarded(with_tokens(tmp_path)) as it:
        for token in ("", STRANGER):
            for call in (it.find(token), it.write(token), it.read(token).read()):
                assert isinstance(await refused(call), UnauthenticatedError)
        assert isinstance(await refused(it.write(VIEWER_TOKEN)), PermissionDeniedError)
        for call in (it.find(CI_TOKEN, "projects/b"), it.write(CI_TOKEN, "projects/b"), it.find(CI_TOKEN, "")):
            assert isinstance(await refused(call), PermissionDeniedError)
        assert it.blobs.principals == []


@pytest.mark.parametrize(
    "metadata",
    [
        (("authorization", f"Basic {CI_TOKEN}"),),
        (("authorization", CI_TOKEN),),
        (("authorization", "Bearer "),),
        (("authorization", f"Bearer {CI_TOKEN}"), ("authorization", f"Bearer {STRANGER}")),
        (("x-token", CI_TOKEN),),
        (("authorization", "Bearer " + "x" * 5000),),
    ],
)
async def test_anything_but_one_bearer_token_is_refused(tmp_path: Path, metadata: Any) -> None:
    async with guarded(with_tokens(tmp_path)) as it:
        stub = blobs_pb2_grpc.BlobsStub(it.channel)
        request = blobs_pb2.FindBlobRequest(parent="projects/mine")
        assert isinstance(await refused(stub.FindBlob(request, metadata=metadata)), UnauthenticatedError)
        assert (await stub.FindBlob(request, metadata=(("authorization", f"bEaReR  {CI_TOKEN} "),))).complete


async def test_a_refused_request_is_not_read(tmp_path: Path) -> None:
    """Bytes that are no message at all: parsing them would be INTERNAL."""
    async with guarded(with_tokens(tmp_path)) as it:
        call = it.channel.unary_unary("/enginehouse.v1.Blobs/FindBlob")
        for metadata, kind in ((None, UnauthenticatedError), (bearer(STRANGER), UnauthenticatedError)):
            assert isinstance(await refused(call(b"\xff" * 100_000, metadata=metadata)), kind)
        write = it.channel.unary_unary("/enginehouse.v1.Blobs/WriteBlob")
        assert isinstance(await refused(write(b"\xff" * 100_000, metadata=bearer(VIEWER_TOKEN))), PermissionDeniedError)


async def test_refusals_tell_nothing_of_what_is_there(tmp_path: Path) -> None:
    async with guarded(with_tokens(tmp_path)) as it:
        first = await refused(it.find(STRANGER, "projects/mine"))
        second = await refused(it.find("another-" + STRANGER, "projects/absent", digest="sha256:secret"))
        assert (first.message, first.details) == (second.message, second.details)
        denied = await refused(it.find(CI_TOKEN, "projects/secret"))
        assert denied.message == "ci does not have the role read in project secret"
        for error in (first, denied):
            assert "eve" not in error.message and STRANGER not in error.message and str(tmp_path) not in error.message


async def test_probes_need_no_token_and_reflection_does(tmp_path: Path) -> None:
    async with guarded(with_tokens(tmp_path)) as it:
        await it.server.set_ready(True)
        health = health_pb2_grpc.HealthStub(it.channel)
        answer = await health.Check(health_pb2.HealthCheckRequest(), metadata=bearer(STRANGER))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        reflection = reflection_pb2_grpc.ServerReflectionStub(it.channel)
        question = [reflection_pb2.ServerReflectionRequest(list_services="")]
        assert isinstance(await refused(reflection.ServerReflectionInfo(iter(question)).read()), UnauthenticatedError)
        call = reflection.ServerReflectionInfo(iter(question), metadata=bearer(CI_TOKEN))
        assert (await call.read()).list_services_response.service


async def test_files_are_read_again_when_they_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watched_file, "LOOK_SECONDS", 0.0)
    settings = with_tokens(tmp_path)
    async with guarded(settings) as it:
        assert isinstance(await refused(it.find(STRANGER)), UnauthenticatedError)
        (tmp_path / "tokens").write_text(token_line(STRANGER, "late", ("viewers",)))
        assert (await it.find(STRANGER)).complete
        assert isinstance(await refused(it.find(CI_TOKEN)), UnauthenticatedError)
        (tmp_path / "roles.yaml").write_text("bindings: []")
        assert isinstance(await refused(it.find(STRANGER)), PermissionDeniedError)
        # A broken file, or none, changes nothing.
        (tmp_path / "roles.yaml").write_text("bindings: [{roles: [everything], principals: [late]}]")
        assert isinstance(await refused(it.find(STRANGER)), PermissionDeniedError)
        (tmp_path / "tokens").unlink()
        assert isinstance(await refused(it.find(STRANGER)), PermissionDeniedError)
        # As Kubernetes replaces them: another file under the name.
        (tmp_path / "new").write_text(ROLES)
        (tmp_path / "new").replace(tmp_path / "roles.yaml")
        assert (await it.find(STRANGER)).complete


async def test_no_token_is_ever_logged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(level="debug", format="json", service="test")
    structlog.configure(cache_logger_on_first_use=False)  # or later tests would log to this test's stream
    try:
        settings = with_tokens(tmp_path)
        async with guarded(settings) as it:
            await it.find(CI_TOKEN)
            await refused(it.find(STRANGER))
            await refused(it.find(CI_TOKEN, "projects/b"))
            for _ in range(60):
                await refused(it.find(STRANGER))
    finally:
        structlog.reset_defaults()
        structlog.contextvars.clear_contextvars()
    text = capsys.readouterr().err
    assert CI_TOKEN not in text and STRANGER not in text and digest_of(CI_TOKEN) not in text
    lines = re.findall(r'"event": "refused"', text)
    assert 2 <= len(lines) < 50, "a stranger must not fill the log"
    assert '"principal": "ci"' in text and '"status": "PERMISSION_DENIED"' in text


def test_tokens_are_random_and_long() -> None:
    assert len({new_token() for _ in range(100)}) == 100
    assert parse_tokens(token_line(new_token(), "a", ("g", "h")).encode()).popitem()[1] == Principal(
        "a", True, ("g", "h")
    )
    for token, name in (("short", "a"), ("with space " * 9, "a"), (CI_TOKEN, ""), (CI_TOKEN, "a b"), (CI_TOKEN, "a,b")):
        with pytest.raises(InvalidArgumentError) as caught:
            token_line(token, name)
        assert token not in caught.value.message


@pytest.mark.parametrize(
    "line", ["plain-token name", "sha256:12 name", f"sha256:{'0' * 64}", f"sha256:{'0' * 64} a b c"]
)
def test_a_wrong_token_file_is_refused_without_what_it_says(line: str) -> None:
    with pytest.raises(InvalidArgumentError, match="line 2: expected sha256") as caught:
        parse_tokens(f"# tokens\n{line}\n".encode())
    assert "plain" not in caught.value.message
    twice = f"sha256:{'0' * 64} a\nsha256:{'0' * 64} b"
    with pytest.raises(InvalidArgumentError, match="line 2: the token of b"):
        parse_tokens(twice.encode())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"auth": "tokens", "auth_roles_file": "r"}, "AUTH_TOKENS_FILE"),
        ({"auth": "kubernetes"}, "AUTH_ROLES_FILE"),
        ({"auth_roles_file": "r"}, "callers who are known"),
        ({"auth": "kubernetes", "auth_roles_file": "r", "host": "0.0.0.0"}, "AUTH_ALLOW_PLAINTEXT"),
        ({"client_key": "k"}, "CLIENT_CERTIFICATE"),
    ],
)
def test_settings_that_would_not_protect_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        ServerSettings(**settings)
    ServerSettings(auth="kubernetes", auth_roles_file=Path("r"), host="0.0.0.0", auth_allow_plaintext=True)
    ServerSettings(auth="kubernetes", auth_roles_file=Path("r"))


async def test_missing_and_wrong_files_stop_the_start(tmp_path: Path) -> None:
    settings = with_tokens(tmp_path)
    (tmp_path / "roles.yaml").write_text("bindings: 1")
    with pytest.raises(FailedPreconditionError, match=r"roles\.yaml: expected one key"):
        RpcServer(ServerSettings(**settings), [])
    (tmp_path / "roles.yaml").unlink()
    with pytest.raises(FailedPreconditionError, match=r"roles\.yaml cannot be read: No such file"):
        RpcServer(ServerSettings(**settings), [])


async def test_calls_at_once_have_their_own_principals(tmp_path: Path) -> None:
    async with guarded(with_tokens(tmp_path)) as it:
        await asyncio.gather(*(it.find(token) for token in (CI_TOKEN, VIEWER_TOKEN) * 50))
        names = [principal.name for principal in it.blobs.principals]
        assert names.count("ci") == names.count("eve") == 50


async def test_health_has_a_port_of_its_own_where_it_is_asked_for(tmp_path: Path) -> None:
    async with guarded({**with_tokens(tmp_path), "health_port": 0}) as it:
        await it.server.set_ready(True)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{it.server.health_port}") as channel:
            answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await blobs_pb2_grpc.BlobsStub(channel).FindBlob(blobs_pb2.FindBlobRequest())
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
