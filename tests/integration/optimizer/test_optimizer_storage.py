"""Blobs, models, datasets and serving configurations over gRPC."""

from __future__ import annotations

import os
import queue
import threading
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
from optimizer_process import FP32, PARENT, OptimizerProcess, chunks, error_of, npz, zip_of

from enginehouse.artifacts import digest_bytes
from enginehouse.errors import (
    AbortedError,
    AlreadyExistsError,
    DataLossError,
    EnginehouseError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    OutOfRangeError,
)
from enginehouse.v1 import blobs_pb2, engines_pb2, models_pb2, serving_pb2


def find(optimizer: OptimizerProcess, digest: str, parent: str = PARENT) -> blobs_pb2.FindBlobResponse:
    answer: blobs_pb2.FindBlobResponse = optimizer.blobs.FindBlob(
        blobs_pb2.FindBlobRequest(parent=parent, digest=digest)
    )
    return answer


def test_a_blob_comes_back(optimizer: OptimizerProcess) -> None:
    data = os.urandom((2 << 20) + 5)
    digest = optimizer.upload(data)
    assert optimizer.download(digest) == data
    assert optimizer.download(digest, offset=1_500_000) == data[1_500_000:]
    assert optimizer.download(digest, offset=len(data)) == b""
    assert optimizer.upload(data) == digest, "again is no error"
    assert find(optimizer, digest) == blobs_pb2.FindBlobResponse(complete=True, committed_bytes=len(data))
    for offset in (-1, len(data) + 1):
        request = blobs_pb2.ReadBlobRequest(parent=PARENT, digest=digest, offset=offset)
        assert isinstance(error_of(optimizer.blobs.ReadBlob, request), OutOfRangeError)


def test_an_empty_blob(optimizer: OptimizerProcess) -> None:
    assert optimizer.download(optimizer.upload(b"")) == b""


def test_an_upload_resumes(optimizer: OptimizerProcess) -> None:
    data = os.urandom(3_000_000)
    digest = digest_bytes(data)
    answer = optimizer.blobs.WriteBlob(chunks(data[:1_200_000], digest=digest, size=len(data)))
    assert answer == blobs_pb2.WriteBlobResponse(committed_bytes=1_200_000, complete=False)
    assert find(optimizer, digest) == blobs_pb2.FindBlobResponse(complete=False, committed_bytes=1_200_000)
    wrong = error_of(optimizer.blobs.WriteBlob, chunks(data, digest=digest))
    assert isinstance(wrong, OutOfRangeError) and wrong.details["committed_bytes"] == "1200000"
    assert optimizer.blobs.WriteBlob(chunks(data, digest=digest, offset=1_200_000)).complete
    assert optimizer.download(digest) == data


def test_a_wrong_digest_drops_the_upload(optimizer: OptimizerProcess) -> None:
    digest = digest_bytes(os.urandom(8))
    assert isinstance(error_of(optimizer.blobs.WriteBlob, chunks(b"other bytes", digest=digest)), DataLossError)
    assert find(optimizer, digest) == blobs_pb2.FindBlobResponse()


def test_a_damaged_chunk_keeps_what_came_before(optimizer: OptimizerProcess) -> None:
    data = os.urandom(3000)
    digest = digest_bytes(data)
    messages = list(chunks(data, digest=digest, piece=1000))
    messages[1].crc32 ^= 1
    assert isinstance(error_of(optimizer.blobs.WriteBlob, iter(messages)), DataLossError)
    assert find(optimizer, digest).committed_bytes == 1000
    assert optimizer.blobs.WriteBlob(chunks(data, digest=digest, offset=1000)).complete


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [blobs_pb2.WriteBlobRequest(parent="projects/x/y", digest=digest_bytes(b""))],
        [blobs_pb2.WriteBlobRequest(parent=PARENT, digest="sha256:zz")],
        [blobs_pb2.WriteBlobRequest(parent=PARENT, digest=digest_bytes(b"1"), size_bytes=9 << 20)],
        [blobs_pb2.WriteBlobRequest(parent=PARENT, digest=digest_bytes(b"2"), size_bytes=-1)],
        [blobs_pb2.WriteBlobRequest(parent=PARENT, digest=digest_bytes(b"3"), size_bytes=1, data=b"12")],
        list(chunks(b"4" * ((1 << 20) + 1), digest=digest_bytes(b"4"), piece=2 << 20)),
    ],
)
def test_uploads_that_are_refused(optimizer: OptimizerProcess, messages: list[Any]) -> None:
    assert isinstance(error_of(optimizer.blobs.WriteBlob, iter(messages)), InvalidArgumentError)


def test_projects_do_not_see_each_other(optimizer: OptimizerProcess) -> None:
    data = b"secret" + os.urandom(8)
    digest = optimizer.upload(data, parent="projects/one")
    assert not find(optimizer, digest, "projects/two").complete
    request = blobs_pb2.ReadBlobRequest(parent="projects/two", digest=digest)
    assert isinstance(error_of(optimizer.blobs.ReadBlob, request), NotFoundError)


def zoo(architecture: str, seed: int = 0) -> models_pb2.Model:
    source = models_pb2.ZooSource(architecture=architecture, seed=seed)
    return models_pb2.Model(format=models_pb2.MODEL_FORMAT_ZOO, zoo=source)


def create(optimizer: OptimizerProcess, model: models_pb2.Model, **fields: Any) -> models_pb2.Model:
    request = models_pb2.CreateModelRequest(**{"parent": PARENT, "model_id": "m", "model": model, **fields})
    answer: models_pb2.Model = optimizer.models.CreateModel(request)
    return answer


def test_models_by_name(optimizer: OptimizerProcess) -> None:
    parent = "projects/models-test"
    made = [create(optimizer, zoo("vgg16", n), parent=parent, model_id=f"m{n}") for n in range(5)]
    assert made[0].name == f"{parent}/models/m0"
    assert len({model.digest for model in made}) == 5
    got = optimizer.models.GetModel(models_pb2.GetModelRequest(name=made[3].name))
    assert got == made[3]
    names, token = [], ""
    while True:
        page = optimizer.models.ListModels(models_pb2.ListModelsRequest(parent=parent, page_size=2, page_token=token))
        names += [model.name for model in page.models]
        token = page.next_page_token
        if not token:
            break
    assert names == [model.name for model in made]
    optimizer.models.DeleteModel(models_pb2.DeleteModelRequest(name=made[0].name))
    gone = error_of(optimizer.models.GetModel, models_pb2.GetModelRequest(name=made[0].name))
    assert isinstance(gone, NotFoundError)


def test_the_same_name_again(optimizer: OptimizerProcess) -> None:
    parent = "projects/replace-test"
    first = create(optimizer, zoo("vgg16"), parent=parent)
    assert create(optimizer, zoo("vgg16"), parent=parent) == first
    request = models_pb2.CreateModelRequest(parent=parent, model_id="m", model=zoo("vgg19"))
    assert isinstance(error_of(optimizer.models.CreateModel, request), AlreadyExistsError)
    second = create(optimizer, zoo("vgg19"), parent=parent, allow_replace=True)
    assert second.digest != first.digest


KERAS = models_pb2.MODEL_FORMAT_KERAS


@pytest.mark.parametrize(
    ("model", "kind", "words"),
    [
        (zoo("resnet50"), InvalidArgumentError, "resnet_v1_50"),
        (zoo("vgg16", -1), InvalidArgumentError, "seed"),
        (models_pb2.Model(format=models_pb2.MODEL_FORMAT_ZOO), InvalidArgumentError, "zoo"),
        (models_pb2.Model(), InvalidArgumentError, "format"),
        (models_pb2.Model(format=KERAS), InvalidArgumentError, "blob"),
        (models_pb2.Model(format=KERAS, blob="sha256:1"), InvalidArgumentError, "digest"),
        (models_pb2.Model(format=KERAS, blob=digest_bytes(b"nobody")), FailedPreconditionError, "upload it"),
        (models_pb2.Model(format=KERAS, zoo=models_pb2.ZooSource()), InvalidArgumentError, "blob"),
    ],
)
def test_models_that_are_refused(
    optimizer: OptimizerProcess, model: models_pb2.Model, kind: type[EnginehouseError], words: str
) -> None:
    request = models_pb2.CreateModelRequest(parent=PARENT, model_id="m", model=model)
    error = error_of(optimizer.models.CreateModel, request)
    assert isinstance(error, kind) and words in error.message


def test_a_file_of_another_format(optimizer: OptimizerProcess) -> None:
    model = models_pb2.Model(format=KERAS, blob=optimizer.upload(b"\x89HDF\r\n\x1a\n..."))
    request = models_pb2.CreateModelRequest(parent=PARENT, model_id="m", model=model)
    assert "not a .keras archive" in error_of(optimizer.models.CreateModel, request).message


def test_datasets_are_looked_into(optimizer: OptimizerProcess) -> None:
    dataset = optimizer.dataset(npz(x=np.zeros((7, 3), np.float32), labels=np.arange(7)))
    assert (dataset.samples, dataset.labelled) == (7, True)
    dataset = optimizer.dataset(npz(x=np.zeros((3, 3), np.float32)))
    assert (dataset.samples, dataset.labelled) == (3, False)
    assert optimizer.models.GetDataset(models_pb2.GetDatasetRequest(name=dataset.name)) == dataset


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"not a zip", "no .npz"),
        (zip_of(), "0 files"),
        (zip_of(readme=b"hello"), "no array"),
        (zip_of(**{"x.npy": b"\x93NUMPY\x01\x00\xff\xff"}), "header"),
        (zip_of(**{"x.npy": b"\x93NUMPY\x01\x00\x10\x00__import__('os')"}), "header"),
        (npz(x=np.array([{"a": 1}], dtype=object)), "Python objects"),
        (npz(x=np.zeros((2, 3)), y=np.zeros((3, 3))), "different numbers"),
        (npz(x=np.zeros((0, 3))), "no samples"),
        (npz(x=np.float32(1)), "single number"),
        (npz(labels=np.arange(3)), "no input"),
        (npz(x=np.zeros((2, 3)), labels=np.zeros(2)), "integer"),
    ],
)
def test_datasets_that_are_refused(optimizer: OptimizerProcess, data: bytes, words: str) -> None:
    digest = optimizer.upload(data)
    request = models_pb2.CreateDatasetRequest(parent=PARENT, dataset_id="d", dataset=models_pb2.Dataset(blob=digest))
    error = error_of(optimizer.models.CreateDataset, request)
    assert isinstance(error, InvalidArgumentError) and words in error.message, error


@pytest.fixture(scope="module")
def engine(optimizer: OptimizerProcess) -> engines_pb2.Engine:
    return optimizer.result(optimizer.optimize(optimizer.model(), FP32))[0]


def config(engine: str, name: str = "", **fields: Any) -> serving_pb2.ServingConfig:
    name = name or f"c-{uuid4().hex[:8]}"
    versions = [serving_pb2.ServedVersion(version=1, engine=engine)]
    return serving_pb2.ServingConfig(**{"name": f"{PARENT}/servingConfigs/{name}", "versions": versions, **fields})


def update(optimizer: OptimizerProcess, config: serving_pb2.ServingConfig, allow: bool = True) -> Any:
    request = serving_pb2.UpdateServingConfigRequest(serving_config=config, allow_missing=allow)
    return optimizer.serving.UpdateServingConfig(request)


def test_a_configuration_has_etags_and_generations(optimizer: OptimizerProcess, engine: engines_pb2.Engine) -> None:
    wanted = config(engine.name, instances=2)
    missing = error_of(update, optimizer, wanted, allow=False)
    assert isinstance(missing, NotFoundError)
    first = update(optimizer, wanted)
    assert (first.generation, first.instances) == (1, 2)
    first.instances = 3
    second = update(optimizer, first)
    assert second.generation == 2 and second.etag != first.etag
    assert isinstance(error_of(update, optimizer, first), AbortedError)
    second.ClearField("etag")
    assert update(optimizer, second).generation == 3, "without an etag the last writer wins"
    get = serving_pb2.GetServingConfigRequest(name=wanted.name)
    assert optimizer.serving.GetServingConfig(get).generation == 3
    optimizer.serving.DeleteServingConfig(serving_pb2.DeleteServingConfigRequest(name=wanted.name))
    assert isinstance(error_of(optimizer.serving.GetServingConfig, get), NotFoundError)


def test_an_engine_that_is_served_stays(optimizer: OptimizerProcess) -> None:
    engine = optimizer.result(optimizer.optimize(optimizer.model(), FP32))[0]
    wanted = update(optimizer, config(engine.name))
    delete = engines_pb2.DeleteEngineRequest(name=engine.name)
    error = error_of(optimizer.engines.DeleteEngine, delete)
    assert isinstance(error, FailedPreconditionError) and wanted.name.rsplit("/", 1)[1] in error.message
    optimizer.serving.DeleteServingConfig(serving_pb2.DeleteServingConfigRequest(name=wanted.name))
    optimizer.engines.DeleteEngine(delete)
    assert isinstance(error_of(optimizer.engines.DeleteEngine, delete), NotFoundError)


@pytest.mark.parametrize(
    ("fields", "kind", "words"),
    [
        ({"versions": []}, InvalidArgumentError, "no versions"),
        ({"versions": [serving_pb2.ServedVersion(version=0, engine="{engine}")]}, InvalidArgumentError, "from 1 to"),
        (
            {"versions": [serving_pb2.ServedVersion(version=1, engine=f"{PARENT}/engines/none")]},
            FailedPreconditionError,
            "does not exist",
        ),
        (
            {"versions": [serving_pb2.ServedVersion(version=1, engine="projects/other/engines/none")]},
            InvalidArgumentError,
            "another project",
        ),
        ({"instances": 1000}, InvalidArgumentError, "instances"),
        ({"latest_versions": -1}, InvalidArgumentError, "latest_versions"),
        ({"batching": {"max_batch_size": 65}}, InvalidArgumentError, "max_batch_size"),
        ({"batching": {"preferred_batch_sizes": [0]}}, InvalidArgumentError, "preferred"),
        ({"batching": {"max_queue_delay": {"seconds": -1}}}, InvalidArgumentError, "max_queue_delay"),
        ({"batching": {"queue_timeout": {}}}, InvalidArgumentError, "queue_timeout"),
        ({"batching": {"priority_levels": 101}}, InvalidArgumentError, "priority_levels is 101"),
        ({"batching": {"default_priority_level": 1}}, InvalidArgumentError, "default_priority_level is 1"),
        ({"batching": {"priority_queues": [{"priority_level": 1}]}}, InvalidArgumentError, "without batching.priority"),
        (
            {"batching": {"priority_levels": 2, "priority_queues": [{"priority_level": 3}]}},
            InvalidArgumentError,
            "priority_level is 3",
        ),
        (
            {"batching": {"priority_levels": 2, "priority_queues": [{"priority_level": 2}] * 2}},
            InvalidArgumentError,
            "priority_level 2 twice",
        ),
        ({"batching": {"timeout_action": 7}}, InvalidArgumentError, "timeout_action is 7"),
        ({"batching": {"device_share": -1}}, InvalidArgumentError, "device_share"),
        ({"batching": {"response_cache_bytes": -1}}, InvalidArgumentError, "response_cache_bytes"),
        ({"warmup_batch_sizes": [65]}, InvalidArgumentError, "warmup"),
        ({"name": f"{PARENT}/servingConfigs/UPPER"}, InvalidArgumentError, "UPPER"),
    ],
)
def test_configurations_that_are_refused(
    optimizer: OptimizerProcess,
    engine: engines_pb2.Engine,
    fields: dict[str, Any],
    kind: type[EnginehouseError],
    words: str,
) -> None:
    error = error_of(update, optimizer, config(engine.name, **fields))
    assert isinstance(error, kind) and words in error.message, error


def test_watching_the_desired_state(optimizer: OptimizerProcess, engine: engines_pb2.Engine) -> None:
    stream = optimizer.serving.WatchServingConfigs(serving_pb2.WatchServingConfigsRequest(parent=PARENT))
    states: queue.Queue[serving_pb2.WatchServingConfigsResponse] = queue.Queue()

    def read() -> None:
        try:
            for state in stream:
                states.put(state)
        except Exception:
            pass

    threading.Thread(target=read, daemon=True).start()
    first = states.get(timeout=5)
    made = update(optimizer, config(engine.name))
    second = states.get(timeout=5)
    assert made.name in [c.name for c in second.serving_configs]
    assert second.revision == first.revision + 1
    optimizer.serving.DeleteServingConfig(serving_pb2.DeleteServingConfigRequest(name=made.name))
    third = states.get(timeout=5)
    assert made.name not in [c.name for c in third.serving_configs]
    assert third.revision == second.revision + 1
    stream.cancel()
