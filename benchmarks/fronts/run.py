"""Served images per second with several fronts: UINT8 requests of 1, 16 and 64 rows, over TCP and by shared memory.

    python benchmarks/fronts/run.py --work /tmp/fronts                                    (ONNX Runtime, a tiny network)
    python benchmarks/fronts/run.py --work /tmp/fronts --device cuda:0 --out results/h200/fronts \
        --model /tmp/speed/resnet50-v1.5/int8-uint8 --backend tensorrt --precision INT8

The model's folder is what `tensorrt_speed/models.py prepare` makes; its engine is built once into `--work`. The worker
alone is measured first (engine only, and host to host). Then a server runs for each number of fronts, and every point
for `--seconds` after a warm-up; each client process checks that answers are its own images'. CPU time is of the
processes of the server and of the clients.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import tritonclient.grpc as triton

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from enginehouse.workers.environments import WorkerEnvironments
from enginehouse.workers.link import WorkerProcess
from fronts.engines import build, tiny

MODEL = "served"
START_SECONDS = 120.0


@dataclass(frozen=True)
class Point:
    """One measurement. `in_flight`: requests of each connection at once."""

    rows: int
    shared: bool
    in_flight: int


@dataclass
class Server:
    """A running server and the processes below it."""

    port: int
    process: psutil.Process

    def cpu_seconds(self) -> dict[str, float]:
        """User and system time until now: of the process that batches, of all fronts, and of the worker."""
        found = {"host": _cpu(self.process), "fronts": 0.0, "worker": 0.0}
        for child in self.process.children():
            command = child.cmdline()
            if "enginehouse_inference.fronts" in command:
                found["fronts"] += _cpu(child)
            elif "enginehouse_worker" in command:
                found["worker"] += _cpu(child)
        return found


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


@contextmanager
def serving(engine: Path, work: Path, fronts: int, arguments: argparse.Namespace) -> Iterator[Server]:
    """A server with the engine loaded."""
    announced = work / "announce.json"
    announced.unlink(missing_ok=True)
    variables = {
        "ENGINEHOUSE_PORT": "0",
        "ENGINEHOUSE_METRICS_PORT": "off",
        "ENGINEHOUSE_ANNOUNCE_FILE": str(announced),
        "ENGINEHOUSE_CACHE_DIR": str(work / "cache"),
        "ENGINEHOUSE_DEVICE": arguments.device,
        "ENGINEHOUSE_FRONTS": str(fronts),
        "ENGINEHOUSE_MAX_CONCURRENT_RPCS": "20000",
        "ENGINEHOUSE_LOG_LEVEL": "warning",
    }
    with (work / f"server-{fronts}.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "enginehouse_inference"], env={**os.environ, **variables}, stderr=log, stdout=log
        )
    try:
        end = time.monotonic() + START_SECONDS
        while not announced.exists():
            if process.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"the server did not start: {(work / f'server-{fronts}.log').read_text()[-2000:]}")
            time.sleep(0.05)
        server = Server(json.loads(announced.read_text())["port"], psutil.Process(process.pid))
        config = {
            "engine_directory": str(engine),
            "instances": arguments.instances,
            "max_queue_size": 100_000,
            "options": json.loads(arguments.options),
            **json.loads(arguments.batching),
        }
        triton.InferenceServerClient(f"127.0.0.1:{server.port}").load_model(MODEL, config=json.dumps(config))
        yield server
    finally:
        process.terminate()
        try:
            process.wait(40)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def client_processes(count: int) -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that wait for jobs."""
    program = str(Path(__file__).with_name("clients.py"))
    running = [
        subprocess.Popen([sys.executable, program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(count)
    ]
    try:
        yield running
    finally:
        for process in running:
            process.kill()
            process.wait()


def tell(process: Any, message: Mapping[str, Any]) -> None:
    process.stdin.write(json.dumps(message) + "\n")
    process.stdin.flush()


def measure(server: Server, point: Point, clients: Sequence[Any], job: Mapping[str, Any]) -> dict[str, Any]:
    """All clients at once on one point."""
    for number, process in enumerate(clients):
        message = {
            **job,
            "port": server.port,
            "rows": point.rows,
            "shared": point.shared,
            "in_flight": point.in_flight,
            "process": number,
        }
        tell(process, message)
    connected = [json.loads(process.stdout.readline()) for process in clients]
    begin = time.monotonic() + 0.2
    for process, said in zip(clients, connected, strict=True):
        if "error" not in said:
            tell(process, {"begin": begin})
    if errors := [said["error"] for said in connected if "error" in said]:
        for process, said in zip(clients, connected, strict=True):
            if "error" not in said:
                process.stdout.readline()
        return {"error": errors[0]}
    time.sleep(max(begin + job["warm"] - time.monotonic(), 0))
    before, started = server.cpu_seconds(), time.monotonic()
    time.sleep(job["seconds"])
    used, took = server.cpu_seconds(), time.monotonic() - started
    said = [json.loads(process.stdout.readline()) for process in clients]
    if errors := [answer["error"] for answer in said if "error" in answer]:
        return {"error": errors[0]}
    latencies = np.sort(np.concatenate([answer["latencies_ms"] for answer in said]))
    if not len(latencies):
        return {"error": "nothing was answered in time"}
    requests = len(latencies) / job["seconds"]
    cores = {name: (used[name] - before[name]) / took for name in used}
    cores["clients"] = sum(answer["cpu_seconds"] for answer in said) / (took + job["warm"])
    return {
        "inferences_per_second": round(requests * point.rows, 1),
        "requests_per_second": round(requests, 1),
        "latency_ms": {
            "mean": round(float(latencies.mean()), 3),
            **{f"p{p}": round(float(np.percentile(latencies, p)), 3) for p in (50, 90, 95, 99)},
            "max": round(float(latencies[-1]), 3),
        },
        "cpu_cores": {name: round(value, 2) for name, value in cores.items()},
        "cpu_ms_per_request": {name: round(value / requests * 1e3, 3) for name, value in cores.items()},
    }


async def alone(engine: Path, arguments: argparse.Namespace, seconds: float) -> list[dict[str, Any]]:
    """What the worker does by itself at the engine's largest batch."""
    manifest = json.loads((engine / "engine.json").read_text())
    environment = WorkerEnvironments.discover().for_backend(manifest["backend"])
    worker = await WorkerProcess.start(environment, arguments.device, lambda line: None)
    rows = []
    try:
        batch = int(manifest["max_batch_size"])
        await worker.load(MODEL, engine, arguments.instances, [1, batch], json.loads(arguments.options))
        for scope in ("engine", "host") if arguments.device != "cpu" else ("host",):
            found = await worker.measure(MODEL, batch, seconds, scope=scope)
            rate = round(found.inferences / found.wall_ns * 1e9, 1)
            rows.append({"scope": scope, "batch": batch, "inferences_per_second": rate})
    finally:
        await worker.close()
    return rows


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "fronts")
    cli.add_argument("--out", type=Path, help="folder of rows.jsonl; the work folder when absent")
    cli.add_argument("--engine", type=Path, help="an engine's folder")
    cli.add_argument("--model", type=Path, help="a model's folder, to build an engine of")
    cli.add_argument("--backend", default="onnxruntime")
    cli.add_argument("--precision", default="INT8")
    cli.add_argument("--largest", type=int, default=128, help="batch that the engine is built for")
    cli.add_argument("--device", default="cpu")
    cli.add_argument("--instances", type=int, default=2)
    cli.add_argument("--options", default="{}", help="of the load, as JSON")
    cli.add_argument("--batching", default="{}", help="more of the load's configuration, as JSON")
    cli.add_argument("--fronts", type=int, nargs="+", default=[1, 2, 4, 8])
    cli.add_argument("--rows", type=int, nargs="+", default=[1, 16, 64])
    cli.add_argument("--only", choices=("tcp", "shared"))
    cli.add_argument("--processes", type=int, default=8, help="of clients")
    cli.add_argument("--connections", type=int, default=4, help="of each client process")
    cli.add_argument("--rows-in-flight", type=int, default=2048, help="of all connections together, about")
    cli.add_argument("--seconds", type=float, default=3.0)
    cli.add_argument("--warm", type=float, default=0.7)
    arguments = cli.parse_args()
    work = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    if arguments.engine is not None:
        engine = arguments.engine.resolve()
    elif arguments.model is not None:
        engine = build(arguments.model.resolve(), work, arguments.backend, arguments.precision, arguments.largest)
    else:
        engine = tiny(work)
    manifest = json.loads((engine / "engine.json").read_text())
    target = arguments.out or work
    target.mkdir(parents=True, exist_ok=True)
    known = {
        "model": arguments.model.parent.name if arguments.model is not None else engine.name,
        "backend": manifest["backend"],
        "precision": manifest["precision"],
        "device": arguments.device,
        "instances": arguments.instances,
        "machine": f"{platform.node()}, {os.cpu_count()} CPUs",
        "command": " ".join(["python", "benchmarks/fronts/run.py", *sys.argv[1:]]),
    }

    def keep(row: Mapping[str, Any]) -> None:
        whole = {**known, **row, "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
        with (target / "rows.jsonl").open("a") as file:
            file.write(json.dumps(whole) + "\n")
        print(json.dumps(row), flush=True)

    for row in asyncio.run(alone(engine, arguments, arguments.seconds)):
        keep(row)
    connections = arguments.processes * arguments.connections
    shared = [{"tcp": False, "shared": True}[arguments.only]] if arguments.only else [False, True]
    points = [
        Point(rows, by_memory, max(1, arguments.rows_in_flight // rows // connections))
        for by_memory in shared
        for rows in arguments.rows
    ]
    job = {
        "model": MODEL,
        "input": manifest["inputs"][0]["name"],
        "output": manifest["outputs"][0]["name"],
        "connections": arguments.connections,
        "seconds": arguments.seconds,
        "warm": arguments.warm,
    }
    for fronts in arguments.fronts:
        with serving(engine, work, fronts, arguments) as server, client_processes(arguments.processes) as clients:
            for point in points:
                row = {
                    "scope": "served",
                    "fronts": fronts,
                    "batch": point.rows,
                    "transport": "system shared memory" if point.shared else "tcp",
                    "concurrency": connections * point.in_flight,
                    "connections": connections,
                }
                keep({**row, **measure(server, point, clients, job)})


if __name__ == "__main__":
    main()
