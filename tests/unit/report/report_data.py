"""A made-up results directory. No number here is a measurement."""

from __future__ import annotations

from pathlib import Path

from bench_fakes import lane, machine, row

from enginehouse.bench.environment import Environment
from enginehouse.bench.recording import utc
from enginehouse.bench.rows import Accuracy, NotRun, Row
from enginehouse.bench.store import ResultStore, append_lines
from enginehouse.bench.suite_file import load_suite

START = 1_780_000_000.0
REASON = "no NVIDIA GPU: NVML library not found"


def write_results(directory: Path, *, telemetry: bool = True, gpu: bool = False) -> list[Row]:
    """A results directory of the quick suite, with everything a run leaves. Returns its rows."""
    suite = load_suite("quick")
    store = ResultStore.create(directory, suite, {"started": utc(START), "command": "enginehouse bench run quick"})
    environment = Environment(machine(1 if gpu else 0), {"python": "3.10.13", "onnxruntime": "1.23.2"})
    store.add_environment(environment.digest, environment.to_json())
    rates = {"tensorflow-cpu-fp32": 20.0, "onnxruntime-cpu-fp32": 40.0, "onnxruntime-cpu-int8": 110.0}
    if gpu:
        rates.update({"tensorflow-gpu-fp32": 240.0, "tf-trt-int8": 3000.0, "tensorrt-int8": 8000.0})
    rows = []
    for step, batch in enumerate((1, 2, 4, 8)):
        for mode, rate in rates.items():
            of = lane(mode=mode, batch=batch)
            more = {"power_w": 60.5, "gpu_utilization": 97.0} if of.device != "cpu" else {"cpu_ms": 4000 / rate}
            made = row(of, rate * (1 + 0.2 * step), environment=environment.digest, windows=4, calls=30,
                       accuracy=Accuracy("synthetic", sqnr_db=31.5), **more)  # type: ignore[arg-type]  # fmt: skip
            rows.append(made)
        store.add_phase({"name": f"measure batch {batch}", "kind": "measure", "start": utc(START + 10 * step + 4),
                         "end": utc(START + 10 * step + 10)})  # fmt: skip
        store.add_phase(
            {"name": "load", "kind": "load", "start": utc(START + 10 * step), "end": utc(START + 10 * step + 4)}
        )
    store.add_rows(rows)
    if not gpu:
        store.add_not_run(
            NotRun(lane(mode=mode, batch=batch), REASON, utc(START))
            for mode in ("tensorflow-gpu-fp32", "tf-trt-int8", "tensorrt-int8")
            for batch in (1, 2)
        )
    if telemetry:
        append_lines(store.telemetry_path, [_sample(second / 2, gpu) for second in range(80)])
    store.update_run(status="complete", ended=utc(START + 40))
    return rows


def _sample(second: float, gpu: bool) -> dict[str, object]:
    busy = second % 10 > 4
    host = {"cpu_utilization_percent": 95.0 if busy else 30.0, "memory_used_bytes": int((4 + second / 10) * 2**30)}
    device = {"index": 0, "utilization_gpu_percent": 97.0 if busy else 5.0, "power_draw_watts": 68.0 if busy else 30.0,
              "temperature_gpu_celsius": 40 + second / 2, "memory_used_bytes": 3 * 2**30}  # fmt: skip
    return {"time": utc(START + second), "node": "n", "host": host, **({"gpus": [device]} if gpu else {})}


__all__ = ["REASON", "START", "write_results"]
