"""What to do after a try that failed. Pure functions."""

from __future__ import annotations

from dataclasses import dataclass

from enginehouse.client.balancing.failures import Kind
from enginehouse.client.balancing.policy import Retry

# A request that a worker died with may be what killed it: it gets one more, on another server.
MAX_LOST = 1


@dataclass(frozen=True)
class Situation:
    """Where a request stands after a try that failed.

    Attributes:
        kind: of the failure.
        sent: how often it was sent, servers that do not have the model left out.
        rounds: how often every server was tried.
        lost: how often a server went away with it.
        elsewhere: whether there is a server that is well and was not tried in this round.
        several: whether there are servers that it did not get lost on.
        retry_after: seconds until a server takes it again; 0 when none said.
        remaining: seconds until the deadline.
    """

    kind: Kind
    sent: int
    rounds: int
    lost: int
    elsewhere: bool
    several: bool
    retry_after: float
    remaining: float


@dataclass(frozen=True)
class Step:
    """Send it again after `wait` seconds.

    Attributes:
        costs: it takes a token of the retry budget.
        new_round: every server may be tried again, but those that it got lost on.
    """

    wait: float = 0.0
    costs: bool = True
    new_round: bool = False


def next_step(situation: Situation, retry: Retry, jitter: float) -> Step | None:
    """The next step; None to give up.

    Args:
        jitter: a random number from 0 to 1.
    """
    if situation.kind in (Kind.FINAL, Kind.FAULTY) or situation.remaining <= 0:
        return None
    if situation.kind is Kind.ABSENT:
        return Step(costs=False) if situation.elsewhere else None
    if situation.kind is Kind.NOT_READY and situation.elsewhere:
        return Step(costs=False)
    if situation.sent >= retry.max_attempts:
        return None
    if situation.kind is Kind.LOST and (situation.lost > MAX_LOST or not situation.several):
        return None
    if situation.elsewhere:
        return Step()
    backoff = retry.backoff(situation.rounds)
    # Clients that failed together must not come back together: after a server's own time too.
    wait = situation.retry_after + backoff * jitter if situation.retry_after else backoff * (0.5 + 0.5 * jitter)
    return Step(wait, new_round=True) if wait < situation.remaining else None
