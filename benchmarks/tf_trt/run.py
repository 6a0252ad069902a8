"""TensorFlow on CPU and GPU, and TF-TRT, for the paper's networks: builds engines and times all modes in turns.

    python benchmarks/tf_trt/run.py --work /tmp/tftrt --out results/h200/tf-trt --models resnet_v1_50

Run it with the worker environment tf-trt; `--host-python` is the Python that has nvidia-ml-py, for the GPU's power.
Networks are `benchmarks/graphs/*.graphdef.gz` filled from seeds. Engines are made by the worker's own build stage, and
stay in the work folder; a point that has a row is not measured again: the same command goes on where it ended. A mode
that fails is listed, the rest goes on. Writes `rows.jsonl`, `builds.jsonl`, `environments.json`, `telemetry.jsonl`.

TensorRT itself in this environment (8.5.3) is measured by `benchmarks/tensorrt_speed/measure.py`, run with this
environment's Python and a work folder of its own.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "worker")]

from tensorrt_speed import campaign as machine  # noqa: E402
from tensorrt_speed import power, rows  # noqa: E402
from tensorrt_speed.measure import end, line, take_turns  # noqa: E402
from tensorrt_speed.runners import host_environment  # noqa: E402
from tensorrt_speed.variants import Point  # noqa: E402

from tf_trt.clients import Client, child_environment  # noqa: E402
from tf_trt.modes import MODES, Mode  # noqa: E402

NETWORKS = ("resnet_v1_50", "resnet_v2_50", "inception_v3", "inception_v4", "vgg16", "vgg19")
# Of a build or a load: TensorFlow's import and the first use of a new chip take a minute.
FEWEST_SECONDS = 60.0


class Run:
    """One run of the command: its settings, what is done, what failed."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.work: Path = arguments.work
        self.out: Path = arguments.out
        self.batches: tuple[int, ...] = arguments.batches
        self.engine_batches: tuple[int, ...] = arguments.engine_batches
        self.modes = [MODES[name] for name in arguments.modes]
        self.rounds: int = arguments.rounds
        self.seconds: float = arguments.seconds
        self.limit: float = arguments.limit
        self.host_python: str = arguments.host_python
        self.begin = time.monotonic()
        self.deadline = self.begin + float(arguments.deadline)
        self.failed: dict[str, str] = {}
        self.sitting = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        facts = {**machine.environment(), "tensorflow": metadata.version("tensorflow")}
        self.environment = rows.add_environment(self.out, facts)
        self.device = {"gpu": facts.get("gpu"), "cpu": facts["cpu"]}
        self.done = rows.measured(rows.read(self.out / "rows.jsonl"))

    @property
    def left(self) -> float:
        return self.deadline - time.monotonic()

    def say(self, text: str) -> None:
        print(f"[{time.monotonic() - self.begin:6.1f}] {text}", flush=True)

    def fail(self, name: str, error: BaseException) -> None:
        """Note why a mode of a network failed; it is not tried again in this run."""
        self.failed[name] = f"{type(error).__name__}: {error}"
        rows.append(self.out / "builds.jsonl", {"variant": name, "failed": self.failed[name], "time": self.sitting})
        self.say(f"{name} FAILED: {self.failed[name]}")

    def missing(self, network: str, mode: Mode) -> list[Point]:
        """The points of a mode without a row."""
        wanted = [
            Point(f"{network}-{mode.name}", batch, scope, 1)
            for batch in mode.batches(self.batches)
            for scope in mode.scopes
        ]
        return [point for point in wanted if point not in self.done]

    def usable(self, network: str) -> list[Mode]:
        return [mode for mode in self.modes if f"{network}-{mode.name}" not in self.failed]


def prepare(run: Run, network: str) -> Path:
    """The network's folder, with its frozen graph."""
    folder = run.work / network
    if not (folder / "frozen" / "signature.json").exists():
        command = [sys.executable, str(Path(__file__).parent / "graphs.py"), "fill", network, str(folder / "frozen")]
        quiet = {**child_environment(run.work / "cuda-cache"), "CUDA_VISIBLE_DEVICES": "-1"}
        subprocess.run(command, check=True, env=quiet, timeout=max(FEWEST_SECONDS, run.left))
        run.say(f"{network}: filled its graph")
    return folder


def build(run: Run, network: str, mode: Mode, folder: Path) -> None:
    """Make a mode's engine unless it is there.

    Raises:
        RuntimeError: the build failed; the message is the end of its log.
        TimeoutError, subprocess.TimeoutExpired: the time is up.
    """
    output = folder / mode.engine
    if (output / "engine.json").exists():
        return
    if run.left < FEWEST_SECONDS:
        raise TimeoutError("no time is left for its build")
    # Renamed at the end: a build that was cut leaves no engine.
    making = folder / f"{mode.engine}.making"
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(parents=True)
    spec = folder / f"{mode.engine}.json"
    params = mode.build(max(run.batches), run.engine_batches)
    given = {"stage": "build", "inputs": {"model": str(folder / "frozen")}, "output": str(making), "params": params}
    spec.write_text(json.dumps(given))
    command = [sys.executable, "-m", "enginehouse_worker", "stage", "--spec", str(spec), "--events-fd", "1"]
    begin = time.monotonic()
    with (folder / f"{mode.engine}.log").open("w+") as log:
        done = subprocess.run(
            command,
            env=child_environment(run.work / "cuda-cache"),
            stdout=log,
            stderr=subprocess.STDOUT,
            timeout=run.left,
            check=False,
        )
        log.seek(0)
        if done.returncode:
            raise RuntimeError(f"its build ended with {done.returncode}: {log.read()[-3000:]}")
    making.rename(output)
    record = {"variant": f"{network}-{mode.name}", "build_seconds": round(time.monotonic() - begin, 1)}
    record["engine_bytes"] = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    described = json.loads((output / "engine.json").read_text())
    record |= {name: described[name] for name in ("conversion", "calibration") if name in described}
    (output / "build.json").write_text(json.dumps(record))
    rows.append(run.out / "builds.jsonl", {**record, "time": run.sitting, "environment": run.environment})
    run.say(f"built {record}")


def make_reference(run: Run, network: str, folder: Path) -> None:
    """Keep what TensorFlow's CPU makes of some images, for every mode to be compared with."""
    reference = folder / "reference.npz"
    if reference.exists():
        return
    mode = MODES["tensorflow-cpu-fp32"]
    build(run, network, mode, folder)
    client = Client(mode, folder / mode.engine, run.work, run.limit)
    try:
        client.answer()
        client.ask({"do": "reference", "path": str(reference)})
    finally:
        client.close()


def load(run: Run, network: str, folder: Path) -> dict[str, Client]:
    """A process for each mode that has points left, by the points' variant: all load at once."""
    wanted = [mode for mode in run.usable(network) if run.missing(network, mode)]
    clients = {f"{network}-{mode.name}": Client(mode, folder / mode.engine, run.work, run.limit) for mode in wanted}
    for name, client in list(clients.items()):
        try:
            run.say(f"loaded {name} {client.answer()}")
        except RuntimeError as error:
            run.fail(name, error)
            clients.pop(name).close()
    return clients


def measure(run: Run, network: str, folder: Path) -> None:
    """Time the points of a network that have no row, by batch size, all modes in turns."""
    clients = load(run, network, folder)
    try:
        facts = {name: row_facts(network, client, folder, run) for name, client in clients.items()}
        for batch in run.batches:
            if run.left < 0:
                run.say(f"{network}: the deadline came before batch {batch}")
                break
            usable = [mode for mode in run.usable(network) if f"{network}-{mode.name}" in clients]
            points = [point for mode in usable for point in run.missing(network, mode) if point.batch == batch]
            measured = take_turns(dict(clients), points, run.rounds, run.seconds, run.fail)
            samples = rows.read(run.out / "telemetry.jsonl")
            for point, (rates, singles, windows) in measured.items():
                row = {
                    **facts[point.variant],
                    "variant": point.variant,
                    "batch": batch,
                    "scope": point.scope,
                    "instances": 1,
                    "cuda_graph": False,
                    **rows.speed(rates),
                    "latency_ms": rows.latency(singles),
                    **power.summary(samples, windows),
                    "sitting": run.sitting,
                    "environment": run.environment,
                    "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                    "command": " ".join(["python", "benchmarks/tf_trt/run.py", *sys.argv[1:]]),
                }
                if row.get("power_w"):
                    row["images_per_second_per_watt"] = round(row["inferences_per_second"] / row["power_w"], 2)
                rows.append(run.out / "rows.jsonl", row)
                run.done.add(point)
                run.say(line(row))
    finally:
        for client in clients.values():
            client.close()


def row_facts(network: str, client: Client, folder: Path, run: Run) -> dict[str, Any]:
    """What every row of a mode says: the mode, its engine, its accuracy."""
    mode = client.mode
    built = json.loads((folder / mode.engine / "build.json").read_text())
    kept = ("build_seconds", "engine_bytes", "conversion", "calibration")
    found = {
        "model": network,
        "mode": mode.name,
        "backend": mode.backend,
        "runtime": "worker",
        "precision": mode.precision,
        "load": dict(mode.load),
        **{name: built[name] for name in kept if name in built},
    }
    device = run.device["cpu" if mode.device == "cpu" else "gpu"]
    try:
        accuracy = client.ask({"do": "accuracy", "path": str(folder / "reference.npz")})
    except RuntimeError as error:
        run.say(f"{network}-{mode.name}: accuracy: {error}")
        accuracy = {}
    run.say(f"{network}-{mode.name}: {accuracy}")
    return {**found, **({"device": device} if device else {}), **({"accuracy": accuracy} if accuracy else {})}


@contextmanager
def sampling(run: Run) -> Iterator[None]:
    """The GPU's telemetry in a process of its own, while this lasts."""
    command = [run.host_python, str(ROOT / "benchmarks" / "tensorrt_speed" / "power.py")]
    command += ["--out", str(run.out / "telemetry.jsonl")]
    process = subprocess.Popen(command, env=host_environment())
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def numbers(text: str) -> tuple[int, ...]:
    return tuple(sorted({int(part) for part in text.split(",")}))


def names(known: Sequence[str]) -> Any:
    def read(text: str) -> tuple[str, ...]:
        found = tuple(text.split(","))
        if unknown := [name for name in found if name not in known]:
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; known: {', '.join(known)}")
        return found

    return read


def arguments_of(given: Sequence[str] | None = None) -> argparse.Namespace:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--work", type=Path, required=True)
    cli.add_argument("--out", type=Path, required=True)
    cli.add_argument("--models", type=names(NETWORKS), default=NETWORKS[:1])
    cli.add_argument("--modes", type=names(tuple(MODES)), default=tuple(MODES), help="in the order of building")
    cli.add_argument("--batches", type=numbers, default=(1, 2, 4, 8, 16, 32, 64, 128))
    cli.add_argument(
        "--engine-batches", type=numbers, default=(1, 8, 128), help="TF-TRT's; others run in the next larger"
    )
    cli.add_argument("--rounds", type=int, default=5, help="windows of each point")
    cli.add_argument("--seconds", type=float, default=0.3, help="length of a window; latency takes half as long again")
    cli.add_argument("--deadline", type=float, default=540.0, help="seconds after which nothing more is begun")
    cli.add_argument("--limit", type=float, default=180.0, help="seconds that a process may take to answer")
    cli.add_argument("--host-python", default="python3")
    cli.add_argument("--build-only", action="store_true")
    return cli.parse_args(given)


def main() -> None:
    arguments = arguments_of()
    signal.signal(signal.SIGTERM, end)
    run = Run(arguments)
    for network in arguments.models:
        if run.left < FEWEST_SECONDS:
            run.say(f"{network}: no time is left")
            break
        try:
            folder = prepare(run, network)
            make_reference(run, network, folder)
        except (RuntimeError, OSError, subprocess.SubprocessError) as error:
            run.fail(network, error)
            continue
        for mode in run.modes:
            if run.missing(network, mode):
                try:
                    build(run, network, mode, folder)
                except (RuntimeError, OSError, subprocess.SubprocessError) as error:
                    run.fail(f"{network}-{mode.name}", error)
        if not arguments.build_only:
            with sampling(run):
                measure(run, network, folder)
    left = [
        f"{p.variant} {p.batch} {p.scope}" for n in arguments.models for mode in run.modes for p in run.missing(n, mode)
    ]
    run.say(f"done; {len(left)} points left: {'; '.join(left) or 'none'}")
    for name, why in run.failed.items():
        run.say(f"failed: {name}: {why[:500]}")


if __name__ == "__main__":
    main()
