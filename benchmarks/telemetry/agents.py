"""Simulated agents, many in one process: each a gRPC server of its own with a port of its own.

    python -m benchmarks.telemetry.agents --count 250 --first 0 --gpus 8

prints the ports as JSON and serves `StreamSamples` until it is killed. A sample is what an H200 node's agent sends:
every field that such a GPU reports, two processes and one pod a GPU, a host of 64 cores. Agents are not in step: each
begins at a random moment of its period.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio

from enginehouse.v1 import telemetry_pb2 as pb

METHODS = "enginehouse.v1.Telemetry"
CORES = 64
GIB = 1 << 30


def sample_of(node: str, gpus: int, source: random.Random) -> pb.Sample:
    """A sample of a busy node."""
    sample = pb.Sample(node=f"projects/default/nodes/{node}")
    for index in range(gpus):
        gpu = sample.gpus.add(
            uuid=f"GPU-{source.getrandbits(128):032x}",
            index=index,
            state=pb.DEVICE_STATE_OK,
            product="NVIDIA H200",
            pstate=0,
            utilization_gpu_percent=source.uniform(0, 100),
            utilization_memory_percent=source.uniform(0, 100),
            memory_total_bytes=141 * GIB,
            memory_free_bytes=41 * GIB,
            memory_used_bytes=99 * GIB,
            memory_reserved_bytes=GIB,
            power_draw_watts=source.uniform(70, 700),
            power_draw_instant_watts=source.uniform(70, 700),
            power_draw_average_watts=source.uniform(70, 700),
            power_limit_watts=700,
            power_limit_enforced_watts=700,
            temperature_gpu_celsius=source.randint(30, 80),
            temperature_memory_celsius=source.randint(30, 90),
            pcie_generation_current=5,
            pcie_generation_max=5,
            pcie_width_current=16,
            pcie_width_max=16,
            pcie_tx_bytes_per_second=source.getrandbits(30),
            pcie_rx_bytes_per_second=source.getrandbits(30),
            pcie_replays=0,
            clock_graphics_mhz=1980,
            clock_sm_mhz=1980,
            clock_memory_mhz=3201,
            clock_video_mhz=1545,
            energy_millijoules=source.getrandbits(40),
            throttle_reasons_mask=4,
            throttle_reasons=["sw_power_cap"],
            utilization_encoder_percent=0,
            utilization_decoder_percent=0,
            ecc_corrected_volatile=0,
            ecc_uncorrected_volatile=0,
            ecc_corrected_aggregate=0,
            ecc_uncorrected_aggregate=0,
        )
        for _ in range(2):
            gpu.processes.add(
                pid=source.randint(1000, 4_000_000), name="/usr/bin/python3.10", memory_used_bytes=GIB, kind="compute"
            )
        gpu.allocations.add(
            namespace=f"team-{source.randint(1, 20)}",
            pod=f"trainer-{source.getrandbits(40):010x}",
            container="main",
            resource="nvidia.com/gpu",
            device=gpu.uuid,
        )
    host = sample.host
    host.cpu_utilization_percent = source.uniform(0, 100)
    host.cpu_utilization_percent_per_core.extend(source.uniform(0, 100) for _ in range(CORES))
    host.load_average_1m = source.uniform(0, CORES)
    host.cpu_frequency_mhz = 2900
    host.memory_total_bytes, host.memory_used_bytes, host.memory_available_bytes = 2048 * GIB, 512 * GIB, 1536 * GIB
    return sample


class SimulatedAgent:
    """One agent. It counts its samples on a grid of its own, whether or not anybody streams."""

    def __init__(self, node: str, gpus: int) -> None:
        self._source = random.Random(node)
        self._sample = sample_of(node, gpus, self._source)
        self._phase = self._source.random()

    async def start(self) -> int:
        """Serve; returns the port."""
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        handlers = {
            "StreamSamples": grpc.unary_stream_rpc_method_handler(
                self._stream, request_deserializer=pb.StreamSamplesRequest.FromString
            )
        }
        self._server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(METHODS, handlers)])
        port = self._server.add_insecure_port("127.0.0.1:0")
        await self._server.start()
        return int(port)

    async def _stream(self, request: pb.StreamSamplesRequest, context: Any) -> AsyncIterator[bytes]:
        period, queue = request.period.ToNanoseconds() / 1e9, request.queue or 16
        number = int(time.time() / period) + 1
        while True:
            await asyncio.sleep(max(0.0, (number + self._phase) * period - time.time()))
            # Of samples that are due and were not sent, the newest are kept, as many as an agent's queue has room for.
            newest = int(time.time() / period - self._phase)
            skipped = max(0, newest - queue + 1 - number)
            number += skipped
            yield self._next(number, skipped, (number + self._phase) * period)
            number += 1

    def _next(self, number: int, skipped: int, taken: float) -> bytes:
        sample = self._sample
        sample.sequence = number
        sample.time.FromNanoseconds(int(taken * 1e9))
        gpu = sample.gpus[number % len(sample.gpus)]
        gpu.utilization_gpu_percent = self._source.uniform(0, 100)
        gpu.power_draw_watts = self._source.uniform(70, 700)
        return pb.StreamSamplesResponse(sample=sample, skipped=skipped).SerializeToString()


async def serve(count: int, first: int, gpus: int) -> None:
    """Serve agents `first` to `first + count - 1` until cancelled."""
    agents = [SimulatedAgent(f"node-{number:05d}", gpus) for number in range(first, first + count)]
    ports = [await agent.start() for agent in agents]
    print(json.dumps(ports), flush=True)
    await asyncio.Event().wait()


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--count", type=int, default=250)
    cli.add_argument("--first", type=int, default=0)
    cli.add_argument("--gpus", type=int, default=8)
    options = cli.parse_args()
    asyncio.run(serve(options.count, options.first, options.gpus))


if __name__ == "__main__":
    main()
