"""Steady load for a long time, with the server's memory, threads and descriptors sampled.

    python benchmarks/robustness/hour.py --minutes 60 --out results/MACHINE/robustness

First the capacity is measured, with a closed loop of the same client; then a share of it is offered at random times,
for the time given. Writes `hour.jsonl`, a row for each ten seconds, and `hour.json`, which compares the first and the
last quarter. Exit status 1 when a request failed or something grew.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shlex
import sys
import time
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from enginehouse import AsyncClient
from enginehouse.client.balancing.policy import Balancing, Retry
from enginehouse.tune.goal import Level
from enginehouse.tune.load import Call, Window, closed_loop, offered
from robustness.processes import footprint
from robustness.server import Running, serving

MODEL = "identity"
SAMPLE_SECONDS = 10.0
WARM_UP = Window(5.0, 100, 10.0)
CAPACITY = Window(10.0, 100, 20.0)
IN_FLIGHT = 8
# Between the means of the first and the last quarter: below it is the allocator's noise. A leak of a page for each
# thousandth request is more.
GROWTH_BYTES = 8 << 20


async def run(server: Running, chosen: argparse.Namespace) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The load; what was measured, in all and by sample."""
    arrays = np.random.default_rng(0).standard_normal((chosen.rows, 1000), dtype=np.float32)
    once = Balancing(retry=Retry(max_attempts=1))
    async with AsyncClient("127.0.0.1:1", server.address, balancing=once) as client:

        async def call() -> None:
            result = await client.infer(MODEL, arrays, timeout=30.0)
            assert result.only().shape == arrays.shape

        await closed_loop(call, concurrency=IN_FLIGHT, rows=chosen.rows, window=WARM_UP)
        capacity = await closed_loop(call, concurrency=IN_FLIGHT, rows=chosen.rows, window=CAPACITY)
        most = capacity.inferences_per_second / chosen.rows
        rate = chosen.share * most
        print(f"capacity {most:.0f} requests/s, offering {rate:.0f}", flush=True)
        samples = await _samples(call, server, rate, chosen)
    return _summary(samples, capacity, rate, chosen), samples


async def _samples(call: Call, server: Running, rate: float, chosen: argparse.Namespace) -> list[dict[str, Any]]:
    samples: list[dict[str, Any]] = []
    began = time.monotonic()
    while (passed := time.monotonic() - began) < chosen.minutes * 60:
        window = Window(SAMPLE_SECONDS, 1, SAMPLE_SECONDS)
        level = await offered(call, rate=rate, rows=chosen.rows, window=window, seed=len(samples))
        samples.append({"seconds": round(passed, 1), **_level(level), **asdict(footprint(server.pid))})
    return samples


def _level(level: Level) -> dict[str, Any]:
    latency = {"p50_ms": round(level.latency.p50, 3), "p99_ms": round(level.latency.p99, 3)} if level.latency else {}
    return {"requests": level.requests, "failed": level.failed, **latency}


def _summary(samples: list[dict[str, Any]], capacity: Level, rate: float, chosen: argparse.Namespace) -> dict[str, Any]:
    # The first samples may still fill pools that are made once.
    settled = samples[len(samples) // 10 :]
    quarter = max(1, len(settled) // 4)
    first, last = settled[:quarter], settled[-quarter:]
    growth = {
        name: round(fmean(s[name] for s in last) - fmean(s[name] for s in first), 1)
        for name in ("rss", "threads", "descriptors")
    }
    return {
        "minutes": round((samples[-1]["seconds"] + SAMPLE_SECONDS) / 60, 1),
        "capacity_requests_per_second": round(capacity.inferences_per_second / chosen.rows, 1),
        "offered_requests_per_second": round(rate, 1),
        "share": chosen.share,
        "rows": chosen.rows,
        "requests": sum(s["requests"] for s in samples),
        "failed": sum(s["failed"] for s in samples),
        "median_p99_ms": median(s.get("p99_ms", 0.0) for s in samples),
        "rss_bytes": {"first": settled[0]["rss"], "last": settled[-1]["rss"]},
        "growth_first_to_last_quarter": growth,
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(["python", *sys.argv]),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--share", type=float, default=0.8, help="of the capacity")
    parser.add_argument("--rows", type=int, default=1, help="of each request; a row is 4 KB")
    parser.add_argument("--work", type=Path, default=Path("/tmp/enginehouse-robustness"))
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    with serving(chosen.work, [MODEL]) as server:
        summary, samples = asyncio.run(run(server, chosen))
    (chosen.out / "hour.jsonl").write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    (chosen.out / "hour.json").write_text(json.dumps(summary, indent=2) + "\n")
    print(json.dumps(summary, indent=2))
    growth = summary["growth_first_to_last_quarter"]
    grew = growth["rss"] > GROWTH_BYTES or growth["threads"] > 1 or growth["descriptors"] > 4
    return int(bool(summary["failed"]) or grew)


if __name__ == "__main__":
    sys.exit(main())
