"""How a client spreads its requests over inference servers: what may be configured."""

from __future__ import annotations

from dataclasses import dataclass, field

from enginehouse.errors import InvalidArgumentError


@dataclass(frozen=True)
class Retry:
    """When a request is sent again. The deadline always ends it.

    Attributes:
        max_attempts: how often one request is sent at most; 1 never sends it again. (Asking the next server because
            one has the model and is not ready with it is always done, and counts. Asking the next because
            one does not have the model does not count.)
        initial_backoff: seconds before the second round, once every server was tried; the others at once.
        max_backoff: seconds between rounds at most, unless a server asks for more (`google.rpc.RetryInfo`).
        multiplier: of the backoff, from round to round.
        budget_ratio: how many requests may be sent again for each request made, in the long run.
        budget_burst: how many more than that at once, such as those in flight on a server that dies.
    """

    max_attempts: int = 4
    initial_backoff: float = 0.05
    max_backoff: float = 1.0
    multiplier: float = 2.0
    budget_ratio: float = 0.2
    budget_burst: float = 256.0

    def __post_init__(self) -> None:
        _at_least("max_attempts", self.max_attempts, 1)
        _at_least("initial_backoff", self.initial_backoff, 0)
        _at_least("max_backoff", self.max_backoff, self.initial_backoff)
        _at_least("multiplier", self.multiplier, 1)
        _at_least("budget_ratio", self.budget_ratio, 0)
        _at_least("budget_burst", self.budget_burst, 0)

    def backoff(self, round_number: int) -> float:
        """Seconds before round `round_number` + 1, without jitter; the first round is 1."""
        return float(min(self.max_backoff, self.initial_backoff * self.multiplier ** min(round_number - 1, 64)))


@dataclass(frozen=True)
class Hedging:
    """Ask another server too when one is slow; the first answer counts and the others are cancelled.

    For models whose answers depend on the request alone. Streams, and requests with device arrays in `into`, are not
    hedged. Each extra request comes out of the retry budget.

    Attributes:
        delay: seconds without an answer; about the latency that 95 % of the requests keep.
        max_extra: how many more servers one request may be sent to.
    """

    delay: float
    max_extra: int = 1

    def __post_init__(self) -> None:
        _at_least("delay", self.delay, 0)
        _at_least("max_extra", self.max_extra, 1)


@dataclass(frozen=True)
class Balancing:
    """How requests are spread over the inference servers of a client.

    Attributes:
        retry: when a request is sent again.
        hedging: off when None.
        connections: to each address; more than one spreads requests over the processes that share a port.
        resolve_interval: seconds between look-ups of a name that may stand for several servers.
        max_connection_age: seconds after which a connection is replaced, so that servers that a balancer on the way
            added since get requests too.
    """

    retry: Retry = field(default_factory=Retry)
    hedging: Hedging | None = None
    connections: int = 1
    resolve_interval: float = 30.0
    max_connection_age: float = 1800.0

    def __post_init__(self) -> None:
        _at_least("connections", self.connections, 1)
        for name in ("resolve_interval", "max_connection_age"):
            if not getattr(self, name) > 0:
                raise InvalidArgumentError(f"{name} {getattr(self, name)!r} is not valid: expected more than 0 seconds")


def _at_least(name: str, value: float, least: float) -> None:
    if not value >= least:
        raise InvalidArgumentError(f"{name} {value!r} is not valid: expected {least:g} or more")
