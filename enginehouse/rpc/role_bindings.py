"""Which principals and groups have which roles in which projects: a YAML file, and an authorizer that goes by it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import yaml

from enginehouse.errors import InvalidArgumentError, PermissionDeniedError, UnauthenticatedError
from enginehouse.rpc.authorization import Principal
from enginehouse.rpc.roles import Access, Role, needed_for, with_included

# Kubernetes' names for everybody who is known, and for everybody else.
AUTHENTICATED_GROUP = "system:authenticated"
UNAUTHENTICATED_GROUP = "system:unauthenticated"

_KEYS = ("roles", "principals", "groups", "projects")
_MAX_REMEMBERED = 4096
NO_CREDENTIALS = 'this call needs credentials: send the metadata "authorization: Bearer TOKEN"'


@dataclass(frozen=True)
class Binding:
    """Gives roles to principals and members of groups, in some projects (in all when None)."""

    roles: frozenset[Role]
    principals: frozenset[str] = frozenset()
    groups: frozenset[str] = frozenset()
    projects: frozenset[str] | None = None

    def matches(self, principal: Principal) -> bool:
        if principal.authenticated and principal.name in self.principals:
            return True
        common = AUTHENTICATED_GROUP if principal.authenticated else UNAUTHENTICATED_GROUP
        return common in self.groups or not self.groups.isdisjoint(principal.groups)


class Bindings:
    """All bindings of a file."""

    def __init__(self, bindings: Iterable[Binding]) -> None:
        self._bindings = tuple(bindings)
        self._of: dict[tuple[str, tuple[str, ...], bool], tuple[Binding, ...]] = {}

    def of(self, principal: Principal) -> tuple[Binding, ...]:
        """Those of a principal."""
        key = (principal.name, principal.groups, principal.authenticated)
        found = self._of.get(key)
        if found is None:
            if len(self._of) >= _MAX_REMEMBERED:
                self._of.clear()
            found = self._of[key] = tuple(b for b in self._bindings if b.matches(principal))
        return found


def parse_bindings(content: bytes) -> Bindings:
    """Read a roles file.

    Raises:
        InvalidArgumentError: it is not as docs/security.md says.
    """
    try:
        found = yaml.safe_load(content)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InvalidArgumentError(f"it is not YAML: {error}") from None
    if not isinstance(found, dict) or set(found) != {"bindings"} or not isinstance(found["bindings"], list):
        raise InvalidArgumentError("expected one key, bindings, with a list")
    return Bindings(_binding(item, number) for number, item in enumerate(found["bindings"]))


def _binding(item: Any, number: int) -> Binding:
    where = f"bindings[{number}]"
    if not isinstance(item, dict):
        raise InvalidArgumentError(f"{where}: expected the keys {', '.join(_KEYS)}")
    if unknown := sorted(str(key) for key in set(item) - set(_KEYS)):
        raise InvalidArgumentError(f"{where} has {', '.join(unknown)}: expected only {', '.join(_KEYS)}")
    names = _texts(item, "roles", where)
    known = {role.value: role for role in Role}
    if not names or not names <= set(known):
        wrong = ", ".join(sorted(names - set(known))) or "none"
        raise InvalidArgumentError(f"{where}.roles: {wrong}: expected of {', '.join(known)}")
    principals, groups = _texts(item, "principals", where), _texts(item, "groups", where)
    if not principals and not groups:
        raise InvalidArgumentError(f"{where}: expected principals or groups")
    projects = _texts(item, "projects", where) if "projects" in item else None
    if projects is not None and not projects:
        raise InvalidArgumentError(f"{where}.projects is empty: leave it out for all projects")
    roles = frozenset(role for name in names for role in with_included(known[name]))
    return Binding(roles, principals, groups, projects)


def _texts(item: dict[str, Any], key: str, where: str) -> frozenset[str]:
    found = item.get(key, [])
    if not isinstance(found, list) or not all(isinstance(text, str) and text for text in found):
        raise InvalidArgumentError(f"{where}.{key}: expected a list of texts")
    return frozenset(found)


class RoleAuthorizer:
    """Allows what the bindings give.

    Args:
        bindings: those of now.
    """

    def __init__(self, bindings: Callable[[], Bindings]) -> None:
        self._bindings = bindings

    async def authorize(self, principal: Principal, method: str, resource: str) -> None:
        """Return to allow a call, as `Authorizer` says."""
        needed = needed_for(method)
        if not isinstance(needed, tuple):
            self.check(principal, method)
            return
        project = _project(resource)
        for binding in self._bindings().of(principal):
            if (binding.projects is None or project in binding.projects) and not binding.roles.isdisjoint(needed):
                return
        self.check(principal, method)
        where = f"project {project}" if project else "all projects"
        raise PermissionDeniedError(f"{principal.name} does not have the role {_either(needed)} in {where}")

    def check(self, principal: Principal, method: str) -> None:
        """Return when the caller may call the method in some project.

        Raises:
            UnauthenticatedError, PermissionDeniedError: not in any.
        """
        needed = needed_for(method)
        if needed is Access.OPEN or (needed is Access.AUTHENTICATED and principal.authenticated):
            return
        if isinstance(needed, tuple) and any(not b.roles.isdisjoint(needed) for b in self._bindings().of(principal)):
            return
        if not principal.authenticated:
            raise UnauthenticatedError(NO_CREDENTIALS)
        if not isinstance(needed, tuple):
            raise PermissionDeniedError(f"no role allows {method}")
        raise PermissionDeniedError(f"{principal.name} does not have the role {_either(needed)}")


def _project(resource: str) -> str:
    """The project of "projects/{project}/..."; empty when it is not of that form."""
    parts = resource.split("/")
    return parts[1] if len(parts) > 1 and parts[0] == "projects" else ""


def _either(needed: tuple[Role, ...]) -> str:
    return " or ".join(role.value for role in needed)
