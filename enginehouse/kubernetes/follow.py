"""Objects that match a query, followed: listed, then watched, and listed again when the watch cannot go on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping

import structlog

from enginehouse.errors import DeadlineExceededError, OutOfRangeError, ResourceExhaustedError, UnavailableError
from enginehouse.kubernetes.api import KubernetesApi, Object

# What passes: the server restarts, is overloaded, or an endpoint of it is gone.
_MAY_PASS = (UnavailableError, ResourceExhaustedError, DeadlineExceededError)
_BACKOFF_SECONDS = (0.2, 0.5, 1.0, 2.0, 5.0, 10.0)

_log = structlog.get_logger("kubernetes")


async def follow(
    api: KubernetesApi, path: str, *, patience_seconds: float = float("inf"), **query: str
) -> AsyncIterator[Mapping[str, Object]]:
    """All matching objects by name, at once and after every change, for ever.

    Args:
        path: of a list, such as `/api/v1/namespaces/x/pods`.
        patience_seconds: how long the server may fail to answer.
        query: selectors.

    Raises:
        UnavailableError: it did not answer for longer.
        EnginehouseError: it refuses.
    """
    failing_since: float | None = None
    failures = 0
    while True:
        try:
            listed = await api.get(path, **query)
            objects = {str(item["metadata"]["name"]): item for item in listed.get("items") or ()}
            version = str(listed["metadata"]["resourceVersion"])
            failing_since, failures = None, 0
            yield dict(objects)
            while True:
                async for event in api.watch(path, version, **query):
                    version = event.version
                    failing_since, failures = None, 0
                    if event.type == "BOOKMARK":
                        continue
                    name = str(event.object["metadata"]["name"])
                    if event.type == "DELETED":
                        objects.pop(name, None)
                    else:
                        objects[name] = event.object
                    yield dict(objects)
        except OutOfRangeError:
            continue  # what happened since is forgotten: list again
        except _MAY_PASS as error:
            now = time.monotonic()
            failing_since = now if failing_since is None else failing_since
            if now - failing_since > patience_seconds:
                raise
            _log.warning("the API server does not answer: asked again", path=path, error=error.message)
            await asyncio.sleep(error.retry_after_seconds or _BACKOFF_SECONDS[min(failures, len(_BACKOFF_SECONDS) - 1)])
            failures += 1
