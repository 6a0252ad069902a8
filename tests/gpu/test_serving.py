"""The services as processes: from an uploaded ONNX file to answers over every kind of memory."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
from conftest import Notes, Small
from device_memory import taken
from machine import LEAST_SQNR_DB, OWN_ANSWER, Machine, sqnr_db, worst_row

from enginehouse import BatchProfile, Calibration, Synthetic, Target, VerificationSpec
from enginehouse.client.values import Engine
from enginehouse.errors import EnginehouseError, InvalidArgumentError
from services import Services, command, request

pytestmark = pytest.mark.timeout(550)

PROFILE = BatchProfile(1, 8, 16)
DATA = Synthetic("normal", 32)


@dataclass(frozen=True)
class Served:
    """The small network under two names: "quick", not quantized, and "int8"."""

    services: Services
    quick: Engine
    int8: Engine


@pytest.fixture(scope="module")
def served(machine: Machine, services: Services, small: Small) -> Served:
    client = services.client
    model = client.models.upload(small.model.parent / "source" / "model.onnx", "small")
    targets = [Target(machine.backend, machine.half, PROFILE), Target(machine.backend, "INT8", PROFILE)]
    verification = VerificationSpec(synthetic=DATA, minimum_sqnr_db=LEAST_SQNR_DB["INT8"])
    job = client.optimize(model, targets, calibration=Calibration(synthetic=DATA), verification=verification)
    quick, int8 = job.result(timeout=500)
    client.load("quick", quick, instances=2)
    client.load("int8", int8, instances=2)
    return Served(services, quick, int8)


@pytest.fixture(scope="module")
def right(served: Served, small: Small) -> Any:
    """The quick engine's own answers, each image alone."""
    client = served.services.client
    return np.concatenate([client.infer("quick", image[None]).only() for image in small.images])


def test_engines_are_published_with_their_device(machine: Machine, served: Served, small: Small, notes: Notes) -> None:
    for name, engine in (("quick", served.quick), ("int8", served.int8)):
        assert engine.verification is not None
        notes.add(
            f"served {name}: device, sqnr_db of verification", [engine.device.product, engine.verification.sqnr_db]
        )
        assert engine.device.kind == ("gpu" if machine.gpu else "cpu")
        if machine.gpu:
            device = engine.device
            assert device.product and float(device.compute_capability) >= 7 and device.driver_version
            assert engine.backend_version.count(".") >= 1
        found = served.services.client.infer(name, small.images[:8]).only()
        least = LEAST_SQNR_DB[machine.half if name == "quick" else "INT8"]
        assert sqnr_db(found, small.expected[:8]) > least


def test_answers_by_message(served: Served, small: Small, right: Any) -> None:
    client = served.services.triton()
    for size in (1, 7, 16, 3):
        found = client.infer("quick", [request(small.name, small.images[:size], "FP32")])
        output = found.get_response().outputs[0].name
        assert worst_row(found.as_numpy(output), right, range(size)) < OWN_ANSWER


def shared_request(name: str, shape: tuple[int, ...], region: str, size: int) -> Any:
    item = triton.InferInput(name, list(shape), "FP32")
    item.set_shared_memory(region, size)
    return item


def shared_output(name: str, region: str, size: int) -> Any:
    item = triton.InferRequestedOutput(name)
    item.set_shared_memory(region, size)
    return item


def test_answers_by_system_shared_memory(served: Served, small: Small, right: Any) -> None:
    from tritonclient.utils import shared_memory

    client, key = served.services.triton(), f"/{uuid.uuid4().hex[:12]}"
    images, results = small.images[:16], right[:16]
    region = shared_memory.create_shared_memory_region("images", f"{key}-in", images.nbytes)
    room = shared_memory.create_shared_memory_region("results", f"{key}-out", results.nbytes)
    try:
        client.register_system_shared_memory("images", f"{key}-in", images.nbytes)
        client.register_system_shared_memory("results", f"{key}-out", results.nbytes)
        output = served.quick.outputs[0].name
        for turn in range(3):
            order = np.roll(np.arange(16), turn)
            shared_memory.set_shared_memory_region(region, [np.ascontiguousarray(images[order])])
            client.infer(
                "quick",
                [shared_request(small.name, images.shape, "images", images.nbytes)],
                outputs=[shared_output(output, "results", results.nbytes)],
            )
            found = shared_memory.get_contents_as_numpy(room, np.float32, list(results.shape))
            assert worst_row(found, right, order) < OWN_ANSWER
        client.unregister_system_shared_memory()
    finally:
        shared_memory.destroy_shared_memory_region(region)
        shared_memory.destroy_shared_memory_region(room)


@contextmanager
def cuda_region(client: Any, name: str, size: int) -> Iterator[Any]:
    """Device memory of this process that the server has open."""
    from tritonclient.utils import cuda_shared_memory

    region = cuda_shared_memory.create_shared_memory_region(name, size, 0)
    try:
        client.register_cuda_shared_memory(name, cuda_shared_memory.get_raw_handle(region), 0, size)
        yield region
        client.unregister_cuda_shared_memory(name)
    finally:
        cuda_shared_memory.destroy_shared_memory_region(region)


def test_answers_by_cuda_shared_memory(gpu: Machine, served: Served, small: Small, right: Any) -> None:
    from tritonclient.utils import cuda_shared_memory

    client = served.services.triton()
    images, results = small.images[:16], right[:16]
    output = served.quick.outputs[0].name
    with cuda_region(client, "images", images.nbytes) as region, cuda_region(client, "results", results.nbytes) as room:
        status = client.get_cuda_shared_memory_status(as_json=True)
        assert set(status["regions"]) == {"images", "results"}
        for turn in range(3):
            order = np.roll(np.arange(16), turn)
            cuda_shared_memory.set_shared_memory_region(region, [np.ascontiguousarray(images[order])])
            client.infer(
                "quick",
                [shared_request(small.name, images.shape, "images", images.nbytes)],
                outputs=[shared_output(output, "results", results.nbytes)],
            )
            found = cuda_shared_memory.get_contents_as_numpy(room, np.float32, list(results.shape))
            assert worst_row(found, right, order) < OWN_ANSWER
        # One by message, one by device memory: each way alone.
        answer = client.infer("quick", [shared_request(small.name, images.shape, "images", images.nbytes)])
        assert worst_row(answer.as_numpy(output), right, order) < OWN_ANSWER
        # The last rows of the region.
        half = triton.InferInput(small.name, [8, *images.shape[1:]], "FP32")
        half.set_shared_memory("images", images.nbytes // 2, offset=images.nbytes // 2)
        assert worst_row(client.infer("quick", [half]).as_numpy(output), right, order[8:]) < OWN_ANSWER
        beyond = shared_request(small.name, images.shape, "images", images.nbytes)
        beyond.set_shared_memory("images", images.nbytes, offset=64)
        with pytest.raises(triton.InferenceServerException):
            client.infer("quick", [beyond])
    assert not client.get_cuda_shared_memory_status(as_json=True).get("regions")


def test_a_bad_handle_is_refused(gpu: Machine, served: Served, small: Small) -> None:
    import base64

    client = served.services.triton()
    size = small.images[:1].nbytes
    with pytest.raises(triton.InferenceServerException):
        client.register_cuda_shared_memory("bad", base64.b64encode(bytes(range(64))), 0, size)
        client.infer("quick", [shared_request(small.name, small.images[:1].shape, "bad", size)])
    client.unregister_cuda_shared_memory()
    assert len(served.services.client.infer("quick", small.images[:2]).only()) == 2


@pytest.mark.parametrize("library", ["cupy", "torch", "pycuda"])
def test_device_arrays_through_the_sdk(gpu: Machine, served: Served, small: Small, right: Any, library: str) -> None:
    client = served.services.client
    for size in (1, 5, 16):
        images = np.ascontiguousarray(small.images[:size])
        array = _on_device(library, images)
        found = client.infer("quick", {small.name: array}).only()
        assert worst_row(np.asarray(found), right, range(size)) < OWN_ANSWER
    if library == "pycuda":
        return
    # A part of a larger allocation, as pools hand them out; the answer goes to another part.
    whole, room = _on_device(library, small.images), _on_device(library, np.zeros_like(right))
    output = served.quick.outputs[0].name
    for rows in (slice(20, 30), slice(3, 19)):
        client.infer("quick", {small.name: whole[rows]}, into={output: room[rows]})
        found = room[rows].get() if library == "cupy" else room[rows].cpu().numpy()
        assert worst_row(found, right, range(rows.start, rows.stop)) < OWN_ANSWER
    untouched = room[30:].get() if library == "cupy" else room[30:].cpu().numpy()
    assert not untouched.any()
    with pytest.raises(InvalidArgumentError):
        client.infer("quick", {small.name: whole[:4, :2]})


def _on_device(library: str, images: Any) -> Any:
    if library == "cupy":
        cupy = pytest.importorskip("cupy")
        array = cupy.asarray(images)
        cupy.cuda.get_current_stream().synchronize()
        return array
    if library == "torch":
        torch = pytest.importorskip("torch")
        array = torch.from_numpy(images).to("cuda:0")
        torch.cuda.synchronize()
        return array
    pytest.importorskip("pycuda")
    pytest.importorskip("pycuda.autoprimaryctx")
    return pytest.importorskip("pycuda.gpuarray").to_gpu(images)


def test_layers_are_shown_with_their_times(gpu: Machine, served: Served, notes: Notes) -> None:
    shown = command(served.services, "engines", "show", served.int8.id, "--layers")
    print(shown)
    notes.add("engines show --layers", shown.splitlines()[:24])
    assert all(word in shown for word in ("LAYER", "MS", "SHARE", "%")), shown
    inspector = json.loads(command(served.services, "engines", "show", served.int8.id, "--layers", "--json"))[
        "inspector"
    ]
    assert sum(layer.get("milliseconds", 0) for layer in inspector["layers"]) > 0
    products = [layer for layer in inspector["layers"] if "Convolution" in layer.get("type", "")]
    assert products and {layer.get("precision") for layer in products} == {"INT8"}


def test_the_command_line_reads_the_engine(machine: Machine, served: Served) -> None:
    listed = json.loads(command(served.services, "engines", "list", "--json"))
    assert {engine["id"] for engine in listed} >= {served.quick.id, served.int8.id}
    shown = command(served.services, "engines", "show", served.quick.id)
    assert served.quick.device.product in shown and machine.backend in shown


def test_another_profile_reuses_the_calibration_and_the_timing_cache(
    machine: Machine, served: Served, notes: Notes
) -> None:
    client = served.services.client
    verification = VerificationSpec(synthetic=DATA, minimum_sqnr_db=LEAST_SQNR_DB["INT8"])
    target = Target(machine.backend, "INT8", BatchProfile(1, 4, 8))
    again = client.optimize("small", [target], calibration=Calibration(synthetic=DATA), verification=verification)
    (engine,) = again.result(timeout=500)
    records = {record["name"]: record for record in client.engines.manifest(engine)["stages"]}
    before = {record["name"]: record for record in client.engines.manifest(served.int8)["stages"]}
    assert engine.id != served.int8.id and engine.calibration_digest == served.int8.calibration_digest
    assert records["calibrate"] == before["calibrate"]
    states = {stage.name: stage.state for stage in again.metadata().stages}
    notes.add("stages of a second profile", states)
    assert states["calibrate"] == "reused", states
    built = [build_of(client.engines.manifest(kept)) for kept in (served.int8, engine)]
    notes.add("build seconds of two profiles", [result.get("seconds") for result in built])
    if machine.gpu:
        # The second build began with what the first had measured, and added its own shapes.
        sizes = [result["timing_cache_bytes"] for result in built]
        notes.add("timing cache bytes of two profiles", sizes)
        assert sizes[1] >= sizes[0] > 0


def build_of(manifest: dict[str, Any]) -> dict[str, Any]:
    """What the build stage said."""
    (result,) = (record["result"] for record in manifest["stages"] if record["name"].startswith("build"))
    return dict(result)


def test_a_load_beyond_the_memory_says_what_it_needs(
    gpu: Machine, served: Served, large_model: Path, small: Small, right: Any, notes: Notes
) -> None:
    client = served.services.client
    model = client.models.upload(large_model.parent / "source" / "model.onnx", "large")
    (engine,) = client.optimize(model, [Target("tensorrt", "FP32", PROFILE)]).result(timeout=500)
    with taken(leaving=300 << 20):
        with pytest.raises(EnginehouseError) as refused:
            client.load("large", engine, timeout=120)
        notes.add("out of memory at load, as the SDK says it", [refused.value.reason, refused.value.message])
        assert "RESOURCE_EXHAUSTED" in refused.value.reason + refused.value.message or "memory" in refused.value.message
        assert "free" in refused.value.message
        assert worst_row(client.infer("quick", small.images[:4]).only(), right, range(4)) < OWN_ANSWER
        client.unload("large", wait=False)
