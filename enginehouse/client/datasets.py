"""Datasets: samples to calibrate and verify with."""

from __future__ import annotations

import asyncio
import builtins
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from enginehouse.client.blobs import AsyncBlobs, Progress
from enginehouse.client.connection import Endpoint
from enginehouse.client.dataset_files import dataset_file, pack_images
from enginehouse.client.models import id_from
from enginehouse.client.resources import PAGE_SIZE, all_pages, full_name
from enginehouse.client.values import Dataset, TfRecordFeatures
from enginehouse.errors import InvalidArgumentError
from enginehouse.names import check_id
from enginehouse.v1 import models_pb2 as pb
from enginehouse.v1 import models_pb2_grpc

Arrays = Mapping[str, npt.NDArray[Any]]


class AsyncDatasets:
    """The datasets of a project."""

    def __init__(self, endpoint: Endpoint, blobs: AsyncBlobs, parent: str) -> None:
        self._endpoint = endpoint
        self._blobs = blobs
        self._parent = parent

    async def upload(
        self,
        data: str | Path | Arrays,
        dataset_id: str | None = None,
        *,
        format: str | None = None,  # noqa: A002 - what it is
        tfrecord: TfRecordFeatures | None = None,
        labels: Mapping[str, str] | None = None,
        replace: bool = False,
        progress: Progress | None = None,
    ) -> Dataset:
        """Upload samples and register them.

        Args:
            data: an .npz file, or arrays: one for each model input, dimension 0 the sample, and `labels` (integers,
                one a sample) where there are any. Or images: a folder of them, or a .zip, .tar or .tar.gz; classes
                are in a file labels.csv ("path,class index" a line), or a folder each, numbered in the order of their
                names. Or a TFRecord (plain or gzip) of examples with encoded images. UINT8 arrays, images and
                TFRecords go through the model's preprocessing.
            dataset_id: its name in the project; made from the file's name when None, needed for arrays.
            format: "npz", "images" or "tfrecord"; found out by the file's name when None.
            tfrecord: where a TFRecord keeps images and labels, when not where tf.train's own do.
            labels: anything to find it by (not the samples' labels, which are in `data`).
            replace: replace a dataset of that name with other bytes, instead of `AlreadyExistsError`.
            progress: told (bytes done, bytes in all).

        Raises:
            InvalidArgumentError: no such file, not of its format, or arrays of unequal lengths.
            AlreadyExistsError: a dataset of that name has other bytes.
        """
        if tfrecord is not None and format is None and not isinstance(data, Mapping):
            format = "tfrecord"  # noqa: A001
        with tempfile.TemporaryDirectory(prefix="enginehouse-upload-") as folder:
            if isinstance(data, Mapping):
                if not dataset_id:
                    raise InvalidArgumentError("arrays have no file name to make an id from: give dataset_id")
                check_samples(data)
                path = Path(folder) / f"{check_id(dataset_id, 'dataset id')}.npz"
                await asyncio.to_thread(_save, path, data)
            else:
                path = Path(data)
            file = await asyncio.to_thread(dataset_file, path, format)
            if tfrecord is not None and file.format != pb.DATASET_FORMAT_TFRECORD:
                raise InvalidArgumentError("`tfrecord` says where a TFRecord keeps what: the format is another")
            dataset_id = check_id(dataset_id, "dataset id") if dataset_id else id_from(Path(f"{file.stem}.data"))
            if file.images:
                path = Path(folder) / "images.zip"
                await asyncio.to_thread(pack_images, file, path)
            dataset = pb.Dataset(
                blob=await self._blobs.upload(path, progress),
                file_name=file.file_name,
                format=file.format,
                tfrecord=tfrecord.to_proto() if tfrecord is not None else None,
                labels=dict(labels or {}),
            )
        request = pb.CreateDatasetRequest(
            parent=self._parent, dataset_id=dataset_id, dataset=dataset, allow_replace=replace
        )
        stub = self._endpoint.stub(models_pb2_grpc.ModelsStub)
        return Dataset.from_proto(await self._endpoint.unary(stub.CreateDataset, request))

    async def get(self, dataset: Dataset | str) -> Dataset:
        """A dataset by its name or id.

        Raises:
            NotFoundError: there is none.
        """
        request = pb.GetDatasetRequest(name=full_name(dataset, self._parent, "datasets"))
        stub = self._endpoint.stub(models_pb2_grpc.ModelsStub)
        return Dataset.from_proto(await self._endpoint.unary(stub.GetDataset, request))

    async def list(self) -> builtins.list[Dataset]:
        """All of the project's datasets."""
        stub = self._endpoint.stub(models_pb2_grpc.ModelsStub)
        request = pb.ListDatasetsRequest(parent=self._parent, page_size=PAGE_SIZE)
        return [Dataset.from_proto(d) for d in await all_pages(self._endpoint, stub.ListDatasets, request, "datasets")]

    async def delete(self, dataset: Dataset | str) -> None:
        """Delete a dataset."""
        request = pb.DeleteDatasetRequest(name=full_name(dataset, self._parent, "datasets"))
        stub = self._endpoint.stub(models_pb2_grpc.ModelsStub)
        await self._endpoint.unary(stub.DeleteDataset, request)


def check_samples(arrays: Arrays) -> None:
    """Refuse arrays that do not hold the same number of samples.

    Raises:
        InvalidArgumentError: they do not, or there are none.
    """
    lengths = {name: np.shape(array)[0] if np.ndim(array) else 0 for name, array in arrays.items()}
    if not lengths or min(lengths.values()) < 1:
        raise InvalidArgumentError(f"a dataset needs at least one sample in every array, got {lengths or 'no arrays'}")
    if len(set(lengths.values())) != 1:
        raise InvalidArgumentError(f"every array needs the same number of samples (dimension 0), got {lengths}")


def _save(path: Path, arrays: Arrays) -> None:
    np.savez(path, **{name: np.asarray(array) for name, array in arrays.items()})  # type: ignore[arg-type, unused-ignore]
