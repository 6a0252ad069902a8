"""Minutes of mixed load, loads and unloads, and a lost device, while memory is watched.

    python tests/gpu/soak.py --out soak.json [--minutes 8]

Clients ask three models (quick, INT8, and INT8 with images as bytes) for random batches over messages and shared
memory, and compare each row with the engine's own answer to that row alone; another model is loaded and unloaded all
the while; in the middle a worker loses its device. Written: what was answered, what failed and when, the memory of the
inference process, its workers and the device every two seconds, and a verdict. Memory may grow by 2 % or 16 MiB, the
larger, between the end of the first minute (of a process's life) and the end. Needs what the tests here need.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil

sys.path.insert(0, str(Path(__file__).parent))

import tritonclient.grpc as triton
from building import PREPROCESSING, Workshop, array_of
from machine import OWN_ANSWER, Machine, find_machine, say, worst_row
from tritonclient.utils import InferenceServerException, shared_memory
from verdict import Sample, judge

from services import Services, request, running_services, wait_for

PROFILE = (1, 16, 32)
SAMPLE_SECONDS = 2.0


@dataclass(frozen=True)
class Served:
    """A model under load: its engine, its images, and its own answers to each alone."""

    name: str
    engine: Path
    input: str
    dtype: str
    images: Any
    right: Any = None


@dataclass
class Story:
    """What happened, for all threads to write to."""

    begin: float = field(default_factory=time.monotonic)
    answers: dict[str, int] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    errors: list[tuple[float, str, str]] = field(default_factory=list)
    turns: int = 0
    samples: list[Sample] = field(default_factory=list)
    lost: tuple[float, float] | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)
    stop: threading.Event = field(default_factory=threading.Event)

    @property
    def now(self) -> float:
        return time.monotonic() - self.begin

    def answered(self, way: str, model: Served, picked: Any, found: Any) -> None:
        difference = worst_row(found, model.right, picked)
        with self.lock:
            key = f"{model.name} {way}"
            self.answers[key] = self.answers.get(key, 0) + 1
            self.rows[key] = self.rows.get(key, 0) + len(picked)
            if difference > OWN_ANSWER:
                self.wrong.append(f"{self.now:.1f} s: {key}, {len(picked)} rows: differs by {difference:.3g}")

    def failed(self, what: str, error: Exception) -> None:
        with self.lock:
            self.errors.append((round(self.now, 2), what, str(error)[:300]))


async def make_models(machine: Machine, root: Path) -> list[Served]:
    """Build the engines by the worker's stages."""
    shop = Workshop(machine, root)
    model = await shop.imported("small", "small")
    images = await shop.images("small", model)
    taken = await shop.stage("small/bytes", "preprocess", {"model": model}, machine.onnx, preprocessing=PREPROCESSING)
    byte_images = await shop.images("small-bytes", taken)
    found = []
    for name, source, data, precision in (
        ("quick", model, images, machine.half),
        ("int8", await shop.quantized("small", model, images), images, "INT8"),
        ("bytes", await shop.quantized("small-bytes", taken, byte_images), byte_images, "INT8"),
    ):
        engine = await shop.built(f"soak-{name}", source, precision, PROFILE)
        spec = json.loads((engine / "engine.json").read_text())["inputs"][0]
        found.append(Served(name, engine, spec["name"], spec["dtype"], array_of(data)[1]))
    return found


def load(client: Any, name: str, engine: Path, instances: int) -> None:
    client.load_model(name, config=json.dumps({"engine_directory": str(engine), "instances": instances}))


def ask_by_message(address: str, models: Sequence[Served], story: Story, seed: int) -> None:
    client, random = triton.InferenceServerClient(address), np.random.default_rng(seed)
    while not story.stop.is_set():
        model = models[int(random.integers(len(models)))]
        picked = random.integers(0, len(model.images), size=int(random.integers(1, PROFILE[2] + 1)))
        try:
            result = client.infer(model.name, [request(model.input, model.images[picked], model.dtype)])
        except InferenceServerException as error:
            story.failed(f"infer {model.name}", error)
            time.sleep(0.05)
            continue
        story.answered("by message", model, picked, result.as_numpy(result.get_response().outputs[0].name))


def ask_by_shared_memory(address: str, models: Sequence[Served], story: Story, seed: int) -> None:
    client, random = triton.InferenceServerClient(address), np.random.default_rng(seed)
    key = f"soak-{uuid.uuid4().hex[:8]}"
    room = max(model.images[0].nbytes for model in models) * PROFILE[2]
    regions = {
        side: shared_memory.create_shared_memory_region(f"{key}-{side}", f"/{key}-{side}", room) for side in "io"
    }
    try:
        while not story.stop.is_set():
            # Registered anew each time: registrations must not pile up.
            for side in "io":
                client.register_system_shared_memory(f"{key}-{side}", f"/{key}-{side}", room)
            for _ in range(20):
                _ask_once(client, models, story, random, regions, key)
            for side in "io":
                client.unregister_system_shared_memory(f"{key}-{side}")
    except InferenceServerException as error:
        story.failed("shared memory", error)
    finally:
        for region in regions.values():
            shared_memory.destroy_shared_memory_region(region)


def _ask_once(client: Any, models: Sequence[Served], story: Story, random: Any, regions: Any, key: str) -> None:
    model = models[int(random.integers(len(models)))]
    picked = random.integers(0, len(model.images), size=int(random.integers(1, PROFILE[2] + 1)))
    array, shape = np.ascontiguousarray(model.images[picked]), [len(picked), *model.right.shape[1:]]
    shared_memory.set_shared_memory_region(regions["i"], [array])
    item = triton.InferInput(model.input, list(array.shape), model.dtype)
    item.set_shared_memory(f"{key}-i", array.nbytes)
    output = triton.InferRequestedOutput(_output(model))
    output.set_shared_memory(f"{key}-o", int(np.prod(shape)) * 4)
    try:
        client.infer(model.name, [item], outputs=[output])
    except InferenceServerException as error:
        story.failed(f"infer {model.name}", error)
        time.sleep(0.05)
        return
    found = shared_memory.get_contents_as_numpy(regions["o"], np.float32, shape)
    story.answered("by shared memory", model, picked, found)


def _output(model: Served) -> str:
    return str(json.loads((model.engine / "engine.json").read_text())["outputs"][0]["name"])


def come_and_go(address: str, model: Served, story: Story) -> None:
    """Load another model, ask it, unload it, every two seconds or so."""
    client = triton.InferenceServerClient(address)
    while not story.stop.wait(1.5):
        try:
            load(client, "guest", model.engine, 2)
            result = client.infer("guest", [request(model.input, model.images[:3], model.dtype)])
            found = result.as_numpy(result.get_response().outputs[0].name)
            story.answered("as a guest", model, np.arange(3), found)
            client.unload_model("guest")
            story.turns += 1
        except InferenceServerException as error:
            story.failed("guest", error)


def lose_device(services: Services, story: Story, names: Sequence[str]) -> None:
    """Have a worker lose its device, and wait until its models are back."""
    before, begin = services.workers(), story.now
    say("a worker loses its device")
    services.poison.touch()
    wait_for(lambda: not set(before) & set(services.workers()) and services.workers())
    wait_for(lambda: all(services.client.model_ready(name) for name in names))
    story.lost = (begin, story.now)
    say(f"its models are back after {story.now - begin:.1f} s")


class DeviceMemory:
    """What processes take of the first GPU; of all that use it, where the driver does not tell them apart."""

    def __init__(self) -> None:
        import pynvml

        self._nvml = pynvml
        pynvml.nvmlInit()
        self._handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        self.kind = "not known"

    def used(self, pids: Sequence[int]) -> int:
        try:
            running = self._nvml.nvmlDeviceGetComputeRunningProcesses(self._handle)
        except self._nvml.NVMLError:
            running = []
        found = [item.usedGpuMemory for item in running if item.pid in pids and item.usedGpuMemory]
        if found and self.kind in ("not known", "of the workers"):
            self.kind = "of the workers"
            return int(sum(found))
        self.kind = "of the whole device"
        return int(self._nvml.nvmlDeviceGetMemoryInfo(self._handle).used)


def sample(services: Services, story: Story, device: DeviceMemory | None) -> Sample:
    front = psutil.Process(services.inference_pid)
    workers = services.workers()
    pids = sorted(worker.pid for worker in workers)
    resident = 0
    for worker in workers:
        try:
            resident += worker.memory_info().rss
        except psutil.Error:
            continue
    used = device.used(pids) if device is not None else None
    return Sample(round(story.now, 2), front.memory_info().rss, resident, pids, front.num_fds(), used)


def soak(
    machine: Machine, services: Services, models: Sequence[Served], minutes: float
) -> tuple[Story, dict[str, Any]]:
    client = services.triton()
    for model in models:
        load(client, model.name, model.engine, 2)
    right = [np.concatenate([services.client.infer(m.name, row[None]).only() for row in m.images]) for m in models]
    models = [Served(**{**vars(m), "right": r}) for m, r in zip(models, right, strict=True)]
    story, device = Story(), DeviceMemory() if machine.gpu else None
    seconds, names = minutes * 60, [model.name for model in models]
    settled = min(60.0, seconds / 8)
    work = [(ask_by_message, (services.address, models, story, seed)) for seed in range(4)]
    work += [(ask_by_shared_memory, (services.address, models, story, seed)) for seed in (10, 11)]
    work += [(come_and_go, (services.address, models[0], story))]
    threads = [threading.Thread(target=target, args=arguments, daemon=True) for target, arguments in work]
    for thread in threads:
        thread.start()
    spoiler = threading.Thread(target=lose_device, args=(services, story, names), daemon=True)
    told = 0.0
    while story.now < seconds:
        story.samples.append(sample(services, story, device))
        if spoiler.ident is None and story.now > seconds / 2:
            spoiler.start()
        if story.now - told > 30:
            told, last = story.now, story.samples[-1]
            say(
                f"{told:.0f} s: {sum(story.answers.values())} answers, {len(story.errors)} failed, {len(story.wrong)} "
                f"wrong, {story.turns} loads; MiB: front {last.front >> 20}, workers {last.workers >> 20}, device "
                f"{'-' if last.device is None else last.device >> 20}"
            )
        time.sleep(SAMPLE_SECONDS)
    spoiler.join(60)
    story.stop.set()
    for thread in threads:
        thread.join(60)
    verdict = judge(story.samples, story.errors, story.lost, settled)
    for bad, reason in (
        (story.wrong, f"{len(story.wrong)} wrong answers"),
        (not story.lost, "no worker was lost and replaced"),
        (not story.turns, "no model came and went"),
    ):
        if bad:
            verdict["reasons"].append(reason)
    verdict["passed"] = not verdict["reasons"]
    if device is not None:
        verdict["device_memory"] = device.kind
    return story, verdict


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--out", type=Path, required=True)
    cli.add_argument("--minutes", type=float, default=8.0)
    cli.add_argument("--work", type=Path, help="keep engines here")
    arguments = cli.parse_args()
    machine = find_machine()
    if isinstance(machine, str):
        sys.exit(machine)
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        models = asyncio.run(make_models(machine, arguments.work or Path(folder) / "work"))
        with running_services(machine, Path(folder) / "home") as services:
            try:
                story, verdict = soak(machine, services, models, arguments.minutes)
            except BaseException:
                print(services.log()[-8000:], file=sys.stderr, flush=True)
                raise
            ending = services.log().splitlines()[-40:]
    result = {
        "backend": machine.backend,
        "minutes": arguments.minutes,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "verdict": verdict,
        "answers": story.answers,
        "rows": story.rows,
        "loads_and_unloads": story.turns,
        "wrong": story.wrong[:50],
        "lost_device": story.lost,
        "samples": [asdict(item) for item in story.samples],
    }
    arguments.out.write_text(json.dumps(result) + "\n")
    print(json.dumps({key: value for key, value in result.items() if key != "samples"}, indent=1), flush=True)
    if not verdict["passed"]:
        print("\n".join(line for line in ending if '"info"' not in line), file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
