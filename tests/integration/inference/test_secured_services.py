"""An optimizer and an inference service that ask who calls: by tokens over TLS, with client certificates, by roles."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_bundles import bundle, folder_files
from inference_world import Server, wait_for
from optimizer_process import OptimizerProcess

sys.path.append(str(Path(__file__).parents[2] / "unit" / "rpc"))

from certificates_for_tests import make_ca, sign

from enginehouse import TLS, Client, Token
from enginehouse.errors import PermissionDeniedError, UnauthenticatedError, UnavailableError
from enginehouse.rpc.static_tokens import new_token, token_line

ROLES = """
bindings:
  - {roles: [submit, load, infer], principals: [builder], projects: [default]}
  - {roles: [infer], groups: [applications], projects: [default]}
  - {roles: [read], principals: [inference], projects: [default]}
"""


@pytest.fixture
def secrets(tmp_path: Path) -> dict[str, str]:
    """Tokens by caller, and in the folder what services and callers need."""
    folder = tmp_path / "secrets"
    folder.mkdir()
    make_ca(folder)
    for name in ("optimizer-server", "inference-server", "inference-client", "caller"):
        sign(folder, name)
    tokens = {name: new_token() for name in ("builder", "web", "inference")}
    groups = {"web": ("applications",)}
    (folder / "tokens").write_text("\n".join(token_line(t, name, groups.get(name, ())) for name, t in tokens.items()))
    (folder / "roles.yaml").write_text(ROLES)
    (folder / "inference.token").write_text(tokens["inference"])
    return {**tokens, "folder": str(folder)}


def _guard(folder: Path, server: str) -> dict[str, str]:
    return {
        "tls_certificate": str(folder / f"{server}.pem"),
        "tls_key": str(folder / f"{server}.key"),
        "tls_client_ca": str(folder / "ca.pem"),
        "auth": "tokens",
        "auth_tokens_file": str(folder / "tokens"),
        "auth_roles_file": str(folder / "roles.yaml"),
        "health_port": "0",
        "log_level": "debug",
    }


@pytest.mark.parametrize("fronts", ["1", pytest.param("2", marks=pytest.mark.slow)])
def test_an_engine_is_imported_fetched_and_run_by_those_who_may(
    fronts: str, secrets: dict[str, str], models: Path, tmp_path: Path, start_server: Callable[..., Server]
) -> None:
    folder = Path(secrets.pop("folder"))
    variables = {f"ENGINEHOUSE_{k.upper()}": v for k, v in _guard(folder, "optimizer-server").items()}
    optimizer = OptimizerProcess(tmp_path / "optimizer", **variables)
    try:
        port = json.loads((optimizer.root / "announce.json").read_text())["port"]
        server = start_server(
            fronts=fronts,
            optimizer=f"localhost:{port}",
            client_ca=str(folder / "ca.pem"),
            client_certificate=str(folder / "inference-client.pem"),
            client_key=str(folder / "inference-client.key"),
            client_token_file=str(folder / "inference.token"),
            **_guard(folder, "inference-server"),
        )
        tls = TLS(folder / "ca.pem", folder / "caller.pem", folder / "caller.key")

        def client(token: str | None, tls: TLS | None = tls, project: str = "default") -> Client:
            return Client(f"localhost:{port}", f"localhost:{server.port}", tls=tls, token=token, project=project)

        x: Any = np.ones((1, 4), np.float32)
        with client(secrets["builder"]) as builder:
            engine = builder.engines.import_file(bundle(tmp_path / "double.engine", folder_files(models / "double")))
            builder.load("m", engine)
            assert builder.infer("m", x).only().tolist() == [[2.0] * 4]
            with pytest.raises(PermissionDeniedError, match="builder does not have the role admin"):
                builder.store.collect_garbage()
        with client(secrets["web"]) as web:
            assert web.infer("m", x).only().tolist() == [[2.0] * 4]
            for refused in (web.engines.list, lambda: web.unload("m"), web.models.list):
                with pytest.raises(PermissionDeniedError):
                    refused()
        with client(secrets["web"], project="other") as elsewhere, pytest.raises(PermissionDeniedError):
            elsewhere.models.list()
        # Known by its certificate alone: nobody gave it a role.
        with client(None) as certified, pytest.raises(PermissionDeniedError, match="caller does not have"):
            certified.infer("m", x)
        with client(new_token()) as stranger, pytest.raises(UnauthenticatedError):
            stranger.infer("m", x)
        # Plain text, or without a certificate, is no connection.
        for other in (None, TLS(folder / "ca.pem")):
            token: Any = Token(secrets["web"], allow_plaintext=True)
            with client(token, other) as outside, pytest.raises(UnavailableError):
                outside.engines.list()
        wait_for(lambda: "listening" in server.log())
        logs = server.log() + optimizer.log.read_text()
    finally:
        assert optimizer.stop() == 0, optimizer.log.read_text()
    assert '"event": "refused"' in logs and '"principal": "web"' in logs
    for token in secrets.values():
        assert token not in logs
