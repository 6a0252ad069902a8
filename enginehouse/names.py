"""Resource names: `projects/{project}/{collection}/{id}`, after Google's AIP-122."""

from __future__ import annotations

import re
from dataclasses import dataclass

from enginehouse.errors import InvalidArgumentError

DEFAULT_PROJECT = "default"

_ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_OUTPUT_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,190}")


@dataclass(frozen=True)
class ResourceName:
    """A parsed name. `str()` of it is the name."""

    project: str
    collection: str
    id: str

    def __str__(self) -> str:
        return f"projects/{self.project}/{self.collection}/{self.id}"

    @property
    def parent(self) -> str:
        return f"projects/{self.project}"


def check_id(value: str, what: str) -> str:
    """`value`, when it is a valid id that a user chooses.

    Raises:
        InvalidArgumentError: it is not.
    """
    if not _ID.fullmatch(value):
        raise InvalidArgumentError(
            f'{what} {value!r} is not valid: expected 1 to 63 lower-case letters, digits, "-", "_" or ".", '
            "beginning with a letter or digit"
        )
    return value


def parse_project(parent: str) -> str:
    """The project of `projects/{project}`.

    Raises:
        InvalidArgumentError: `parent` is not of that form.
    """
    parts = parent.split("/")
    if len(parts) != 2 or parts[0] != "projects" or not _ID.fullmatch(parts[1]):
        raise InvalidArgumentError(
            f'parent {parent!r} is not valid: expected "projects/{{project}}", such as "projects/default"'
        )
    return parts[1]


def parse(name: str, collection: str) -> ResourceName:
    """Parse `projects/{project}/{collection}/{id}`.

    Raises:
        InvalidArgumentError: `name` is not of that form.
    """
    parts = name.split("/")
    if (
        len(parts) != 4
        or parts[0] != "projects"
        or parts[2] != collection
        or not _ID.fullmatch(parts[1])
        or not _OUTPUT_ID.fullmatch(parts[3])
    ):
        raise InvalidArgumentError(f'name {name!r} is not valid: expected "projects/{{project}}/{collection}/{{id}}"')
    return ResourceName(parts[1], collection, parts[3])


@dataclass(frozen=True)
class NestedName:
    """A parsed name of a resource inside another. `str()` of it is the name; `owner` is the other's."""

    owner: ResourceName
    collection: str
    id: str

    def __str__(self) -> str:
        return f"{self.owner}/{self.collection}/{self.id}"


def parse_nested(name: str, owners: str, collection: str) -> NestedName:
    """Parse `projects/{project}/{owners}/{owner}/{collection}/{id}`.

    Raises:
        InvalidArgumentError: `name` is not of that form.
    """
    parts = name.split("/")
    expected = f'expected "projects/{{project}}/{owners}/{{id}}/{collection}/{{id}}"'
    if len(parts) != 6 or parts[4] != collection or not _ID.fullmatch(parts[5]):
        raise InvalidArgumentError(f"name {name!r} is not valid: {expected}")
    try:
        return NestedName(parse("/".join(parts[:4]), owners), collection, parts[5])
    except InvalidArgumentError:
        raise InvalidArgumentError(f"name {name!r} is not valid: {expected}") from None
