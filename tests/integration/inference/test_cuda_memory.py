"""CUDA shared memory through unmodified tritonclient, and workers that lose their device, which is made of files."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from device_world import DeviceWorld, FileArray, FileDriver, handle, in_region, into_region
from file_worker import LOSE, WAIT
from inference_world import Server, floats, load, tensor, wait_for
from tritonclient.utils import InferenceServerException, shared_memory

from enginehouse import AsyncClient, Client
from enginehouse.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError


def refused(code: str, *words: str) -> Any:
    """Expects a status and words in its message."""
    pattern = "".join(f"(?=.*{word})" for word in words)
    return pytest.raises(InferenceServerException, match=rf"(?s)\[StatusCode\.{code}\]{pattern}")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DeviceWorld]:
    """A world for tests that cost no worker its life."""
    running: list[Server] = []

    def start(**settings: str) -> Server:
        running.append(Server(tmp_path_factory.mktemp("server"), **settings))
        return running[-1]

    with pytest.MonkeyPatch.context() as patch:
        yield DeviceWorld(tmp_path_factory.mktemp("world"), start, patch)
    for server in running:
        server.kill()


@pytest.fixture
def world(shared: DeviceWorld) -> Iterator[DeviceWorld]:
    yield shared
    shared.go()
    shared.client.unregister_cuda_shared_memory()
    shared.client.unregister_system_shared_memory()
    for path in shared.memory.iterdir():
        path.unlink()


@pytest.fixture
def start_world(
    tmp_path: Path, start_server: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., DeviceWorld]:
    return lambda **settings: DeviceWorld(tmp_path, start_server, monkeypatch, **settings)


def waiting(rows: int = 1) -> Any:
    return np.full((rows, 4), WAIT, np.float32)


def test_inputs_and_outputs_stay_on_the_device(world: DeviceWorld) -> None:
    sent = floats(3)
    world.register("in")
    world.register("out", 512)
    world.write("in", sent, offset=64)
    status = world.client.get_cuda_shared_memory_status().regions
    assert {n: (r.name, r.device_id, r.byte_size) for n, r in status.items()} == {
        "in": ("in", 0, 1024),
        "out": ("out", 0, 512),
    }
    for _ in range(2):
        result = world.client.infer(
            "one",
            [in_region("in", 3, offset=64)],
            outputs=[triton.InferRequestedOutput("z"), into_region("y", "out", 100, offset=32)],
        )
        np.testing.assert_array_equal(world.read("out", (3, 4), offset=32), 2 * sent)
        np.testing.assert_array_equal(result.as_numpy("z"), -sent)
        response = result.get_response()
        # perf_analyzer crashes without an empty entry for an output in shared memory.
        assert [len(content) for content in response.raw_output_contents] == [48, 0]
        parameters = response.outputs[1].parameters
        assert parameters["shared_memory_region"].string_param == "out"
        assert parameters["shared_memory_byte_size"].int64_param == 48
        assert parameters["shared_memory_offset"].int64_param == 32
    assert world.done() == ["open in", "open out", "infer 3", "infer 3"]
    # What is on the device and what is on the host go together.
    world.client.infer("two", [tensor("x", sent + 1, "FP32")], outputs=[into_region("z", "out", 48)])
    np.testing.assert_array_equal(world.read("out", (3, 4)), -(sent + 1))
    host = shared_memory.create_shared_memory_region("host", "/enginehouse-test-host", 64)
    try:
        world.client.register_system_shared_memory("host", "/enginehouse-test-host", 64)
        world.client.infer("one", [in_region("in", 3, offset=64)], outputs=[into_region("y", "host", 48)])
        np.testing.assert_array_equal(shared_memory.get_contents_as_numpy(host, np.float32, [3, 4]), 2 * sent)
        assert set(world.client.get_system_shared_memory_status().regions) == {"host"}
        with refused("NOT_FOUND", "CUDA shared memory region 'host'"):
            world.client.get_cuda_shared_memory_status("host")
    finally:
        shared_memory.destroy_shared_memory_region(host)


def test_a_stream_uses_device_memory(world: DeviceWorld) -> None:
    world.register("in")
    world.register("out")
    world.write("in", floats(2))
    answers: list[Any] = []
    world.client.start_stream(lambda result, error: answers.append((result, error)))
    world.client.async_stream_infer("one", [in_region("in", 2)], outputs=[into_region("y", "out", 32)])
    wait_for(lambda: answers)
    world.client.stop_stream()
    assert answers[0][1] is None
    np.testing.assert_array_equal(world.read("out", (2, 4)), 2 * floats(2))


def test_what_cannot_be_is_refused_before_the_worker_sees_it(world: DeviceWorld) -> None:
    infer, register = world.client.infer, world.client.register_cuda_shared_memory
    world.register("in")
    with refused("ALREADY_EXISTS", "'in'"):
        register("in", base64.b64encode(handle("in")), 0, 1024)
    with refused("INVALID_ARGUMENT", "raw_handle has 3 bytes", "64"):
        register("short", base64.b64encode(b"abc"), 0, 1024)
    with refused("INVALID_ARGUMENT", "'none'", "cannot be opened", "no device memory"):
        register("none", base64.b64encode(handle("none")), 0, 1024)
    with refused("NOT_FOUND", "'none'"):  # a registration that failed left nothing
        infer("one", [in_region("none", 1)])
    with refused("INVALID_ARGUMENT", "'x'", "from 1016 on", "1024"):
        infer("one", [in_region("in", 1, offset=1016)])
    x = triton.InferInput("x", [2, 4], "FP32")
    x.set_shared_memory("in", 16)
    with refused("INVALID_ARGUMENT", "16 bytes", "expected 32"):
        infer("one", [x])
    with refused("INVALID_ARGUMENT", "'y'", "has 32 bytes", "names 31"):
        infer("one", [in_region("in", 2)], outputs=[into_region("y", "in", 31)])
    with refused("INVALID_ARGUMENT", "'y'", "from 1000 on"):
        infer("one", [in_region("in", 2)], outputs=[into_region("y", "in", 32, offset=1000)])
    classes = into_region("y", "in", 500)
    classes._get_tensor().parameters["classification"].int64_param = 2  # tritonclient itself refuses it
    with refused("INVALID_ARGUMENT", "classification", "CUDA"):
        infer("one", [in_region("in", 2)], outputs=[classes])
    with refused("INVALID_ARGUMENT", "9 rows", "at most 8", "not split"):
        infer("one", [in_region("in", 9)])
    assert world.done() == ["open in"]
    # Sent with the request, as many rows as one likes.
    assert infer("one", [tensor("x", floats(9), "FP32")]).as_numpy("y").shape == (9, 4)


def test_requests_on_the_device_share_no_batch(world: DeviceWorld) -> None:
    load(world.client, world.engines, "device", "slow", options={}, max_queue_delay_us=200_000)
    world.register("in")
    world.write("in", floats(2))

    async def burst() -> None:
        async with triton_aio.InferenceServerClient(world.server.address) as client:
            first = asyncio.create_task(client.infer("slow", [tensor("x", waiting(8), "FP32")]))
            while "infer 8" not in world.done():
                await asyncio.sleep(0.005)
            calls = [client.infer("slow", [in_region("in", 2)]) for _ in range(3)]
            calls += [client.infer("slow", [tensor("x", floats(1), "FP32")]) for _ in range(4)]
            late = [client.infer("slow", [in_region("in", 5)], client_timeout=0.1)]
            answers = asyncio.gather(*calls, *late, return_exceptions=True)
            left = asyncio.create_task(client.infer("slow", [in_region("in", 7)]))
            await asyncio.sleep(0.3)
            left.cancel()
            await asyncio.sleep(0.1)
            world.go()
            *_, error = await answers
            assert "DEADLINE_EXCEEDED" in str(error)
            await first

    asyncio.run(burst())
    rows = sorted(line for line in world.done() if line.startswith("infer"))
    assert rows == ["infer 2", "infer 2", "infer 2", "infer 4", "infer 8"]
    world.client.unload_model("slow")


def test_a_region_is_closed_when_nobody_uses_it(world: DeviceWorld) -> None:
    world.register("in")
    world.client.unregister_cuda_shared_memory("in")
    assert world.done() == ["open in", "close"]
    with refused("NOT_FOUND", "'in'"):
        world.client.infer("one", [in_region("in", 1)])
    # In use: one request runs, one waits in the queue.
    world.register("in")
    world.write("in", waiting())
    answers: list[Any] = []
    for _ in range(2):
        world.client.async_infer(
            "one", [in_region("in", 1)], callback=lambda result, error: answers.append((result, error))
        )
    wait_for(lambda: "infer 1" in world.done())
    wait_for(lambda: world.client.get_inference_statistics("one"))  # a turn of the server: the second has arrived
    world.client.unregister_cuda_shared_memory()
    assert not world.client.get_cuda_shared_memory_status().regions
    assert world.done()[2:] == ["open in", "infer 1"]
    world.go()
    wait_for(lambda: world.done()[-1] == "close")
    wait_for(lambda: len(answers) == 2)
    # The second either came before the end of the registration and was computed, or came after it.
    assert answers[0][1] is None
    assert world.done()[2:] in (["open in", "infer 1", "infer 1", "close"], ["open in", "infer 1", "close"])


def test_a_gpu_process_says_what_it_is_and_runs_cpu_engines_beside_it(world: DeviceWorld, models: Path) -> None:
    assert "cuda_shared_memory" in world.client.get_server_metadata().extensions
    config = world.client.get_model_config("one").config
    assert [(g.kind, list(g.gpus)) for g in config.instance_group] == [(1, [0])]  # KIND_GPU
    assert config.parameters["device_product"].string_value == "Files"
    usage = world.client.get_inference_statistics("one").model_stats[0].memory_usage
    assert {(u.type, u.byte_size) for u in usage} == {("CPU", 1 << 20), ("GPU", 3 << 20)}
    load(world.client, models, "double")
    assert world.client.get_model_config("double").config.instance_group[0].kind == 2  # KIND_CPU
    result = world.client.infer("double", [tensor("x", floats(1), "FP32")])
    np.testing.assert_array_equal(result.as_numpy("y"), 2 * floats(1))
    world.register("in")
    with refused("FAILED_PRECONDITION", "onnxruntime worker", "no CUDA shared memory"):
        world.client.infer("double", [in_region("in", 1)])
    world.client.unload_model("double")


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch, world: DeviceWorld) -> FileDriver:
    """The SDK's, in place of CUDA's."""
    driver = FileDriver(world)
    monkeypatch.setattr("enginehouse.client.device_memory.open_driver", lambda: driver)
    return driver


def test_the_sdk_takes_device_arrays(world: DeviceWorld, driver: FileDriver) -> None:
    a, b = driver.allocate("a"), driver.allocate("b")
    sent = floats(3)
    world.write("a", sent, offset=96)
    x, y = FileArray(a + 96, 3), FileArray(b + 512, 3)
    with Client(inference=world.server.address) as client:
        for _ in range(2):
            world.write("b", np.zeros(256, np.float32))
            result = client.infer("one", x, into={"y": y})
            assert result["y"] is y
            np.testing.assert_array_equal(world.read("b", (3, 4), offset=512), 2 * sent)
            np.testing.assert_array_equal(result["z"], -sent)
        assert set(client.infer("one", {"x": x}, outputs=["y"], into={"y": y})) == {"y"}
        assert set(client.infer("one", {"x": x}, outputs=["z"])) == {"z"}
        client.infer("one", sent, into={"z": FileArray(a, 3)})
        np.testing.assert_array_equal(world.read("a", (3, 4)), -sent)
        # Each allocation is registered once, and each array's stream is waited for.
        assert len(world.client.get_cuda_shared_memory_status().regions) == 2
        assert driver.waited == [7] * 8
        stream = [result["y"][0, 0] for result in client.infer_stream("one", [x, sent, x])]
        assert stream[1] == 0
        with pytest.raises(InvalidArgumentError, match=r"has shape .3, 4., and the device array .* .5, 4."):
            client.infer("one", x, into={"y": FileArray(b, 5)})
        with pytest.raises(InvalidArgumentError, match="into: output 'y' is ndarray"):
            client.infer("one", x, into={"y": sent})
        with pytest.raises(InvalidArgumentError, match="no output 'w'"):
            client.infer("one", x, into={"w": y})
    assert not world.client.get_cuda_shared_memory_status().regions
    assert world.done().count("close") == 2


def test_the_sdk_registers_again_with_a_server_that_forgot(world: DeviceWorld, driver: FileDriver) -> None:
    x = FileArray(driver.allocate("a"), 2)
    world.write("a", floats(2))
    with Client(inference=world.server.address) as client:
        y = FileArray(driver.allocate("c"), 2)
        client.infer("one", x, into={"y": y})
        world.client.unregister_cuda_shared_memory()
        assert client.infer("one", x, outputs=["y"], into={"y": y}).only() is y
        np.testing.assert_array_equal(world.read("c", (2, 4)), 2 * floats(2))
        world.client.unregister_cuda_shared_memory()
        with ThreadPoolExecutor(8) as pool:
            results = list(pool.map(lambda _: client.infer("one", x), range(16)))
        assert all((result["y"] == 2 * floats(2)).all() for result in results)
        with pytest.raises(NotFoundError, match="no model"):
            client.infer("none", x)
        b = driver.allocate("b")
        (world.memory / "b").unlink()
        with pytest.raises(InvalidArgumentError, match=r"input 'x'.*cannot use its device memory.*NumPy"):
            client.infer("one", FileArray(b, 2))


async def test_the_sdk_keeps_a_bounded_number_of_allocations(
    world: DeviceWorld, driver: FileDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("enginehouse.client.device_memory.KEEP", 2)
    arrays = [FileArray(driver.allocate(f"m{number}"), 1) for number in range(5)]
    async with AsyncClient(inference=world.server.address) as client:
        for _ in range(2):
            for array in arrays:
                await client.infer("one", array)
            assert len(world.client.get_cuda_shared_memory_status().regions) == 2
        # Those in use are kept, however many, and each is registered once.
        await asyncio.gather(*(client.infer("one", array) for array in arrays * 4))
        assert len(world.client.get_cuda_shared_memory_status().regions) == 2


def test_a_cpu_process_says_that_it_has_no_gpu(
    start_server: Callable[..., Server], world: DeviceWorld, driver: FileDriver, models: Path
) -> None:
    server = start_server()
    with refused("FAILED_PRECONDITION", "built for a GPU", "ENGINEHOUSE_DEVICE=cuda:0"):
        load(server.client(), world.engines, "device", "foreign", options={})
    load(server.client(), models, "double")
    x = FileArray(driver.allocate("a"), 2)
    with (
        Client(inference=server.address) as client,
        pytest.raises(FailedPreconditionError, match=r"input 'x'.*no GPU in this process.*NumPy"),
    ):
        client.infer("double", x)


def test_a_lost_device_costs_its_worker_and_no_more(start_world: Callable[..., DeviceWorld], models: Path) -> None:
    world = start_world()
    client = world.client
    load(client, models, "double")
    others = {p.pid for p in world.server.workers()}
    world.register("in")
    world.register("gone")
    world.register("out")
    world.write("in", floats(2))
    client.infer("two", [in_region("in", 2)], outputs=[into_region("y", "out", 32)])
    world.write("out", np.zeros(8, np.float32))
    answers: list[Any] = []
    for model, array in (("one", waiting()), ("two", np.full((1, 4), LOSE, np.float32)), ("one", floats(1))):
        client.async_infer(
            model, [tensor("x", array, "FP32")], callback=lambda result, error: answers.append((result, error))
        )
        wait_for(lambda: "infer 1" in world.done())
    (world.memory / "gone").unlink()
    world.go()
    wait_for(lambda: len(answers) == 3)
    errors = [error for _, error in answers if error is not None]
    assert errors and all("UNAVAILABLE" in str(error) for error in errors)
    assert any("lost its device context" in str(e) and "a test said so" in str(e) for e in errors), errors
    # The port, the other device's worker and the registrations live on.
    assert client.is_server_ready() and client.is_model_ready("double")
    assert len(others & {p.pid for p in world.server.workers()}) == 1
    wait_for(lambda: client.is_model_ready("one") and client.is_model_ready("two"))
    client.infer("two", [in_region("in", 2)], outputs=[into_region("y", "out", 32)])
    np.testing.assert_array_equal(world.read("out", (2, 4)), 2 * floats(2))
    assert set(client.get_cuda_shared_memory_status().regions) == {"in", "gone", "out"}
    with refused("INVALID_ARGUMENT", "'gone'", "cannot be opened"):
        client.infer("two", [in_region("gone", 2)])
    assert "device context lost" in world.server.log()
    # Nothing hangs, however the next one falls into its end.
    with pytest.raises(InferenceServerException, match="lost its device context"):
        client.infer("two", [tensor("x", np.full((1, 4), LOSE, np.float32), "FP32")], client_timeout=30)
    with pytest.raises(InferenceServerException, match="UNAVAILABLE"):
        client.infer("one", [tensor("x", floats(1), "FP32")], client_timeout=30)
    wait_for(lambda: client.is_model_ready("one"))
    # "one" ran beside the first crash and is innocent.
    assert client.infer("one", [tensor("x", floats(1), "FP32")]).as_numpy("y").shape == (1, 4)
    assert world.server.stop() == 0
