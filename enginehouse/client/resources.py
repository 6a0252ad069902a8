"""What the resources' clients share: names from ids, all pages of a list."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from enginehouse.client.connection import Endpoint
from enginehouse.errors import InvalidArgumentError

PAGE_SIZE = 500


class Named(Protocol):
    """A value with a resource name."""

    @property
    def name(self) -> str: ...


def full_name(resource: Named | str, parent: str, collection: str) -> str:
    """The resource name of a value, a name or an id.

    Raises:
        InvalidArgumentError: it is empty.
    """
    name = resource if isinstance(resource, str) else resource.name
    if not name:
        raise InvalidArgumentError(f"empty name: expected one of {parent}/{collection}")
    return name if "/" in name else f"{parent}/{collection}/{name}"


def alias_name(text: str, parent: str) -> str | None:
    """The resource name of an alias that `text` is, as "{model}:{alias}" or as a name; None when it is none.

    Raises:
        InvalidArgumentError: it has more or less than two parts.
    """
    if "/aliases/" in text:
        return text
    if "/" in text or ":" not in text:
        return None
    model, _, alias = text.partition(":")
    if not model or not alias or ":" in alias:
        raise InvalidArgumentError(
            f'alias {text!r} is not valid: expected "{{model}}:{{alias}}", such as "resnet:prod"'
        )
    return f"{parent}/models/{model}/aliases/{alias}"


def alias_text(name: str) -> str:
    """An alias's resource name as commands take it: "{model}:{alias}"; empty stays empty."""
    parts = name.split("/")
    return f"{parts[-3]}:{parts[-1]}" if len(parts) > 3 else name


async def all_pages(
    endpoint: Endpoint, method: Callable[..., Awaitable[Any]], request: Any, field: str, limit: int | None = None
) -> list[Any]:
    """The items of every page of a List call; of the first pages, when `limit` items suffice."""
    items: list[Any] = []
    while True:
        response = await endpoint.unary(method, request)
        items.extend(getattr(response, field))
        if not response.next_page_token or (limit is not None and len(items) >= limit):
            return items if limit is None else items[:limit]
        request.page_token = response.next_page_token
