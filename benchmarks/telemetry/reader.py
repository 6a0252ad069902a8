"""A reader of the merged stream, in a process of its own: lag and loss of every node, as a client sees them.

    python -m benchmarks.telemetry.reader --address 127.0.0.1:8021 --nodes 1000 --seconds 60

waits until every node is there, measures, and prints a JSON object. Lag is the time from taking a sample to having its
message here. A node loses a sample when its agent's sequence has a gap.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import Any

import grpc.aio
import numpy as np

from enginehouse.v1 import telemetry_cluster_pb2 as pb
from enginehouse.v1 import telemetry_cluster_pb2_grpc as pb_grpc

MAX_MESSAGE = 64 << 20


@dataclass
class Tally:
    """What was read."""

    lags: list[float] = field(default_factory=list)
    lost: int = 0
    skipped: int = 0
    messages: int = 0
    bytes: int = 0
    not_live: int = 0

    def row(self, seconds: float, nodes: int) -> dict[str, Any]:
        """The figures of a result row; lags in milliseconds."""
        lags = np.array(self.lags) * 1e3
        quantiles = {f"p{q}": round(float(np.percentile(lags, q)), 2) for q in (50, 90, 99)}
        return {
            "nodes": nodes,
            "samples": len(lags),
            "samples_per_second": round(len(lags) / seconds, 1),
            "lag_ms": {"mean": round(float(lags.mean()), 2), **quantiles, "max": round(float(lags.max()), 2)},
            "lost": self.lost,
            "skipped": self.skipped,
            "late_or_lost_reports": self.not_live,
            "messages_per_second": round(self.messages / seconds, 1),
            "megabytes_per_second": round(self.bytes / seconds / 1e6, 2),
        }


async def read(address: str, nodes: int, seconds: float, interval: float, warm: float) -> dict[str, Any]:
    """Measure for `seconds` after all nodes are there and `warm` seconds have gone by."""
    async with grpc.aio.insecure_channel(
        address, options=[("grpc.max_receive_message_length", MAX_MESSAGE)]
    ) as channel:
        request = pb.StreamClusterRequest(parent="projects/default")
        request.interval.FromNanoseconds(int(interval * 1e9))
        last: dict[str, int] = {}
        tally, began, first = Tally(), time.monotonic(), time.monotonic()
        start: float | None = None
        async for response in pb_grpc.ClusterTelemetryStub(channel).StreamCluster(request):
            now, wall = time.monotonic(), time.time()
            if start is None and len(last) >= nodes:
                start = now + warm
            measuring = start is not None and now >= start
            if measuring:
                tally.messages += 1
                tally.bytes += response.ByteSize()
            for node in response.nodes:
                if not node.HasField("sample") or node.state != pb.NODE_STATE_LIVE:
                    tally.not_live += measuring
                    continue
                sample = node.sample
                before = last.get(node.name)
                last[node.name] = sample.sequence
                if measuring:
                    tally.lags.append(wall - sample.time.ToNanoseconds() / 1e9)
                    tally.skipped += node.skipped
                    if before is not None:
                        tally.lost += max(0, sample.sequence - before - 1)
            if start is not None and now - start >= seconds:
                return {**tally.row(now - start, len(last)), "seconds_until_all_nodes": round(start - warm - began, 2)}
            if start is None and now - first > 120:
                raise SystemExit(f"only {len(last)} of {nodes} nodes after 120 s")
    raise SystemExit("the stream ended")


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--address", required=True)
    cli.add_argument("--nodes", type=int, required=True)
    cli.add_argument("--seconds", type=float, default=60.0)
    cli.add_argument("--warm", type=float, default=5.0, help="seconds after all nodes are there that are not counted")
    cli.add_argument("--interval", type=float, default=1.0)
    options = cli.parse_args()
    found = asyncio.run(read(options.address, options.nodes, options.seconds, options.interval, options.warm))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
