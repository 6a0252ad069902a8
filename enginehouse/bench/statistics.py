"""The arithmetic of a measurement: windows, whether they agree, and what is said of them. No I/O, no clock."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, stdev

# A result is of the last windows of a measurement; its interval needs at least so many.
WINDOWS_OF_A_RESULT = 10
# Warm-up ends when so many windows agree.
WINDOWS_OF_A_WARM_UP = 3
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Window:
    """One stretch of back-to-back inference.

    Attributes:
        latencies_ns: one latency for each call (a call infers a whole batch), nanoseconds.
        wall_ns: length of the window, nanoseconds.
        inferences: samples inferred (calls times batch).
        cpu_ns: CPU time of the process that inferred, nanoseconds; None when not measured.
        started: seconds since the epoch.
        ended: seconds since the epoch.
    """

    latencies_ns: tuple[int, ...]
    wall_ns: int
    inferences: int
    cpu_ns: int | None = None
    started: float = 0.0
    ended: float = 0.0

    def __post_init__(self) -> None:
        if not self.latencies_ns or self.wall_ns <= 0 or self.inferences <= 0:
            raise ValueError(
                f"a window needs at least one call and a positive duration, got {len(self.latencies_ns)} calls, "
                f"{self.inferences} inferences in {self.wall_ns} ns"
            )

    @property
    def inferences_per_second(self) -> float:
        return self.inferences * 1e9 / self.wall_ns


@dataclass(frozen=True)
class Latency:
    """Latencies of calls, milliseconds."""

    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float


@dataclass(frozen=True)
class Summary:
    """What is said of the last windows of a measurement.

    Attributes:
        inferences_per_second: inferences of the windows over their wall time.
        interval: confidence interval of the throughput, from how the windows differ; of fewer than three windows, their
            lowest and highest.
        latency: over all calls of the windows.
        stable: the windows agreed.
        calls: how many calls the latencies come from.
        windows: how many windows were measured in all.
        cpu_ms: CPU milliseconds for each inference; None when not measured.
        confidence: of the interval; None where it is a range of windows.
    """

    inferences_per_second: float
    interval: tuple[float, float]
    latency: Latency
    stable: bool
    calls: int
    windows: int
    cpu_ms: float | None
    confidence: float | None


def percentile(sorted_values: Sequence[int], q: float) -> int:
    """The nearest-rank percentile: the smallest value that at least `q` percent of the values do not exceed.

    It is always a value that occurred, so a high percentile of few values is their maximum and never flatters.

    Raises:
        ValueError: no values, or `q` outside [0, 100].
    """
    if not sorted_values:
        raise ValueError("a percentile of no values is undefined")
    if not 0 <= q <= 100:
        raise ValueError(f"a percentile is in [0, 100], got {q}")
    rank = max(1, math.ceil(q / 100 * len(sorted_values) - 1e-9))
    return sorted_values[rank - 1]


def latency_of(latencies_ns: Iterable[int]) -> Latency:
    """Mean, percentiles and maximum of latencies in nanoseconds.

    Raises:
        ValueError: there are none.
    """
    values = sorted(latencies_ns)
    p50, p90, p95, p99 = (percentile(values, q) / 1e6 for q in (50, 90, 95, 99))
    return Latency(mean=math.fsum(values) / len(values) / 1e6, p50=p50, p90=p90, p95=p95, p99=p99, max=values[-1] / 1e6)


def agree(throughputs: Sequence[float], tolerance: float) -> bool:
    """Whether the highest and the lowest differ by at most `tolerance` (a fraction) of the mean. Needs three values
    at least."""
    if len(throughputs) < WINDOWS_OF_A_WARM_UP:
        return False
    mean = math.fsum(throughputs) / len(throughputs)
    return max(throughputs) - min(throughputs) <= tolerance * mean


def warm(windows: Sequence[Window], tolerance: float) -> bool:
    """Whether the last three windows agree on throughput: caches are full, clocks are up, lazy work is done."""
    return agree([window.inferences_per_second for window in windows[-WINDOWS_OF_A_WARM_UP:]], tolerance)


def settled(windows: Sequence[Window], tolerance: float) -> bool:
    """Whether the last ten windows say one throughput: their confidence interval is no wider than `tolerance` of the
    mean, and their first and second half do not differ by more, as they would if it still rose or fell."""
    if len(windows) < WINDOWS_OF_A_RESULT:
        return False
    rates = [window.inferences_per_second for window in windows[-WINDOWS_OF_A_RESULT:]]
    low, high = confidence_interval(rates)
    half = len(rates) // 2
    mean = fmean(rates)
    return high - low <= tolerance * mean and abs(fmean(rates[half:]) - fmean(rates[:half])) <= tolerance * mean


def confidence_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Student's interval of the mean of at least two values.

    It takes the values for independent: windows of one minute on a quiet machine nearly are. What changes from run to
    run is not in it.

    Raises:
        ValueError: fewer than two values.
    """
    if len(values) < 2:
        raise ValueError("a confidence interval needs at least two values")
    mean = fmean(values)
    half = student_t(confidence, len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return mean - half, mean + half


def median_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> tuple[float, float] | None:
    """Interval of the median from order statistics, for any distribution: the narrowest pair of values, equally far
    from both ends, that covers it with `confidence`. None when even the extremes do not: fewer than six values for 95
    %."""
    ordered, count = sorted(values), len(values)
    below, found = 0.0, None
    for rank in range(count // 2):
        below += math.comb(count, rank) / 2**count  # that the median lies outside, on one side
        if 1 - 2 * below < confidence:
            break
        found = ordered[rank], ordered[count - 1 - rank]
    return found


def student_t(confidence: float, freedom: int) -> float:
    """The two-sided critical value of Student's t: exact for 1 and 2 degrees of freedom, else by Cornish and Fisher's
    expansion (Abramowitz and Stegun 26.7.5), within 0.5 % from 3 degrees on.

    Raises:
        ValueError: no degree of freedom, or a confidence outside (0, 1).
    """
    if freedom < 1 or not 0 < confidence < 1:
        raise ValueError(f"confidence {confidence} with {freedom} degrees of freedom")
    p = (1 + confidence) / 2
    if freedom == 1:
        return math.tan(math.pi * (p - 0.5))
    if freedom == 2:
        return (2 * p - 1) * math.sqrt(2 / (4 * p * (1 - p)))
    z = NormalDist().inv_cdf(p)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return math.fsum(term / freedom**power for power, term in enumerate(terms))


def summarize(windows: Sequence[Window], tolerance: float) -> Summary:
    """What the last ten windows (all, when there are fewer) say.

    Raises:
        ValueError: there are none.
    """
    if not windows:
        raise ValueError("nothing was measured: no windows")
    last = windows[-WINDOWS_OF_A_RESULT:]
    throughputs = [window.inferences_per_second for window in last]
    inferences = sum(window.inferences for window in last)
    cpu = [window.cpu_ns for window in last if window.cpu_ns is not None]
    several = len(last) >= 3
    rate = inferences * 1e9 / sum(window.wall_ns for window in last)
    low, high = confidence_interval(throughputs) if several else (min(throughputs), max(throughputs))
    return Summary(
        inferences_per_second=rate,
        # Around windows of unequal length: what is reported lies inside. A rate is never negative.
        interval=(max(0.0, min(low, rate)), max(high, rate)),
        latency=latency_of(latency for window in last for latency in window.latencies_ns),
        stable=settled(windows, tolerance),
        calls=sum(len(window.latencies_ns) for window in last),
        windows=len(windows),
        cpu_ms=sum(cpu) / inferences / 1e6 if len(cpu) == len(last) else None,
        confidence=CONFIDENCE if several else None,
    )
