"""Certificates on real connections: whose they are, and files that are replaced while the server serves."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from certificates_for_tests import make_ca, openssl, sign
from guarded_server import CI_TOKEN, ROLES, VIEWER_TOKEN, bearer, guarded, refused, with_tokens

from enginehouse.errors import (
    FailedPreconditionError,
    PermissionDeniedError,
    UnauthenticatedError,
    UnavailableError,
)
from enginehouse.rpc import certificates
from enginehouse.rpc.authorization import Principal, principal_of
from enginehouse.rpc.certificates import CertificateFiles, RotatingCertificates
from enginehouse.rpc.server import RpcServer
from enginehouse.rpc.settings import ServerSettings
from enginehouse.v1 import blobs_pb2, blobs_pb2_grpc


@pytest.fixture
def pki(tmp_path: Path) -> Path:
    make_ca(tmp_path)
    for name in ("server", "client", "stranger"):
        sign(tmp_path, name)
    return tmp_path


def tls_settings(folder: Path, *, mutual: bool) -> dict[str, Any]:
    settings = {"tls_certificate": folder / "server.pem", "tls_key": folder / "server.key"}
    return {**settings, "tls_client_ca": folder / "ca.pem"} if mutual else settings


def credentials(folder: Path, name: str = "", ca: str = "ca") -> Callable[[], grpc.ChannelCredentials]:
    def make() -> grpc.ChannelCredentials:
        trusted = (folder / f"{ca}.pem").read_bytes()
        if not name:
            return grpc.ssl_channel_credentials(trusted)
        key, certificate = (folder / f"{name}.key").read_bytes(), (folder / f"{name}.pem").read_bytes()
        return grpc.ssl_channel_credentials(trusted, key, certificate)

    return make


async def find(address: str, made: grpc.ChannelCredentials, token: str = "") -> Any:
    options = [("grpc.use_local_subchannel_pool", 1)]  # a connection of its own
    async with grpc.aio.secure_channel(address, made, options=options) as channel:
        request = blobs_pb2.FindBlobRequest(parent="projects/mine")
        return await blobs_pb2_grpc.BlobsStub(channel).FindBlob(request, metadata=bearer(token), timeout=10)


async def test_certificates_have_roles_as_tokens_have(pki: Path) -> None:
    (pki / "roles.yaml").write_text(ROLES)
    settings = {**tls_settings(pki, mutual=True), "auth_roles_file": pki / "roles.yaml"}
    async with guarded(settings, credentials(pki, "client")) as it:
        assert (await it.find()).complete
        assert it.blobs.principals == [Principal("client", authenticated=True)]
        assert isinstance(await refused(it.write()), PermissionDeniedError)
        assert isinstance(await refused(find(it.address, credentials(pki, "stranger")())), PermissionDeniedError)
        assert isinstance(await refused(find(it.address, credentials(pki)())), UnavailableError)


async def test_a_token_says_more_than_the_certificate(pki: Path) -> None:
    settings = {**with_tokens(pki), **tls_settings(pki, mutual=True)}
    async with guarded(settings, credentials(pki, "client")) as it:
        await it.find(VIEWER_TOKEN)
        await it.find()
        assert [p.name for p in it.blobs.principals] == ["eve", "client"]
        # A bad token is not made good by a certificate.
        assert isinstance(await refused(it.find("x" * 40)), UnauthenticatedError)


async def test_tokens_over_tls(pki: Path) -> None:
    settings = {**with_tokens(pki), **tls_settings(pki, mutual=False), "health_port": 0}
    async with guarded(settings, credentials(pki)) as it:
        assert (await it.find(CI_TOKEN)).complete
        assert isinstance(await refused(it.find()), UnauthenticatedError)


def test_names_in_certificates() -> None:
    def named(common: list[bytes], alternatives: list[bytes]) -> Principal:
        return principal_of({"x509_common_name": common, "x509_subject_alternative_name": alternatives})

    assert named([b"a"], [b"b"]).name == "a"
    assert named([], [b"x.svc", b"spiffe://cluster/ns/apps/sa/web"]).name == "spiffe://cluster/ns/apps/sa/web"
    assert named([b""], [b"x.svc"]) == Principal("x.svc", authenticated=True)
    assert not named([], []).authenticated


async def test_a_new_certificate_is_used_without_dropping_the_port(pki: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certificates, "LOOK_SECONDS", 0.0)
    make_ca(pki, "new-ca")
    sign(pki, "new", ca="new-ca")
    async with guarded(tls_settings(pki, mutual=True), credentials(pki, "client")) as it:
        assert (await it.find()).complete
        # Half of a rotation: the old pair goes on.
        shutil.copy(pki / "new.pem", pki / "server.pem")
        assert (await find(it.address, credentials(pki, "client")())).complete
        shutil.copy(pki / "new.key", pki / "server.key")
        assert (await find(it.address, credentials_with(pki, "client", "new-ca"))).complete
        assert isinstance(await refused(find(it.address, credentials(pki, "client")())), UnavailableError)
        # The connection that was there lives on.
        assert (await it.find()).complete
        # Another CA for clients: the old client's certificate is worth nothing any more.
        shutil.copy(pki / "new-ca.pem", pki / "ca.pem")
        sign(pki, "new-client", ca="new-ca")
        assert (await find(it.address, credentials_with(pki, "new-client", "new-ca"))).complete
        assert isinstance(await refused(find(it.address, credentials_with(pki, "client", "new-ca"))), UnavailableError)
        # Files that are gone change nothing.
        (pki / "server.key").unlink()
        assert (await find(it.address, credentials_with(pki, "new-client", "new-ca"))).complete


def credentials_with(folder: Path, name: str, ca: str) -> grpc.ChannelCredentials:
    return credentials(folder, name, ca)()


@pytest.mark.parametrize("broken", ["missing", "other key", "not PEM", "no CA", "encrypted"])
async def test_certificates_that_cannot_be_used_stop_the_start(pki: Path, broken: str) -> None:
    settings = tls_settings(pki, mutual=True)
    if broken == "missing":
        (pki / "server.pem").unlink()
    elif broken == "other key":
        shutil.copy(pki / "client.key", pki / "server.key")
    elif broken == "not PEM":
        (pki / "server.pem").write_text("certificate")
    elif broken == "no CA":
        (pki / "ca.pem").write_text("no CA")
    else:
        openssl("ec", "-aes256", "-passout", "pass:x", "-in", "server.key", "-out", "locked.key", cwd=pki)
        shutil.copy(pki / "locked.key", pki / "server.key")
    server = RpcServer(ServerSettings(**settings), [])
    with pytest.raises(FailedPreconditionError, match="TLS: "):
        await server.start()
    with pytest.raises(FailedPreconditionError):
        RotatingCertificates(CertificateFiles(pki / "server.pem", pki / "server.key", pki / "ca.pem"))
    await server.stop()
