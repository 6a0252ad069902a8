"""One connection to an inference server, with what we know of the server."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Hashable

from enginehouse.client.balancing.failures import Kind
from enginehouse.client.connection import Endpoint
from enginehouse.client.device_memory import SharedDeviceMemory

# How long a server is not asked for a model that it did not have.
ABSENT_SECONDS = 2.0
# A server that only fails is fast, and would draw every request: after so many in a row it rests.
FAULTS = 5
FAULTY_SECONDS = 2.0
# Models that marks are kept of; more are forgotten, oldest first.
MAX_MARKS = 1024


class Server:
    """A connection, the requests that wait on it, and the models that it is not to be asked about for now.

    Attributes:
        born: when it was made, in the loop's time.
        local: it is on this machine, so that memory can be shared with it.
        outstanding: requests that wait for its answer.
        down: it did not answer when last asked; somebody asks it again from time to time.
    """

    def __init__(self, endpoint: Endpoint, born: float) -> None:
        self.endpoint = endpoint
        self.memory = SharedDeviceMemory(endpoint)
        self.born = born
        self.local = on_this_machine(endpoint.address)
        self.outstanding = 0
        self.down = False
        self._avoid: dict[Hashable, float] = {}
        self._faults = 0

    @property
    def address(self) -> str:
        return self.endpoint.address

    def avoided_for(self, key: Hashable, now: float) -> float:
        """Seconds for which it is not to be asked about a model; 0 when it may be."""
        until = self._avoid.get(key)
        return 0.0 if until is None else max(0.0, until - now)

    def avoid(self, key: Hashable, until: float) -> None:
        """Do not ask it about a model before that time."""
        self._avoid.pop(key, None)
        self._avoid[key] = until
        while len(self._avoid) > MAX_MARKS:
            del self._avoid[next(iter(self._avoid))]

    def succeeded(self, key: Hashable) -> None:
        """It answered a request."""
        self.down = False
        self._faults = 0
        if self._avoid:
            self._avoid.pop(key, None)

    def failed(self, key: Hashable, kind: Kind, retry_after: float | None, now: float) -> None:
        """It did not answer one as it should have."""
        if kind in (Kind.UNREACHABLE, Kind.LOST):
            self.down = True
        elif kind in (Kind.BUSY, Kind.NOT_READY):
            self.avoid(key, now + (retry_after or 0.0))
        elif kind is Kind.ABSENT:
            self.avoid(key, now + ABSENT_SECONDS)
        elif kind is Kind.FAULTY:
            self._faults += 1
            if self._faults >= FAULTS:
                self._faults = 0
                self.avoid(key, now + FAULTY_SECONDS)

    def forget(self) -> None:
        """What was known does not hold any more: the loop of before is gone, and its calls with it."""
        self.outstanding = self._faults = 0
        self.down = False
        self._avoid.clear()


def on_this_machine(address: str) -> bool:
    """Whether an address is a Unix socket, or one of this machine's own. Names other than localhost are not."""
    if address.startswith("unix:"):
        return True
    host = address.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return False
    family = socket.AF_INET6 if ip.version == 6 else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((host, 0))  # an address can be bound only where it is
        return True
    except OSError:
        return False
