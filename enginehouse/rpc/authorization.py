"""Who calls, and whether they may: a principal for each call and an `authorize()` hook that every call passes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

from google.protobuf.message import Message

# What `ServicerContext.invocation_metadata()` and `HandlerCallDetails.invocation_metadata` are.
Metadata = Iterable[tuple[str, str | bytes]]


@dataclass(frozen=True)
class Principal:
    """A caller.

    Attributes:
        name: "anonymous", or as the token or the certificate says, such as "system:serviceaccount:apps:web".
        groups: those that the token's issuer puts it in.
    """

    name: str
    authenticated: bool = False
    groups: tuple[str, ...] = ()


ANONYMOUS = Principal("anonymous")

_current: ContextVar[Principal] = ContextVar("principal", default=ANONYMOUS)


def current_principal() -> Principal:
    """The principal of the call that runs now."""
    return _current.get()


def set_principal(principal: Principal) -> None:
    _current.set(principal)


class Authorizer(Protocol):
    """Decides whether a call may go on."""

    async def authorize(self, principal: Principal, method: str, resource: str) -> None:
        """Return to allow it.

        Args:
            method: the full method, such as "/enginehouse.v1.Models/GetModel".
            resource: the name or parent that the request names; empty when it names none.

        Raises:
            PermissionDeniedError: it may not.
            UnauthenticatedError: it may not, and nobody knows who calls.
        """


class AllowAll:
    """The default on loopback and behind a mesh that authorizes."""

    async def authorize(self, principal: Principal, method: str, resource: str) -> None:
        return None


class Admission(Protocol):
    """Looks at a call before its request is read, so that strangers cannot make a server read what they send."""

    async def admit(self, method: str, metadata: Metadata) -> None:
        """Set the principal, where what came with the call says who it is; the connection may say it otherwise.

        Raises:
            UnauthenticatedError: what came is not valid, or must come and did not.
            PermissionDeniedError: the caller may not call the method, whatever it names.
            UnavailableError: nobody can tell just now.
        """


def principal_of(auth_context: Any) -> Principal:
    """The principal in a connection's authentication context (`ServicerContext.auth_context()`).

    Under mutual TLS the common name of the client's certificate; without one its first SPIFFE id, then its first
    other alternative name.
    """
    names = auth_context.get("x509_common_name") or []
    if not names or not names[0]:
        alternatives = [_text(name) for name in auth_context.get("x509_subject_alternative_name") or []]
        names = [n for n in alternatives if n.startswith("spiffe://")] or alternatives
    if names and names[0]:
        return Principal(_text(names[0]), authenticated=True)
    return ANONYMOUS


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


# From a full method and its request (or one message of its request stream) to what it names; "" when it names nothing.
ResourceOf = Callable[[str, Any], str]


def resource_of(method: str, request: Any) -> str:
    """The resource that a request names: its `name`, `parent`, or the name inside the resource that it carries."""
    if not isinstance(request, Message):
        return ""
    fields = request.DESCRIPTOR.fields_by_name
    for field in ("name", "parent"):
        if field in fields and isinstance(value := getattr(request, field), str) and value:
            return value
    for descriptor, value in request.ListFields():
        if isinstance(value, Message) and "name" in value.DESCRIPTOR.fields_by_name and descriptor.number == 1:
            return str(getattr(value, "name", ""))
    return ""
