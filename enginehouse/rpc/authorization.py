"""Who calls, and whether they may: a principal for each call and an `authorize()` hook that every call passes."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

from google.protobuf.message import Message


@dataclass(frozen=True)
class Principal:
    """A caller. `name` is "anonymous", or the common name of the client's certificate under mutual TLS."""

    name: str
    authenticated: bool = False


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
        """


class AllowAll:
    """The default on loopback and behind a mesh that authorizes."""

    async def authorize(self, principal: Principal, method: str, resource: str) -> None:
        return None


def principal_of(auth_context: Any) -> Principal:
    """The principal in a connection's authentication context (`ServicerContext.auth_context()`)."""
    names = auth_context.get("x509_common_name") or []
    if names:
        name = names[0]
        return Principal(name.decode() if isinstance(name, bytes) else str(name), authenticated=True)
    return ANONYMOUS


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
