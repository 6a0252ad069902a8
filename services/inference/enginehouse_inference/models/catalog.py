"""Every model that this process knows, by name and version, with its state."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum

from enginehouse.errors import InvalidArgumentError, NotFoundError, UnavailableError
from enginehouse_inference.models.statistics import Statistics
from enginehouse_inference.models.version import ModelVersion

# Of the largest version there can be; Python refuses to read very long numbers.
_DIGITS = 19


class State(Enum):
    """As RepositoryIndex names it."""

    LOADING = "LOADING"
    READY = "READY"
    UNLOADING = "UNLOADING"
    UNAVAILABLE = "UNAVAILABLE"


@dataclass
class Slot:
    """One version. `serving` stays while another load of the same version is under way, or has failed."""

    state: State = State.LOADING
    reason: str = ""
    serving: ModelVersion | None = None
    statistics: Statistics = field(default_factory=Statistics)

    @property
    def ready(self) -> bool:
        return self.serving is not None and self.serving.ready

    def shown(self) -> tuple[State, str]:
        """The state and reason that a client should see."""
        if self.serving is None or self.state in (State.LOADING, State.UNLOADING):
            return (State.READY, "") if self.ready and self.state is State.LOADING else (self.state, self.reason)
        if not self.serving.ready:
            return State.UNAVAILABLE, self.serving.worker.reason(self.serving.key)
        return State.READY, self.reason


class Catalog:
    """The models of this process.

    Args:
        on_change: told the name of a model whose readiness may have changed.
    """

    def __init__(self, on_change: Callable[[str], None] = lambda name: None) -> None:
        self._models: dict[str, dict[int, Slot]] = {}
        self._on_change = on_change

    def names(self) -> list[str]:
        return sorted(self._models)

    def slots(self, name: str) -> Iterator[tuple[int, Slot]]:
        """The versions of a model, lowest first."""
        yield from sorted(self._models.get(name, {}).items())

    def slot(self, name: str, version: int) -> Slot:
        """The slot of a version, made when there is none."""
        return self._models.setdefault(name, {}).setdefault(version, Slot())

    def set_state(self, name: str, version: int, state: State, reason: str = "") -> None:
        slot = self.slot(name, version)
        slot.state, slot.reason = state, reason
        self._on_change(name)

    def publish(self, version: ModelVersion) -> ModelVersion | None:
        """Serve a loaded version from now on; returns the one it replaces."""
        slot = self.slot(version.model, version.plan.version)
        old, slot.serving = slot.serving, version
        slot.state, slot.reason = State.READY, ""
        self._on_change(version.model)
        return old

    def forget(self, name: str, version: int) -> None:
        """A version is gone."""
        versions = self._models.get(name, {})
        versions.pop(version, None)
        if not versions:
            self._models.pop(name, None)
        self._on_change(name)

    def changed(self, name: str) -> None:
        """The readiness of a model's versions may have changed."""
        self._on_change(name)

    def is_ready(self, name: str) -> bool:
        """Whether any version of a model can serve."""
        return any(slot.ready for _, slot in self.slots(name))

    def find(self, name: str, version: str) -> ModelVersion:
        """The version that a request means: the named one, or the highest that is ready.

        Raises:
            NotFoundError: there is no such model or version.
            UnavailableError: it is there but not ready; the message says why.
        """
        versions = self._models.get(name)
        if not versions:
            known = ", ".join(repr(n) for n in self.names()) or "none"
            raise NotFoundError(f"no model {name!r}: this server has {known}", details={"model": name})
        if not version and len(versions) == 1:  # as nearly always
            (slot,) = versions.values()
        elif not version:
            ready = [n for n, slot in versions.items() if slot.ready]
            slot = versions[max(ready or versions)]
        else:
            if not version.isdecimal() or len(version) > _DIGITS:
                raise InvalidArgumentError(
                    f"version {version!r} is not valid: expected a number, or none for the highest"
                )
            found = versions.get(int(version))
            if found is None:
                served = ", ".join(str(n) for n in sorted(versions))
                raise NotFoundError(
                    f"model {name!r} has no version {version}: this server has {served}",
                    details={"model": name, "version": version},
                )
            slot = found
        if slot.serving is None:
            state, reason = slot.shown()
            raise UnavailableError(
                f"model {name!r} is not ready: {state.value}{': ' + reason if reason else ''}",
                details={"model": name, "model_state": state.value},
                retry_after_seconds=1.0,
            )
        return slot.serving
