"""What is left of an engine's own throughput behind the service: ResNet-50 in ONNX Runtime INT8, at saturation.

    python benchmarks/serving/saturation.py --out results/epyc-2-cores/serving-resnet50 [--clients 8 16 32 64]

The engine is built here from the graph without weights. A worker of its own runs it back to back (batches as large as
the service's, all cores); the server, with another worker, is asked by that many clients, one image (FP32
[1, 3, 224, 224], 602 KB) a request, each sending its next when the last one is answered. Windows of the two take turns.
CPU time is user and system time: of the engine's worker, and of the server with its worker. The threads of neither spin
while they wait. Every answer is checked against the engine's. `table.md`, `rows.jsonl` and `environments.json` are
written.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as triton

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from enginehouse.bench.environment import Environment, Machine, bench_software, read_machine, speed_settings
from enginehouse.bench.recording import utc
from enginehouse.bench.rows import to_line
from enginehouse.workers.environments import WorkerEnvironments
from enginehouse.workers.link import LoadedModel, WorkerProcess
from serving.cases import Question
from serving.load import Client, window
from serving.servers import OURS, SERVERS, Server, start_ours

ROOT = Path(__file__).resolve().parents[2]
MODEL = "resnet50"
# Threads that spin while they wait would count as work, and take cores from the clients.
OPTIONS = {"spinning": "false"}
# Of the largest logit or probability: batches of other sizes add up in another order.
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Turn:
    """A window of the engine alone, and the one of the service beside it: images/s, and CPU ms per image."""

    engine_rate: float
    engine_cpu_ms: float
    served_rate: float
    served_cpu_ms: float
    latencies_ms: tuple[float, ...]


def build(work: Path, graph: Path) -> Path:
    """The INT8 engine's directory, built by the worker's own stages."""
    program = (
        "import sys; from pathlib import Path; from onnxruntime_int8 import engines; "
        "print(engines(Path(sys.argv[1]), Path(sys.argv[2]), 32)['int8'])"
    )
    python = WorkerEnvironments.discover().for_backend("onnxruntime").python
    done = subprocess.run(
        [str(python), "-c", program, str(graph), str(work)],
        check=True,
        cwd=ROOT / "benchmarks",
        stdout=subprocess.PIPE,
        text=True,
    )
    return Path(done.stdout.splitlines()[-1])


async def questions(worker: WorkerProcess, loaded: LoadedModel, clients: int) -> list[Question]:
    """An image for each client, with what the engine makes of it."""
    (given,), first = loaded.inputs, loaded.outputs[0]
    asked = []
    for client in range(clients):
        random = np.random.default_rng(client)
        image = random.standard_normal((1, *given.shape[1:]), dtype=np.float32)
        with await worker.infer(MODEL, {given.name: image}) as result:
            expected = result.array(first.name)
        asked.append(Question(MODEL, given.name, given.dtype, image, expected, tolerance=TOLERANCE))
    return asked


async def measure(
    server: Server, engine: Path, *, counts: Sequence[int], batch: int, rounds: int, seconds: float
) -> dict[int, list[Turn]]:
    """Turns by number of clients."""
    environment = WorkerEnvironments.discover().for_backend("onnxruntime")
    worker = await WorkerProcess.start(environment)
    turns: dict[int, list[Turn]] = {}
    try:
        loaded = await worker.load(MODEL, engine, warmup=(1, batch), options=OPTIONS)
        asked = await questions(worker, loaded, max(counts))
        for count in counts:
            clients = [Client(server.port, question, number) for number, question in enumerate(asked[:count])]
            await asyncio.gather(*(client.open() for client in clients))
            found = turns[count] = []
            for _ in range(rounds):
                alone = await worker.measure(MODEL, batch=batch, seconds=seconds)
                before = server.cpu_seconds()
                served = await window(clients, seconds)
                answered = len(served.latencies_ms)
                turn = Turn(
                    alone.inferences / alone.wall_ns * 1e9,
                    alone.cpu_ns / alone.inferences / 1e6,
                    answered / served.seconds,
                    (server.cpu_seconds() - before) / answered * 1e3,
                    served.latencies_ms,
                )
                found.append(turn)
                print(f"{count} clients: engine {turn.engine_rate:.1f}/s, served {turn.served_rate:.1f}/s", flush=True)
            await asyncio.gather(*(client.close() for client in clients))
    finally:
        await worker.close()
    return turns


def table(turns: dict[int, list[Turn]]) -> str:
    """Markdown: a row for each number of clients; medians of the rounds, and the median of their ratios."""
    lines = [
        "| clients | engine, images/s | served, images/s | served of engine | CPU ms per image: engine | served "
        "| engine of served | p50, ms | p99, ms | p99 / p50 |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for count, found in turns.items():
        p50, p99 = np.percentile(np.concatenate([turn.latencies_ms for turn in found]), (50, 99))
        alone = statistics.median(turn.engine_rate for turn in found)
        served = statistics.median(turn.served_rate for turn in found)
        share = statistics.median(turn.served_rate / turn.engine_rate for turn in found)
        engine_cpu = statistics.median(turn.engine_cpu_ms for turn in found)
        served_cpu = statistics.median(turn.served_cpu_ms for turn in found)
        work = statistics.median(turn.engine_cpu_ms / turn.served_cpu_ms for turn in found)
        cells = (count, f"{alone:.1f}", f"{served:.1f}", f"{share:.1%}", f"{engine_cpu:.1f}", f"{served_cpu:.1f}")
        times = (f"{work:.1%}", f"{p50:.0f}", f"{p99:.0f}", f"{p99 / p50:.2f}")
        lines.append(f"| {' | '.join(map(str, (*cells, *times)))} |")
    return "\n".join(lines) + "\n"


def rows(turns: dict[int, list[Turn]], common: dict[str, Any]) -> list[dict[str, Any]]:
    """Two result rows for each number of clients: the engine's, and the service's."""
    made = []
    for count, found in turns.items():
        latencies = np.concatenate([turn.latencies_ms for turn in found])
        alone, served = [turn.engine_rate for turn in found], [turn.served_rate for turn in found]
        engine_cpu, served_cpu = [turn.engine_cpu_ms for turn in found], [turn.served_cpu_ms for turn in found]
        for scope, rates, cpu in (("host", alone, engine_cpu), ("served", served, served_cpu)):
            row = {**common, "scope": scope, "concurrency": count if scope == "served" else 1, **_rate(rates)}
            row["cpu_ms"] = round(statistics.median(cpu), 3)
            if scope == "served":
                row["latency_ms"] = {
                    "mean": round(float(latencies.mean()), 3),
                    **{f"p{p}": round(float(np.percentile(latencies, p)), 3) for p in (50, 90, 95, 99)},
                    "max": round(float(latencies.max()), 3),
                }
            made.append(row)
    return made


def _rate(rates: Sequence[float]) -> dict[str, Any]:
    middle = statistics.median(rates)
    return {
        "inferences_per_second": round(middle, 2),
        "interval": [round(min(rates), 2), round(max(rates), 2)],
        "stable": bool(max(rates) - min(rates) <= 0.1 * middle),
    }


def write(folder: Path, turns: dict[int, list[Turn]], *, batch: int, command: str) -> None:
    """Write `table.md`, `rows.jsonl` and `environments.json`, and print the table."""
    folder.mkdir(parents=True, exist_ok=True)
    machine: Machine = read_machine()
    environment = Environment(machine, bench_software(), scope_of="service", settings=speed_settings())
    common = {
        "model": MODEL,
        "backend": "onnxruntime",
        "precision": "int8",
        "device": "cpu",
        "batch": batch,
        "environment": environment.digest,
        "time": utc(),
        "command": command,
    }
    head = f"{common['time'][:10]}, {machine.cpu}, {machine.logical_cores} cores for servers and clients; batches of "
    text = f"{head}at most {batch}, medians of windows taken in turns.\n\n```\n{command}\n```\n\n{table(turns)}"
    (folder / "table.md").write_text(text)
    (folder / "rows.jsonl").write_text("".join(to_line(row) for row in rows(turns, common)))
    (folder / "environments.json").write_text(json.dumps({environment.digest: environment.to_json()}, indent=2) + "\n")
    print(text)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--graph", type=Path, default=ROOT / "benchmarks" / "graphs" / "resnet_v1_50.onnx")
    parser.add_argument("--engine", type=Path, help="directory of a built engine, instead of building one")
    parser.add_argument("--clients", type=int, nargs="+", default=[8, 16, 32, 64])
    parser.add_argument("--batch", type=int, default=8, help="rows of a batch at most")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=8.0, help="of one window")
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        engine = chosen.engine or build(work, chosen.graph)
        server = start_ours(next(spec for spec in SERVERS if spec.name == OURS), work)
        try:
            client = triton.InferenceServerClient(f"127.0.0.1:{server.port}")
            config = {"engine_directory": str(engine.absolute()), "max_batch_size": chosen.batch, "options": OPTIONS}
            client.load_model(MODEL, config=json.dumps(config))
            client.close()
            turns = asyncio.run(
                measure(
                    server,
                    engine.absolute(),
                    counts=chosen.clients,
                    batch=chosen.batch,
                    rounds=chosen.rounds,
                    seconds=chosen.seconds,
                )
            )
        finally:
            server.stop()
    command = shlex.join(["python", *([sys.argv[0], *sys.argv[1:]] if arguments is None else arguments)])
    write(chosen.out, turns, batch=chosen.batch, command=command)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
