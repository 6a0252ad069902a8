"""Power of the CPU packages from the kernel's RAPL counters (Intel and AMD), where we may read them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")


@dataclass(frozen=True)
class _Package:
    counter: Path
    wraps_at: int


class Rapl:
    """Watts over the time since the reading before."""

    def __init__(self, root: Path = POWERCAP, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._packages = tuple(_packages(root))
        self._last: tuple[float, tuple[int, ...]] | None = None

    def watts(self) -> float | None:
        """The sum of all packages; None in the first reading and where the kernel does not let us read."""
        if not self._packages:
            return None
        try:
            counts = tuple(int(package.counter.read_text()) for package in self._packages)
        except (OSError, ValueError):
            self._last = None
            return None
        now, last = self._clock(), self._last
        self._last = (now, counts)
        if last is None or now <= last[0]:
            return None
        used = sum(
            count - before if count >= before else count - before + package.wraps_at
            for package, count, before in zip(self._packages, counts, last[1], strict=True)
        )
        return used / 1e6 / (now - last[0])


def _packages(root: Path) -> list[_Package]:
    """The zones that are whole packages; their subzones (cores, DRAM) are part of them or not the CPU."""
    found = []
    for zone in sorted(root.glob("intel-rapl:*")):
        try:
            if (zone / "name").read_text().startswith("package"):
                found.append(_Package(zone / "energy_uj", int((zone / "max_energy_range_uj").read_text())))
        except (OSError, ValueError):
            continue
    return found
