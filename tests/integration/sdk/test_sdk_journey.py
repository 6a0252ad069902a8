"""The SDK through real services: upload, optimize, load, infer, measure, and what goes wrong on the way."""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from enginehouse import (
    AsyncClient,
    Batching,
    BatchProfile,
    Calibration,
    Client,
    Engine,
    Synthetic,
    Target,
    VerificationSpec,
)
from enginehouse.client.blobs import digest_of
from enginehouse.errors import (
    CancelledError,
    EnginehouseError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
)

pytestmark = [pytest.mark.slow, pytest.mark.tensorflow]

PROFILE = BatchProfile(1, 4, 8)


@pytest.fixture(scope="module")
def engines(client: Client, tiny: Path) -> list[Engine]:
    model = client.models.upload(tiny)
    images = np.random.default_rng(0).standard_normal((12, 8, 8, 1)).astype(np.float32)
    dataset = client.datasets.upload({"images": images}, "samples")
    assert dataset.samples == 12 and not dataset.labelled
    job = client.optimize(
        model,
        [Target("onnxruntime", "fp32", PROFILE), Target("onnxruntime", "int8", PROFILE)],
        calibration=Calibration("max", dataset=dataset),
        verification=VerificationSpec(dataset=dataset, minimum_sqnr_db=1.0),
    )
    sequences = [event.sequence for event in job.events()]
    assert sequences == list(range(1, len(sequences) + 1))
    view = job.metadata()
    assert view.done and all(stage.state in ("succeeded", "reused") for stage in view.stages)
    assert job.log(view.stages[0].name) is not None
    return job.result()


def test_engines_say_what_they_are(client: Client, engines: list[Engine]) -> None:
    fp32, int8 = engines
    assert (fp32.precision, int8.precision) == ("fp32", "int8")
    assert fp32.inputs[0].shape == (-1, 8, 8, 1) and fp32.batched and fp32.max_batch_size == 8
    assert int8.verification is not None and int8.verification.sqnr_db is not None and int8.verification.sqnr_db > 1
    assert int8.calibration_digest and not fp32.calibration_digest
    assert client.engines.get(fp32.id) == fp32
    assert {e.name for e in client.engines.list(model="tiny")} == {fp32.name, int8.name}
    assert client.engines.list(precision="fp16") == []
    assert client.engines.manifest(int8)


def test_the_same_again_is_reused(client: Client, engines: list[Engine]) -> None:
    verification = VerificationSpec(dataset="samples", minimum_sqnr_db=1.0)
    job = client.optimize("tiny", [Target("onnxruntime", "fp32", PROFILE)], verification=verification)
    assert job.result(60) == [engines[0]]
    assert job.id in [view.id for view in client.jobs.list("done=true")]


def test_engines_download_whole(client: Client, engines: list[Engine], tmp_path: Path) -> None:
    path = client.engines.download(engines[0], tmp_path / "engine")
    for file in engines[0].files:
        assert digest_of(path / file.path) == file.digest


def test_load_infer_unload(client: Client, engines: list[Engine]) -> None:
    fp32, int8 = engines
    config = client.load("tiny", fp32, instances=2, batching=Batching(max_queue_delay_seconds=0.002))
    assert [v.version for v in config.served] == [1]
    assert client.load("tiny", fp32).generation == config.generation
    signature = client.model_metadata("tiny")
    assert signature.inputs[0].name == fp32.inputs[0].name
    x = np.random.default_rng(1).standard_normal((8, 8, 8, 1)).astype(np.float32)
    whole = client.infer("tiny", x).only()
    assert whole.shape == (8, 10)
    with ThreadPoolExecutor(8) as pool:
        single = list(pool.map(lambda n: client.infer("tiny", x[n : n + 1]).only()[0], range(8)))
    np.testing.assert_allclose(np.stack(single), whole, rtol=1e-4, atol=1e-5)
    streamed = [result.only()[0] for result in client.infer_stream("tiny", (x[n : n + 1] for n in range(8)))]
    np.testing.assert_allclose(np.stack(streamed), whole, rtol=1e-4, atol=1e-5)
    # The next version, in another precision, takes over.
    assert client.load("tiny", int8).served[0].version == 2
    result = client.infer("tiny", x)
    assert result.model_version == "2" and not np.array_equal(result.only(), whole)
    with pytest.raises(FailedPreconditionError, match="tiny"):
        client.engines.delete(int8)
    with pytest.raises(InvalidArgumentError, match="add the batch dimension"):
        client.infer("tiny", x[0])
    with pytest.raises(InvalidArgumentError):
        client.infer("tiny", x, outputs=["nothing"])
    # The engine takes 8 at most; a larger request is served in parts.
    assert client.infer("tiny", np.concatenate([x, x])).only().shape == (16, 10)
    client.unload("tiny")
    assert not client.model_ready("tiny")
    with pytest.raises(EnginehouseError):
        client.infer("tiny", x)


def test_a_stream_reports_a_bad_request(client: Client, engines: list[Engine]) -> None:
    client.load("streamed", engines[0])
    x = np.zeros((1, 8, 8, 1), np.float32)
    with pytest.raises(EnginehouseError, match="nothing"):
        next(client.infer_stream("streamed", [x, x], outputs=["nothing"]))
    with pytest.raises(InvalidArgumentError, match="takes shape"):
        list(client.infer_stream("streamed", [x, x[:, 0]]))
    client.unload("streamed")


def test_an_engine_that_is_not_there_is_said_at_once(client: Client) -> None:
    with pytest.raises(EnginehouseError, match="does not exist"):
        client.load("none", "no-such-engine")
    with pytest.raises(NotFoundError):
        client.serving.get("none")


def test_a_cancelled_job_says_so(client: Client) -> None:
    model = client.models.ensure_zoo("vgg16")
    job = client.optimize(model, [Target("onnxruntime", "fp32")])
    job.cancel()
    with pytest.raises(CancelledError):
        job.result(60)
    assert job.metadata().state == "cancelled"


def test_wrong_requests_are_refused(client: Client, tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="calibration"):
        client.optimize("tiny", [Target("onnxruntime", "int8")])
    with pytest.raises(InvalidArgumentError, match="backend"):
        client.optimize("tiny", [Target("nothing", "fp32")])
    with pytest.raises(NotFoundError):
        client.optimize("none", [Target("onnxruntime", "fp32")])
    other = tmp_path / "tiny.keras"
    other.write_bytes(tiny.read_bytes() + b" ")
    with pytest.raises(EnginehouseError):
        client.models.upload(other, "tiny")
    synthetic = Calibration(synthetic=Synthetic("sideways"))
    with pytest.raises(InvalidArgumentError):
        client.optimize("tiny", [Target("onnxruntime", "int8")], calibration=synthetic)


def test_large_uploads(client: Client, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    arrays = tmp_path / "large.npz"
    np.savez(arrays, x=np.frombuffer(os.urandom(20 << 20), np.uint8).reshape(20, -1))
    dataset = client.datasets.upload(arrays, progress=lambda done, total: seen.append((done, total)))
    assert dataset.samples == 20 and seen[-1][0] == seen[-1][1] == arrays.stat().st_size


def test_telemetry(client: Client) -> None:
    snapshot = client.telemetry.snapshot(fields=["host"])
    assert snapshot.host is not None and snapshot.host.memory_total_bytes
    stream = client.telemetry.stream(period=0.2)
    first, second = next(stream), next(stream)
    stream.close()
    assert second.sequence > first.sequence
    assert client.telemetry.history(limit=3)
    devices = client.telemetry.devices()
    assert len(devices) or devices.message


def test_the_asynchronous_client(stack: Path, engines: list[Engine]) -> None:
    async def go() -> None:
        async with AsyncClient.from_environment({"ENGINEHOUSE_HOME": str(stack)}) as client:
            assert all((await client.ready()).values())
            await client.load("async", engines[0])
            x = np.zeros((2, 8, 8, 1), np.float32)
            results = await asyncio.gather(*(client.infer("async", x) for _ in range(16)))
            assert all(result.only().shape == (2, 10) for result in results)
            await client.unload("async")

    asyncio.run(go())
