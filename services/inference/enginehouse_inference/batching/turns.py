"""Whose batch a device computes next, where several models share it: weighted fair queueing by device time.

Each model's account is the device time that it used, divided by its share. A device that takes a limited number of
batches gives each free turn to the model with the lowest account among those with a batch that could leave (start-time
fair queueing: Goyal, Vin, Cheng, SIGCOMM 1996). A model that had nothing to do begins where the others are: it is owed
nothing for the time in which it asked for nothing. No clock, no I/O.
"""

from __future__ import annotations

from collections.abc import Callable

# How much of the estimate of a model's next batch is its last one.
_LAST = 0.25


class DeviceTurns:
    """The turns of one device.

    Args:
        limit: batches that the device computes at once, of all models together.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._running = 0
        # What wants a turn, in the order in which it began to.
        self._waiting: dict[Turns, None] = {}
        # The account of the model that had the last turn, as it was before.
        self._level = 0.0
        self._calling = False

    def join(self, wake: Callable[[], None], share: int = 1) -> Turns:
        """A model that wants turns.

        Args:
            wake: called when `take` would give a turn that it refused before.
            share: device time beside other models: 2 gets twice what 1 gets.
        """
        return Turns(self, wake, share)

    def take(self, turns: Turns) -> bool:
        """A turn for a model, or False: then it waits for one. For `Turns`."""
        if self._running >= self._limit:
            if turns not in self._waiting:
                self._begin(turns)
                self._waiting[turns] = None
            return False
        self._begin(turns)
        self._waiting.pop(turns, None)
        self._running += 1
        turns.running += 1
        self._level = max(self._level, turns.account)
        turns.account += turns.estimate / turns.share
        return True

    def done(self, turns: Turns, used_ns: int, charged: float) -> None:
        """A batch ended; whoever is next is woken. For `Turns`."""
        self._running -= 1
        turns.running -= 1
        turns.account += (used_ns - charged) / turns.share
        self.next()

    def leave(self, turns: Turns) -> None:
        self._waiting.pop(turns, None)

    def next(self) -> None:
        """Wake those whose turn it is. One that turns out to want none is passed over."""
        if self._calling:  # by one that was woken: the loop below goes on
            return
        self._calling = True
        try:
            while self._waiting and self._running < self._limit:
                chosen = min(self._waiting, key=lambda turns: turns.account)
                del self._waiting[chosen]
                chosen.wake()
        finally:
            self._calling = False

    def _begin(self, turns: Turns) -> None:
        if not turns.running and turns not in self._waiting:
            turns.account = max(turns.account, self._level)


class Turns:
    """One model's turns on a device. Made by `DeviceTurns.join`."""

    def __init__(self, device: DeviceTurns, wake: Callable[[], None], share: int) -> None:
        self._device = device
        self.wake = wake
        self.share = share
        # Nanoseconds of device time, divided by the share.
        self.account = 0.0
        # Nanoseconds that a batch is thought to take: it is charged when it begins, and put right when it ends.
        self.estimate = 0.0
        self.running = 0

    def take(self) -> Turn | None:
        """A turn, which must be ended; None when others compute: `wake` is called when there is one."""
        charged = self.estimate
        return Turn(self, charged) if self._device.take(self) else None

    def end(self, used_ns: int, charged: float) -> None:
        """For `Turn`."""
        self.estimate = (1 - _LAST) * self.estimate + _LAST * used_ns if self.estimate else float(used_ns)
        self._device.done(self, used_ns, charged)

    def leave(self) -> None:
        """Want no more turns."""
        self._device.leave(self)


class Turn:
    """The right to compute one batch."""

    def __init__(self, turns: Turns, charged: float) -> None:
        self._turns = turns
        self._charged = charged

    def end(self, used_ns: int) -> None:
        """The batch took `used_ns` of the device."""
        self._turns.end(used_ns, self._charged)
