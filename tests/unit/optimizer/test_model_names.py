"""What a model's name stands for when it is created again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from enginehouse_optimizer.api.models import ModelsService
from enginehouse_optimizer.storage.blobs import ProjectBlobs
from enginehouse_optimizer.storage.database import Database
from enginehouse_optimizer.storage.jobs import Jobs
from enginehouse_optimizer.storage.resources import Resources

from enginehouse.errors import AlreadyExistsError
from enginehouse.v1 import models_pb2 as pb

P = "projects/p"
MEAN = pb.Preprocessing(mean=[1, 2, 3])


@pytest.fixture
def create(tmp_path: Path) -> Any:
    database = Database(":memory:")
    models = Resources(database, "models", pb.Model)
    datasets = Resources(database, "datasets", pb.Dataset)
    blobs = ProjectBlobs(tmp_path)
    service = ModelsService(models, datasets, blobs, Jobs(database))
    digest = blobs.of("p").put_bytes(b"no magic number, as a graph or an ONNX file")

    async def create(*, allow_replace: bool = False, **fields: Any) -> pb.Model:
        model = pb.Model(**{"blob": digest, "format": pb.MODEL_FORMAT_ONNX, **fields})
        request = pb.CreateModelRequest(parent=P, model_id="m", model=model, allow_replace=allow_replace)
        return await service.CreateModel(request, None)

    return create


async def test_the_same_model_again_changes_nothing(create: Any) -> None:
    first = await create(preprocessing=MEAN, labels={"a": "b"})
    assert await create(preprocessing=MEAN) == first
    assert await create() == first, "what is not said stays"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"preprocessing": pb.Preprocessing(mean=[7])}, "another preprocessing"),
        ({"format": pb.MODEL_FORMAT_FROZEN_GRAPH}, "another format"),
    ],
)
async def test_the_same_bytes_run_otherwise_are_not_taken_for_the_same_model(
    create: Any, fields: dict[str, Any], words: str
) -> None:
    await create(preprocessing=MEAN)
    with pytest.raises(AlreadyExistsError, match=words):
        await create(**fields)
    assert (await create()).preprocessing == MEAN
    replaced = await create(**fields, allow_replace=True)
    assert all(getattr(replaced, name) == value for name, value in fields.items())
