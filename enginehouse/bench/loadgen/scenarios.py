"""MLPerf's four scenarios as settings of LoadGen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from enginehouse.errors import InvalidArgumentError

SCENARIOS = ("single_stream", "multi_stream", "server", "offline")
# What MLPerf Inference asks of an official run: seconds, and queries (of the server scenario) or samples (offline).
OFFICIAL_SECONDS = 600.0
OFFICIAL_QUERIES = {"single_stream": 64, "multi_stream": 662, "server": 270_336, "offline": 24_576}
STREAMS = 8


@dataclass(frozen=True)
class Scenario:
    """One scenario.

    Attributes:
        name: one of `SCENARIOS`.
        seconds: for at least so long.
        queries: at least so many; MLPerf's own minimum when None and `seconds` is official, else LoadGen's smallest.
        target_qps: server: queries a second (Poisson); offline: what is expected, which sizes its one query.
        latency_ms: server: bound of the 99th percentile.
        seed: of LoadGen's random numbers: sample choice and arrival times.
    """

    name: str
    seconds: float = 10.0
    queries: int | None = None
    target_qps: float | None = None
    latency_ms: float = 15.0
    seed: int = 1

    def __post_init__(self) -> None:
        if self.name not in SCENARIOS:
            raise InvalidArgumentError(f"scenario {self.name!r}: expected one of {', '.join(SCENARIOS)}")
        if not 0 < self.seconds <= 86400:
            raise InvalidArgumentError(f"a scenario of {self.seconds:g} s: expected more than 0, at most 86400")
        if self.target_qps is not None and not self.target_qps > 0:
            raise InvalidArgumentError(f"a target of {self.target_qps:g} queries a second: expected a positive number")

    @property
    def minimum_queries(self) -> int:
        if self.queries is not None:
            return self.queries
        return OFFICIAL_QUERIES[self.name] if self.seconds >= OFFICIAL_SECONDS else 1

    @property
    def shortened(self) -> bool:
        """Whether MLPerf's rules ask for a longer run."""
        return self.seconds < OFFICIAL_SECONDS or self.minimum_queries < OFFICIAL_QUERIES[self.name]

    def settings(self, loadgen: Any) -> Any:
        """LoadGen's `TestSettings`; `loadgen` is its module.

        Raises:
            InvalidArgumentError: the server scenario has no `target_qps`.
        """
        settings = loadgen.TestSettings()
        kinds = {
            "single_stream": loadgen.TestScenario.SingleStream,
            "multi_stream": loadgen.TestScenario.MultiStream,
            "server": loadgen.TestScenario.Server,
            "offline": loadgen.TestScenario.Offline,
        }
        settings.scenario = kinds[self.name]
        settings.mode = loadgen.TestMode.PerformanceOnly
        settings.min_duration_ms = round(self.seconds * 1e3)
        settings.min_query_count = 1 if self.name == "offline" else self.minimum_queries
        settings.qsl_rng_seed = settings.sample_index_rng_seed = settings.schedule_rng_seed = self.seed
        if self.name == "server":
            if self.target_qps is None:
                raise InvalidArgumentError("the server scenario needs a target of queries a second")
            settings.server_target_qps = self.target_qps
            settings.server_target_latency_ns = round(self.latency_ms * 1e6)
            settings.server_target_latency_percentile = 0.99
        elif self.name == "offline":
            least = self.minimum_queries / self.seconds
            settings.offline_expected_qps = max(self.target_qps or 1.0, least)
        elif self.name == "multi_stream":
            settings.multi_stream_samples_per_query = STREAMS
        return settings
