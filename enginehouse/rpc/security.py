"""What a server's settings say of who may call it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import structlog

from enginehouse.errors import EnginehouseError, FailedPreconditionError
from enginehouse.kubernetes.api_server import ApiServer
from enginehouse.rpc.admission import TokenAdmission
from enginehouse.rpc.authorization import Admission, AllowAll, Authorizer
from enginehouse.rpc.role_bindings import RoleAuthorizer, parse_bindings
from enginehouse.rpc.settings import ServerSettings
from enginehouse.rpc.static_tokens import parse_tokens
from enginehouse.rpc.token_checks import StaticTokens, TokenChecker, TokenReviews
from enginehouse.rpc.watched_file import WatchedFile

_T = TypeVar("_T")
_log = structlog.get_logger("auth")


@dataclass(frozen=True)
class Security:
    """How calls are let in: all of them without an `admission`."""

    authorizer: Authorizer
    admission: Admission | None = None

    @classmethod
    def of(cls, settings: ServerSettings) -> Security:
        """As the settings say.

        Raises:
            FailedPreconditionError: a file is missing or wrong, or this is no pod.
        """
        if settings.auth_roles_file is None:
            return cls(AllowAll())
        authorizer = RoleAuthorizer(_watched(settings.auth_roles_file, parse_bindings).get)
        certificates = settings.tls_client_ca is not None
        return cls(authorizer, TokenAdmission(_tokens(settings), authorizer, certificates=certificates))


def _tokens(settings: ServerSettings) -> TokenChecker | None:
    if settings.auth == "tokens":
        assert settings.auth_tokens_file is not None  # the settings checked it
        return StaticTokens(_watched(settings.auth_tokens_file, parse_tokens).get)
    if settings.auth == "kubernetes":
        server = ApiServer.in_cluster(
            settings.auth_kubernetes_url, settings.auth_kubernetes_token_file, settings.auth_kubernetes_ca
        )
        return TokenReviews(server, settings.auth_audience)
    return None


def _watched(path: Path, parse: Callable[[bytes], _T]) -> WatchedFile[_T]:
    try:
        return WatchedFile(path, parse, wrong=_tell)
    except OSError as error:
        raise FailedPreconditionError(f"{path} cannot be read: {error.strerror}") from None
    except EnginehouseError as error:
        raise FailedPreconditionError(f"{path}: {error.message}") from None


def _tell(path: Path, error: Exception) -> None:
    reason = error.strerror if isinstance(error, OSError) else str(error)
    _log.error("the file's new content is not used: what it held before still holds", path=str(path), reason=reason)
