"""Who calls, by the bearer token that came with a call; before its request is read."""

from __future__ import annotations

from enginehouse.errors import UnauthenticatedError
from enginehouse.rpc.authorization import ANONYMOUS, Metadata, set_principal
from enginehouse.rpc.role_bindings import RoleAuthorizer
from enginehouse.rpc.roles import Access, needed_for
from enginehouse.rpc.token_checks import TokenChecker

_HEADER = "authorization"
_SCHEME = "bearer "


class TokenAdmission:
    """Lets in whoever has a token that is known and a role for the method.

    Args:
        tokens: knows them; None: nobody has any, and certificates alone say who calls.
        certificates: connections say who calls where no token came (mutual TLS).
    """

    def __init__(self, tokens: TokenChecker | None, authorizer: RoleAuthorizer, *, certificates: bool) -> None:
        self._tokens = tokens
        self._authorizer = authorizer
        self._certificates = certificates

    async def admit(self, method: str, metadata: Metadata) -> None:
        """Let a call go on, as `Admission` says."""
        if needed_for(method) is Access.OPEN:
            return
        token = bearer_token(metadata) if self._tokens is not None else None
        if token is None or self._tokens is None:
            if not self._certificates:
                self._authorizer.check(ANONYMOUS, method)
            return
        # Each call is a task of its own, so this is the principal of this call alone.
        set_principal(principal := await self._tokens.principal(token))
        self._authorizer.check(principal, method)


def bearer_token(metadata: Metadata) -> str | None:
    """The token of "authorization: Bearer TOKEN"; None when there is no such metadata.

    Raises:
        UnauthenticatedError: there are two, or it is of another scheme.
    """
    found = [value for key, value in metadata if key == _HEADER]
    if not found:
        return None
    value = found[0].decode(errors="replace") if isinstance(found[0], bytes) else found[0]
    if len(found) > 1 or value[: len(_SCHEME)].lower() != _SCHEME or not value[len(_SCHEME) :].strip():
        raise UnauthenticatedError('expected one "authorization: Bearer TOKEN"')
    return value[len(_SCHEME) :].strip()
