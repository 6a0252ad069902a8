"""The client's token and certificates, on real servers that ask for them."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from certificates_for_tests import make_ca, sign
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from guarded_server import CI_TOKEN, VIEWER_TOKEN, guarded, with_tokens

from enginehouse import TLS, AsyncClient, Client, Token
from enginehouse.client import connection
from enginehouse.client.addresses import from_environment
from enginehouse.client.connection import Endpoint
from enginehouse.errors import InvalidArgumentError, PermissionDeniedError, UnauthenticatedError
from enginehouse.rpc import watched_file
from enginehouse.rpc.channels import credentials_from, is_loopback
from enginehouse.v1 import blobs_pb2, blobs_pb2_grpc


def client_of(address: str, **options: object) -> AsyncClient:
    return AsyncClient(address, address, address, project="mine", timeout=10, **options)  # type: ignore[arg-type]


async def test_a_token_goes_with_every_kind_of_call(tmp_path: Path) -> None:
    async with guarded(with_tokens(tmp_path)) as it:
        endpoint = Endpoint(it.address, timeout=10, tls=None, token=Token(CI_TOKEN))
        stub = endpoint.stub(blobs_pb2_grpc.BlobsStub)
        await endpoint.unary(stub.FindBlob, blobs_pb2.FindBlobRequest(parent="projects/mine"))

        async def messages() -> AsyncIterator[Any]:
            yield blobs_pb2.WriteBlobRequest(parent="projects/mine")

        await endpoint.send(stub.WriteBlob, messages())
        request = blobs_pb2.ReadBlobRequest(parent="projects/mine")
        assert len([message async for message in endpoint.stream(stub.ReadBlob, request)]) == 3
        assert [principal.name for principal in it.blobs.principals] == ["ci"] * 3
        reflection = endpoint.stub(reflection_pb2_grpc.ServerReflectionStub)
        call = reflection.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
        assert (await call.read()).list_services_response.service
        await endpoint.close()


async def test_what_a_caller_may_not_do_is_told(tmp_path: Path) -> None:
    async with guarded(with_tokens(tmp_path)) as it:
        endpoint = Endpoint(it.address, timeout=10, tls=None, token=Token(VIEWER_TOKEN))

        async def messages() -> AsyncIterator[Any]:
            yield blobs_pb2.WriteBlobRequest(parent="projects/mine")

        with pytest.raises(PermissionDeniedError, match="eve does not have the role submit"):
            await endpoint.send(endpoint.stub(blobs_pb2_grpc.BlobsStub).WriteBlob, messages())
        await endpoint.close()
        for nobody in (None, "some-other-token-some-other-token"):
            async with client_of(it.address, token=nobody) as client:
                with pytest.raises(UnauthenticatedError):
                    await client.blobs.size("sha256:" + "0" * 64)


async def test_a_token_file_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watched_file, "LOOK_SECONDS", 0.0)
    file = tmp_path / "token"
    async with guarded(with_tokens(tmp_path)) as it, client_of(it.address, token_file=file) as client:
        with pytest.raises(UnauthenticatedError, match=r"token cannot be read: No such file"):
            await client.blobs.size("sha256:" + "0" * 64)
        file.write_text("an-old-token-an-old-token-an-old-token\n")
        with pytest.raises(UnauthenticatedError, match="not valid here"):
            await client.blobs.size("sha256:" + "0" * 64)
        file.write_text(CI_TOKEN + "\n")
        await client.blobs.size("sha256:" + "0" * 64)
        file.unlink()  # while it is replaced
        await client.blobs.size("sha256:" + "0" * 64)
        assert [principal.name for principal in it.blobs.principals] == ["ci", "ci"]


async def test_new_certificates_are_used_and_streams_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "LOOK_SECONDS", 0.0)
    make_ca(tmp_path)
    for name in ("server", "client", "next"):
        sign(tmp_path, name)
    (tmp_path / "roles.yaml").write_text('bindings: [{roles: [read], groups: ["system:authenticated"]}]')
    settings = {"tls_certificate": tmp_path / "server.pem", "tls_key": tmp_path / "server.key"}
    settings |= {"tls_client_ca": tmp_path / "ca.pem", "auth_roles_file": tmp_path / "roles.yaml"}
    tls = TLS(tmp_path / "ca.pem", tmp_path / "client.pem", tmp_path / "client.key")
    async with guarded(settings) as it, client_of(it.address, tls=tls) as client:
        await client.blobs.size("sha256:" + "0" * 64)
        shutil.copy(tmp_path / "next.pem", tmp_path / "client.pem")  # half of it
        await client.blobs.size("sha256:" + "0" * 64)
        shutil.copy(tmp_path / "next.key", tmp_path / "client.key")
        await client.blobs.size("sha256:" + "0" * 64)
        assert [principal.name for principal in it.blobs.principals] == ["client", "client", "next"]


async def test_tokens_do_not_go_in_plain_text_to_other_machines() -> None:
    async with client_of("192.0.2.1:8010", token=CI_TOKEN) as client:
        with pytest.raises(InvalidArgumentError, match=r"192\.0\.2\.1:8010 in plain text") as caught:
            await client.models.list()
        assert CI_TOKEN not in caught.value.message
        with pytest.raises(InvalidArgumentError, match="in plain text"):
            await client.model_metadata("m")
    assert all(is_loopback(a) for a in ("127.0.0.1:1", "localhost:1", "[::1]:1", "unix:/run/x", "127.3.4.5:1"))
    assert not any(is_loopback(a) for a in ("10.0.0.1:1", "optimizer:1", "0.0.0.0:1", "localhost.evil:1"))


def test_a_token_is_not_shown() -> None:
    assert CI_TOKEN not in repr(Token(CI_TOKEN)) + repr(credentials_from({"ENGINEHOUSE_CLIENT_TOKEN": CI_TOKEN}))
    for wrong in ("", "two words", "line\nbreak", "ünicode"):
        with pytest.raises(InvalidArgumentError) as caught:
            Token(wrong)
        assert not wrong or wrong not in caught.value.message
    with pytest.raises(InvalidArgumentError, match="one of the two"):
        Token("a", file=Path("b"))
    with pytest.raises(InvalidArgumentError, match="one of the two"):
        Client(token="a", token_file=Path("b"))


async def test_the_environment_gives_credentials(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text(CI_TOKEN)
    async with guarded(with_tokens(tmp_path)) as it:
        variables = {
            "ENGINEHOUSE_HOME": str(tmp_path),
            "ENGINEHOUSE_OPTIMIZER": it.address,
            "ENGINEHOUSE_PROJECT": "mine",
            "ENGINEHOUSE_CLIENT_TOKEN_FILE": str(tmp_path / "mine"),
        }
        async with AsyncClient.from_environment(variables) as client:
            await client.blobs.size("sha256:" + "0" * 64)
    assert from_environment({"ENGINEHOUSE_HOME": str(tmp_path), "ENGINEHOUSE_CLIENT_TLS": "true"}).tls == TLS()
    both = {"ENGINEHOUSE_CLIENT_TOKEN": "a", "ENGINEHOUSE_CLIENT_TOKEN_FILE": "b"}
    with pytest.raises(InvalidArgumentError, match="one of the two"):
        credentials_from(both)
