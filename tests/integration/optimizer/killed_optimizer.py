"""An optimizer that kills itself (SIGKILL) at the point that KILL_AT names; without it, the optimizer as it is.

Only the moment of death is added: everything before it is the service's own code.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from enginehouse_optimizer.main import main
from enginehouse_optimizer.pipeline import flights, manager
from enginehouse_optimizer.storage.engines import EngineIndex
from enginehouse_optimizer.storage.jobs import Jobs
from enginehouse_optimizer.storage.stage_results import StageResults

from enginehouse.artifacts.store import BlobStore


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _before(owner: Any, name: str, when: Callable[..., bool] = lambda *args: True) -> None:
    original = getattr(owner, name)

    def replaced(*args: Any, **kwargs: Any) -> Any:
        if when(*args):
            _die()
        return original(*args, **kwargs)

    setattr(owner, name, replaced)


def _after(owner: Any, name: str, when: Callable[..., bool] = lambda *args: True) -> None:
    original = getattr(owner, name)

    def replaced(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        if when(*args):
            _die()
        return result

    setattr(owner, name, replaced)


def _of_engine(store: Any, path: Any, *rest: Any) -> bool:
    return getattr(path, "name", "") == "engine.json"


POINTS: dict[str, Callable[[], None]] = {
    "inputs are half written": lambda: _before(flights, "run_stage"),
    "a built engine is not stored": lambda: _before(BlobStore, "put_file", _of_engine),
    "a built engine is half stored": lambda: _after(BlobStore, "put_file", _of_engine),
    "its result is not noted": lambda: _before(StageResults, "put", lambda store, *args: "engine.json" in str(args)),
    "its result is noted": lambda: _after(StageResults, "put", lambda store, *args: "engine.json" in str(args)),
    "manifests are not made": lambda: _before(manager, "make_manifest"),
    "manifests are made": lambda: _before(EngineIndex, "publish"),
    # Inside the transaction that shows a request's engines: one row of two is written.
    "one of two engines is written": lambda: _after(EngineIndex, "_publish"),
    "engines are published": lambda: _after(EngineIndex, "publish"),
    "the end is not written": lambda: _before(Jobs, "finish"),
    "the end is written": lambda: _after(Jobs, "finish"),
}

if __name__ == "__main__":
    if point := os.environ.get("KILL_AT"):
        POINTS[point]()
    sys.exit(main([]))
