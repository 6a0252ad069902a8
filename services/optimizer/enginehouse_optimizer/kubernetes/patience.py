"""How long a Job may wait for one thing, and its stage may run."""

from __future__ import annotations

import time

from enginehouse.errors import DeadlineExceededError
from enginehouse.workers.stage import TIME_SETTING
from enginehouse_optimizer.kubernetes.states import IMAGE, SCHEDULING, Running, State, Waiting
from enginehouse_optimizer.kubernetes.template import ClusterSettings


class Patience:
    """How long a Job has been waiting for one thing, and running."""

    def __init__(self, settings: ClusterSettings, seconds: float | None, stage: str) -> None:
        self._patience = {SCHEDULING: settings.pending_seconds, IMAGE: settings.image_seconds}
        self._seconds = seconds
        self._stage = stage
        self._what: object = None
        self._since = time.monotonic()

    def check(self, state: State) -> None:
        """Raises the error of what lasts too long."""
        what = state.what if isinstance(state, Waiting) else type(state)
        now = time.monotonic()
        if what != self._what:
            self._what, self._since = what, now
        if isinstance(state, Waiting) and state.error is not None:
            if state.hopeless or now - self._since > self._patience.get(state.what, float("inf")):
                raise state.error
        elif isinstance(state, Running) and self._seconds is not None and now - self._since > self._seconds:
            raise DeadlineExceededError(
                f"stage {self._stage!r} ran longer than its limit of {self._seconds:g} s and was stopped: "
                f"raise {TIME_SETTING}, or give it less to do",
                details={"stage": self._stage, "limit_seconds": f"{self._seconds:g}"},
            )
