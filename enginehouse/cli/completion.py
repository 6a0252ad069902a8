"""Names from a running server for the shell to complete. Quick, and silent when there is none."""

from __future__ import annotations

from collections.abc import Callable

from enginehouse.cli.context import connected
from enginehouse.client import Client
from enginehouse.errors import EnginehouseError

SECONDS = 0.7


def _complete(incomplete: str, names: Callable[[Client], list[str]]) -> list[str]:
    try:
        with connected(timeout=SECONDS) as client:
            return [name for name in names(client) if name.startswith(incomplete)]
    except (EnginehouseError, OSError, ValueError):
        return []


def models(incomplete: str) -> list[str]:
    """Ids of models."""
    return _complete(incomplete, lambda client: [model.id for model in client.models.list()])


def datasets(incomplete: str) -> list[str]:
    """Ids of datasets."""
    return _complete(incomplete, lambda client: [dataset.id for dataset in client.datasets.list()])


def engines(incomplete: str) -> list[str]:
    """Ids of engines, and aliases where a colon asks for them."""
    if ":" in incomplete:
        return aliases(incomplete)
    return _complete(incomplete, lambda client: [engine.id for engine in client.engines.list()])


def aliases(incomplete: str) -> list[str]:
    """Aliases, as MODEL:ALIAS."""
    return _complete(incomplete, lambda client: [alias.short for alias in client.engines.list_aliases()])


def jobs(incomplete: str) -> list[str]:
    """Ids of jobs."""
    return _complete(incomplete, lambda client: [job.id for job in client.jobs.list(limit=50)])


def served(incomplete: str) -> list[str]:
    """Names of served models."""
    return _complete(incomplete, lambda client: [config.id for config in client.serving.list()])
