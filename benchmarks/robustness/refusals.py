"""Malformed requests against a real server, counted by kind and status.

    python benchmarks/robustness/refusals.py --count 10000 --seed 0 --out results/MACHINE/robustness

Writes `malformed.json` (counts, and the server's footprint before and after) and `malformed.md`. Exit status 1 when one
was answered as it must not be, memory around a region was written, or the server does not serve on.
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

import numpy as np
import tritonclient.grpc as triton

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from robustness.malformed import cases
from robustness.processes import Footprint, footprint
from robustness.sending import Answers, SharedObjects, half_open, send
from robustness.server import serving

MODELS = ("double", "addsub", "text", "identity", "scalar")
# What is made once is made by these, before anything is counted.
FIRST = 1000
CONNECTIONS = 200


def serves(address: str) -> bool:
    """Whether a request that is right is answered rightly."""
    tensor = triton.InferInput("x", [2, 4], "FP32")
    sent = np.arange(8, dtype=np.float32).reshape(2, 4)
    tensor.set_data_from_numpy(sent)
    answer = triton.InferenceServerClient(address).infer("double", [tensor], client_timeout=60)
    return bool(np.array_equal(answer.as_numpy("y"), 2 * sent))


def table(answers: Answers) -> str:
    """A line for each kind of request."""
    statuses = sorted(answers.by_status())
    lines = ["| request | " + " | ".join(statuses) + " |", "|---|" + "---|" * len(statuses)]
    for kind, counts in (*sorted(answers.by_kind.items()), ("all", answers.by_status())):
        lines.append(f"| {kind} | " + " | ".join(str(counts[status] or "") for status in statuses) + " |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("/tmp/enginehouse-robustness"))
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    answers = Answers()
    with serving(chosen.work, MODELS) as server, SharedObjects(server.address) as shared:
        asyncio.run(send(server.address, cases(chosen.seed + 1, FIRST), Answers()))
        before, began = footprint(server.pid), time.monotonic()
        with half_open(server.port, CONNECTIONS, chosen.seed):
            asyncio.run(send(server.address, cases(chosen.seed, chosen.count), answers))
        seconds = time.monotonic() - began
        time.sleep(1.0)  # closed connections are let go of
        after = footprint(server.pid)
        intact, right = shared.intact(), serves(server.address)
    write(chosen.out, answers, before, after, seconds, chosen)
    for case, status, message in answers.wrong[:20]:
        print(f"{case.kind}: {status}: {message}: expected {sorted(case.allowed)}", file=sys.stderr)
    print(f"{answers.total} requests: {len(answers.wrong)} answered wrongly; {before} to {after}")
    return 0 if intact and right and not answers.wrong else 1


def write(
    folder: Path, answers: Answers, before: Footprint, after: Footprint, seconds: float, chosen: argparse.Namespace
) -> None:
    row = {
        "requests": answers.total,
        "seed": chosen.seed,
        "answered_wrongly": len(answers.wrong),
        "statuses": dict(sorted(answers.by_status().items())),
        "half_open_connections": CONNECTIONS,
        "seconds": round(seconds, 1),
        "before": asdict(before),
        "after": asdict(after),
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(["python", *sys.argv]),
    }
    (folder / "malformed.json").write_text(json.dumps(row, indent=2) + "\n")
    head = (
        f"{answers.total} malformed requests (seed {chosen.seed}), about a quarter of the inferences over streams, "
        f"beside {CONNECTIONS} half-open connections: {len(answers.wrong)} answered as they must not be. Memory of "
        f"front and worker {before.rss / 1e6:.1f} to {after.rss / 1e6:.1f} MB, threads {before.threads} to "
        f"{after.threads}, descriptors {before.descriptors} to {after.descriptors}.\n\n"
    )
    (folder / "malformed.md").write_text(head + table(answers))


if __name__ == "__main__":
    sys.exit(main())
