"""What a request costs the inference service's front: CPU time per request, beside a bare grpcio server.

    python benchmarks/serving_overhead.py [--rounds 5] [--clients 4] [--output results.json]

Both servers answer the same bytes to the same requests. The bare one is grpcio's thread-pool server with the same
malloc and HTTP/2 settings, which parses each request and copies its tensor into the answer: what no Python gRPC server
can go below. The front does that and validates, batches, and passes tensors to a worker process and back. Rounds are
interleaved, so that both see the same machine. CPU times are of the server's process (user and system), from /proc;
the worker's, which would run the engine, are told apart.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import psutil
import tritonclient.grpc as triton
from enginehouse_inference.process_tuning import GRPC_OPTIONS, tune_malloc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from enginehouse.workers.environments import WorkerEnvironments

METHOD = "/inference.GRPCInferenceService/ModelInfer"
LIMITS = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))
# Elements of FP32, and requests a round.
SIZES = {"small": (16, 400), "150 KB": (37_632, 200), "2.4 MB": (602_112, 60)}
# What decision 7 of the design measured for a bare server, in CPU ms per request.
FLOORS = {"small": 0.3, "150 KB": 0.55, "2.4 MB": 2.5}

BUILD = """
import json, sys, onnx
from onnx import TensorProto, helper
from pathlib import Path
for name, node, columns in (
    ("echo", helper.make_node("Identity", ["x"], ["y"]), "n"),
    ("brief", helper.make_node("ReduceMax", ["x"], ["y"], axes=[1], keepdims=1), 1),
):
    folder = Path(sys.argv[1]) / name
    folder.mkdir()
    tensors = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["b", c]) for n, c in (("x", "n"), ("y", columns))]
    graph = helper.make_graph([node], name, tensors[:1], tensors[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.save(model, str(folder / "model.onnx"))
    spec = lambda n, c: {"name": n, "dtype": "FP32", "shape": [-1, c]}
    (folder / "engine.json").write_text(json.dumps({
        "backend": "onnxruntime", "inputs": [spec("x", -1)], "outputs": [spec("y", -1 if columns == "n" else 1)],
        "batched": True, "max_batch_size": 1, "payload": "model.onnx", "device": {"kind": "cpu"}}))
"""


class Bare(service_pb2_grpc.GRPCInferenceServiceServicer):
    """The least that a server must do: parse, and answer with the tensor or with its largest element."""

    def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802 - the protocol's name
        response = service_pb2.ModelInferResponse(model_name=request.model_name, model_version="1")
        data = request.raw_input_contents[0]
        if request.model_name == "echo":
            response.outputs.add(name="y", datatype="FP32", shape=request.inputs[0].shape)
        else:
            data = np.frombuffer(data, np.float32).max(keepdims=True).tobytes()
            response.outputs.add(name="y", datatype="FP32", shape=[1, 1])
        response.raw_output_contents.append(data)
        return response


def serve_bare(port: Any) -> None:
    tune_malloc()
    server = grpc.server(ThreadPoolExecutor(8), options=(*GRPC_OPTIONS, *LIMITS))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Bare(), server)
    port.send(server.add_insecure_port("127.0.0.1:0"))
    server.start()
    server.wait_for_termination()


class BareAsync(Bare):
    """The same on grpc.aio, which the front is built on: what of the front's cost is asyncio's."""

    async def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802 - the protocol's name
        return super().ModelInfer(request, context)


def serve_bare_async(port: Any) -> None:
    async def serve() -> None:
        server = grpc.aio.server(options=(*GRPC_OPTIONS, *LIMITS))
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(BareAsync(), server)
        port.send(server.add_insecure_port("127.0.0.1:0"))
        await server.start()
        await server.wait_for_termination()

    tune_malloc()
    asyncio.run(serve())


@dataclass
class Target:
    """A server, and the processes whose CPU time it costs."""

    name: str
    channels: list[grpc.Channel]
    process: psutil.Process

    def cpu_seconds(self) -> float:
        times = self.process.cpu_times()
        return float(times.user + times.system)

    def worker_seconds(self) -> float:
        return float(sum(t.user + t.system for t in (child.cpu_times() for child in self.process.children())))


def connect(port: int, clients: int) -> list[grpc.Channel]:
    # A channel of its own for each client, or all share one connection.
    options = (*GRPC_OPTIONS, *LIMITS, ("grpc.use_local_subchannel_pool", 1))
    return [grpc.insecure_channel(f"127.0.0.1:{port}", options=options) for _ in range(clients)]


def request(model: str, elements: int) -> bytes:
    message = service_pb2.ModelInferRequest(model_name=model)
    message.inputs.add(name="x", datatype="FP32", shape=[1, elements])
    message.raw_input_contents.append(np.random.default_rng(0).random(elements, dtype=np.float32).tobytes())
    return bytes(message.SerializeToString())


def check(target: Target, model: str, elements: int) -> None:
    data = request(model, elements)
    sent = service_pb2.ModelInferRequest.FromString(data).raw_input_contents[0]
    answer = service_pb2.ModelInferResponse.FromString(target.channels[0].unary_unary(METHOD)(data))
    expected = sent if model == "echo" else np.frombuffer(sent, np.float32).max().tobytes()
    assert answer.raw_output_contents[0] == expected, f"{target.name} answered something else"


def run(target: Target, data: bytes, count: int) -> tuple[float, float, float]:
    """CPU ms per request of the server and of its worker, and requests per second."""
    cpu, worker, begin = target.cpu_seconds(), target.worker_seconds(), time.perf_counter()

    def client(channel: grpc.Channel) -> None:
        call = channel.unary_unary(METHOD)
        for _ in range(count // len(target.channels)):
            call(data)

    with ThreadPoolExecutor(len(target.channels)) as pool:
        list(pool.map(client, target.channels))
    done = count // len(target.channels) * len(target.channels)
    seconds = time.perf_counter() - begin
    return (
        (target.cpu_seconds() - cpu) / done * 1e3,
        (target.worker_seconds() - worker) / done * 1e3,
        done / seconds,
    )


def start_front(folder: Path) -> tuple[subprocess.Popen[bytes], int]:
    announce = folder / "announce.json"
    environment = {
        **os.environ,
        "ENGINEHOUSE_PORT": "0",
        "ENGINEHOUSE_ANNOUNCE_FILE": str(announce),
        "ENGINEHOUSE_CACHE_DIR": str(folder / "cache"),
        "ENGINEHOUSE_LOG_LEVEL": "warning",
    }
    process = subprocess.Popen([sys.executable, "-m", "enginehouse_inference"], env=environment)
    while not announce.exists():
        if process.poll() is not None:
            sys.exit("the inference service did not start")
        time.sleep(0.05)
    return process, int(json.loads(announce.read_text())["port"])


def measure(targets: list[Target], model: str, rounds: int) -> list[dict[str, Any]]:
    rows = []
    for size, (elements, count) in SIZES.items():
        data = request(model, elements)
        results: dict[str, list[tuple[float, float, float]]] = {t.name: [] for t in targets}
        for target in targets:
            check(target, model, elements)
            run(target, data, count // 2)  # connections, first segments, first pages
        for _ in range(rounds):
            for target in targets:
                results[target.name].append(run(target, data, count))
        front, bare, bare_async = ([r[0] for r in results[name]] for name in ("front", "bare", "bare_async"))
        ratios = [f / b for f, b in zip(front, bare, strict=True)]
        ratios_async = [f / b for f, b in zip(front, bare_async, strict=True)]
        rows.append(
            {
                "answer": model,
                "request": size,
                "request_bytes": len(data),
                "front_cpu_ms": round(statistics.median(front), 3),
                "bare_cpu_ms": round(statistics.median(bare), 3),
                "bare_async_cpu_ms": round(statistics.median(bare_async), 3),
                "ratio_to_bare_async": round(statistics.median(ratios_async), 2),
                "ratio": round(statistics.median(ratios), 2),
                "ratio_range": [round(min(ratios), 2), round(max(ratios), 2)],
                "worker_cpu_ms": round(statistics.median(r[1] for r in results["front"]), 3),
                "front_requests_per_second": round(statistics.median(r[2] for r in results["front"])),
                "bare_requests_per_second": round(statistics.median(r[2] for r in results["bare"])),
                "design_floor_cpu_ms": FLOORS[size],
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--output", type=Path, help="also write JSON here")
    options = parser.parse_args()
    onnx = WorkerEnvironments.discover().for_backend("onnxruntime")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subprocess.run([onnx.python, "-c", BUILD, name], check=True)
        # Spawned: a fork of a process that has used gRPC hangs.
        context = multiprocessing.get_context("spawn")
        bare: list[tuple[str, Any, int]] = []
        for target_name, serve in (("bare", serve_bare), ("bare_async", serve_bare_async)):
            ours, theirs = context.Pipe()
            process = context.Process(target=serve, args=(theirs,), daemon=True)
            process.start()
            bare.append((target_name, process, ours.recv()))
        front, port = start_front(folder)
        try:
            client = triton.InferenceServerClient(f"127.0.0.1:{port}")
            for model in ("echo", "brief"):
                config = {"engine_directory": str(folder / model), "options": {"intra_op_threads": "1"}}
                client.load_model(model, config=json.dumps({**config, "instances": 2}))
            targets = [Target("front", connect(port, options.clients), psutil.Process(front.pid))] + [
                Target(name, connect(port, options.clients), psutil.Process(process.pid))
                for name, process, port in bare
            ]
            rows = [row for model in ("echo", "brief") for row in measure(targets, model, options.rounds)]
        finally:
            front.terminate()
            front.wait()
            for _, process, _ in bare:
                process.terminate()
    report = {
        "command": " ".join(["python", *sys.argv]),
        "clients": options.clients,
        "rounds": options.rounds,
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "grpcio": grpc.__version__,
        "rows": rows,
    }
    print(json.dumps(report, indent=2))
    if options.output:
        options.output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
