"""The inference service's settings: environment variables `ENGINEHOUSE_*`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from enginehouse.rpc.settings import ServerSettings
from enginehouse_inference.devices.hosted import SupervisorSettings

METRICS_PORT = 8002  # Triton's
# What `ENGINEHOUSE_FRONTS=auto` means: clients, the engine host and the worker need CPUs too.
CPUS_PER_FRONT, MOST_FRONTS = 4, 8


class InferenceSettings(ServerSettings):
    """See services/inference/README.md for the table."""

    port: int = Field(default=8001, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    metrics_port: Annotated[int, Field(ge=0, le=65535)] | Literal["off"] | None = Field(
        default=None,
        description=f"Port of Prometheus metrics; 0 takes a free one, off serves none. Absent: {METRICS_PORT}, or a "
        "free one where ENGINEHOUSE_PORT is 0.",
    )
    metrics_host: str | None = Field(default=None, description="Address of the metrics; ENGINEHOUSE_HOST when absent.")
    tracing: Literal["off", "otlp"] = Field(
        default="off",
        description="otlp: send traces of requests to the collector at OTEL_EXPORTER_OTLP_ENDPOINT (needs the extra "
        "otel of enginehouse-inference); off: none.",
    )
    trace_rate: int = Field(
        default=1000,
        ge=1,
        lt=2**31,
        description="Of the requests whose callers do not trace them, every how many-th is traced.",
    )
    max_message_bytes: int = Field(
        default=1 << 30, ge=1 << 20, description="Largest request or response message, in bytes."
    )
    optimizer: str = Field(
        default="", description="host:port of the optimizer, whose serving configurations are followed; empty: none."
    )
    missing_engine: Literal["wait", "fallback", "fail"] = Field(
        default="fail",
        description="What to do when a configured engine was built for another GPU or TensorRT, and none like it for "
        "this one is published. wait: have the optimizer build it, and serve it then; fallback: serve another engine "
        "of the model with the same inputs and outputs that runs here; fail: serve none.",
    )
    gpu_product: str = Field(
        default="",
        description="This process's GPU as the node label nvidia.com/gpu.product has it, where its name does not say "
        "(MIG, time-slicing): what an engine is asked for, with wait.",
    )
    cache_dir: Path = Field(
        default=Path("~/.cache/enginehouse/inference"), description="Where engines and the last desired state are kept."
    )
    device: str = Field(
        default="cpu",
        pattern=r"^(cpu|(cuda|gpu)(:\d+)?)$",
        description="Device that engines run on: cpu, or a GPU such as cuda:0.",
    )
    max_queue_size: int = Field(
        default=1024, ge=1, description="Requests that may wait for a version whose configuration does not say."
    )
    device_batches: int = Field(
        default=0,
        ge=0,
        description="Batches that a device computes at once, of all models together, which then share it by time; "
        "0: as many as they have instances.",
    )
    concurrent_loads: int = Field(default=4, ge=1, description="Engines that are fetched and loaded at once.")
    worker_per_model: bool = Field(
        default=False,
        description="On the CPU, run each loaded version in a worker process of its own: a load then stalls no other "
        "model, nor the version that it replaces, and a crash costs one model, for the memory of a process each.",
    )
    fetch_megabytes_per_second: float = Field(
        default=0.0, ge=0, description="How fast engines may come from the optimizer, all together; 0: without limit."
    )
    fronts: Annotated[int, Field(ge=1, le=64)] | Literal["auto"] = Field(
        default=1,
        description="Processes that share the port, each with its own connections; 1: none beside the one that serves; "
        "auto: as many as the CPUs suggest.",
    )
    stream_window: int = Field(
        default=64, ge=1, description="Requests of one stream that are worked on at once; reading waits beyond it."
    )
    load_directories: tuple[Path, ...] | None = Field(
        default=None,
        description="Folders (a JSON list) under which load requests may name engine directories. Absent: anywhere "
        "when only this machine can reach the server, nowhere otherwise.",
    )
    startup_wait_seconds: float = Field(
        default=5.0,
        ge=0,
        description="At start, how long to wait for the optimizer before being ready with the last state (or nothing).",
    )
    ping_interval_seconds: float = Field(default=5.0, gt=0, description="How often a worker must say that it lives.")
    ping_timeout_seconds: float = Field(default=30.0, gt=0, description="A worker silent for longer is replaced.")
    load_timeout_seconds: float = Field(default=1800.0, gt=0, description="A load that takes longer is given up.")
    inference_timeout_seconds: float = Field(
        default=300.0, gt=0, description="A batch that runs longer costs the worker its life."
    )
    crash_limit: int = Field(
        default=3, ge=1, description="A model that crashed its worker this often in ten minutes is not loaded again."
    )

    @property
    def metrics_address(self) -> tuple[str, int] | None:
        """Host and port of the metrics; None: none are served."""
        if self.metrics_port == "off":
            return None
        default = METRICS_PORT if self.port else 0
        return self.metrics_host or self.host, default if self.metrics_port is None else self.metrics_port

    @property
    def front_count(self) -> int:
        """How many processes share the port."""
        if self.fronts != "auto":
            return self.fronts
        return min(max(len(os.sched_getaffinity(0)) // CPUS_PER_FRONT, 1), MOST_FRONTS)

    @property
    def allowed_load_directories(self) -> tuple[Path, ...] | None:
        """Where load requests may find engines; None: anywhere."""
        if self.load_directories is None and not self.is_loopback:
            return ()
        return self.load_directories

    @property
    def supervisor(self) -> SupervisorSettings:
        return SupervisorSettings(
            ping_interval=self.ping_interval_seconds,
            ping_timeout=self.ping_timeout_seconds,
            load_timeout=self.load_timeout_seconds,
            inference_timeout=self.inference_timeout_seconds,
            crash_limit=self.crash_limit,
        )
