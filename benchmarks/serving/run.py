"""Our server beside its peers: CPU time per request, throughput and latency, with the same models and clients.

    python benchmarks/serving/environments.py        # once: the peers
    python benchmarks/serving/run.py --out results/epyc-2-cores/serving [--rounds 7] [--seconds 2] [--only NAME ...]

All servers run at once and are asked in turns, windows of some seconds, so that a busy machine is busy for all of them.
CPU time is user and system time of a server's whole process tree. Every answer is checked. A peer that does not start
is listed with the reason. `table.md`, `rows.jsonl` and `environments.json` are written.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import grpc.aio

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from enginehouse.workers.environments import WorkerEnvironments
from serving.cases import CASES, Case
from serving.environments import DEFAULT
from serving.load import Client, WrongAnswerError, window
from serving.report import Measured, Turn, write_report
from serving.servers import SERVERS, NotStartedError, Server, start

WARM_SECONDS = 1.5


async def measure(case: Case, servers: Sequence[Server], clients: int, rounds: int, seconds: float) -> list[Measured]:
    """Turns of every server that takes the case, in an order that changes from round to round."""
    ready: dict[str, tuple[Server, list[Client]]] = {}
    failed: dict[str, str] = {}
    for server in servers:
        if case.shared and not server.spec.shared:
            failed[server.spec.name] = "it has no system shared memory"
            continue
        made = [Client(server.port, case.question(number), number) for number in range(clients)]
        ready[server.spec.name] = (server, made)
        try:
            await asyncio.gather(*(client.open() for client in made))
            await window(made, WARM_SECONDS)
        except Exception as error:
            failed[server.spec.name] = reason(error)
    turns: dict[str, list[Turn]] = {name: [] for name in ready if name not in failed}
    order = random.Random(0)
    for _ in range(rounds):
        names = list(turns)
        order.shuffle(names)
        for name in names:
            server, made = ready[name]
            before = server.cpu_seconds()
            done = await window(made, seconds)
            turns[name].append(Turn(server.cpu_seconds() - before, done.seconds, done.latencies_ms))
    for _, made in ready.values():
        await asyncio.gather(*(client.close() for client in made), return_exceptions=True)
    return [
        *(Measured(case, name, ready[name][0].versions, tuple(found)) for name, found in turns.items()),
        *(Measured(case, name, {}, (), reason) for name, reason in failed.items()),
    ]


def reason(error: Exception) -> str:
    """Why a server cannot be measured, in a line."""
    told = f"{error.code().name}: {error.details()}" if isinstance(error, grpc.aio.AioRpcError) else str(error)
    return f"{type(error).__name__}: {' '.join(told.split())[:200]}"


def start_all(models: Path, work: Path, environments: Path, only: Sequence[str]) -> tuple[list[Server], dict[str, str]]:
    """The servers that could be started, and why the others could not."""
    started: list[Server] = []
    missing: dict[str, str] = {}
    for spec in SERVERS:
        if only and spec.name not in only:
            continue
        try:
            started.append(start(spec, models, work, environments))
        except NotStartedError as error:
            missing[spec.name] = str(error)
        print(f"{spec.name}: {missing.get(spec.name, 'serves')}", flush=True)
    return started, missing


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for table.md, rows.jsonl, environments.json")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2.0, help="of one window")
    parser.add_argument("--environments", type=Path, default=DEFAULT, help="folder of the peers' environments")
    parser.add_argument("--only", nargs="+", default=[], metavar="SERVER", help="by the names in the table")
    parser.add_argument("--cases", nargs="+", default=[], metavar="CASE", help="by the names in the table")
    chosen = parser.parse_args(arguments)
    cases = [case for case in CASES if not chosen.cases or case.name in chosen.cases]
    with tempfile.TemporaryDirectory() as name:
        work, models = Path(name), Path(name) / "models"
        python = WorkerEnvironments.discover().for_backend("onnxruntime").python
        subprocess.run([str(python), str(Path(__file__).parent / "cases.py"), str(models)], check=True)
        servers, missing = start_all(models, work, chosen.environments, chosen.only)
        measured: list[Measured] = []
        try:
            for case in cases:
                found = asyncio.run(measure(case, servers, chosen.clients, chosen.rounds, chosen.seconds))
                measured += found
                measured += [Measured(case, server, {}, (), reason) for server, reason in missing.items()]
                print(case.name, *(m.line() for m in found), sep="\n  ", flush=True)
        finally:
            for server in servers:
                server.stop()
    command = shlex.join(["python", *([sys.argv[0], *sys.argv[1:]] if arguments is None else arguments)])
    write_report(chosen.out, measured, clients=chosen.clients, command=command)
    wrong = [m for m in measured if m.reason.startswith(WrongAnswerError.__name__)]
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
