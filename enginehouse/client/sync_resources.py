"""The synchronous faces of the resources' clients: the same methods, without `await`. A test compares the two."""

from __future__ import annotations

import builtins
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from enginehouse.client.blobs import Progress
from enginehouse.client.datasets import Arrays, AsyncDatasets
from enginehouse.client.engines import AsyncEngines
from enginehouse.client.jobs import AsyncJob, AsyncJobs
from enginehouse.client.models import AsyncModels
from enginehouse.client.portal import Portal
from enginehouse.client.serving import AsyncServing
from enginehouse.client.telemetry import AsyncTelemetry
from enginehouse.client.values import (
    Alias,
    ClusterNode,
    Dataset,
    DeviceList,
    Engine,
    ImportOptions,
    JobEvent,
    JobView,
    Model,
    Preprocessing,
    Sample,
    ServingConfig,
    TfRecordFeatures,
)


class Models:
    """The models of a project. See `AsyncModels` for what each method does."""

    def __init__(self, portal: Portal, inner: AsyncModels) -> None:
        self._portal = portal
        self._inner = inner

    def upload(
        self,
        path: str | Path,
        model_id: str | None = None,
        *,
        format: str | None = None,  # noqa: A002 - what it is
        import_options: ImportOptions | None = None,
        preprocessing: Preprocessing | None = None,
        labels: Mapping[str, str] | None = None,
        replace: bool = False,
        progress: Progress | None = None,
    ) -> Model:
        """Upload a model's file or SavedModel folder and register it. `progress` is called in another thread."""
        upload = self._inner.upload(
            path,
            model_id,
            format=format,
            import_options=import_options,
            preprocessing=preprocessing,
            labels=labels,
            replace=replace,
            progress=progress,
        )
        return self._portal.run(upload)

    def create_zoo(
        self,
        model_id: str,
        architecture: str,
        seed: int = 0,
        *,
        weights: str | Path | None = None,
        classes: int = 0,
        preprocessing: Preprocessing | None = None,
        labels: Mapping[str, str] | None = None,
        progress: Progress | None = None,
    ) -> Model:
        """Register an architecture of the optimizer's zoo, with weights of a file or random ones from a seed."""
        create = self._inner.create_zoo(
            model_id,
            architecture,
            seed,
            weights=weights,
            classes=classes,
            preprocessing=preprocessing,
            labels=labels,
            progress=progress,
        )
        return self._portal.run(create)

    def ensure_zoo(self, name: str, *, seed: int = 0) -> Model:
        """The model of that name if there is one, else the zoo's architecture of that name, registered under it."""
        return self._portal.run(self._inner.ensure_zoo(name, seed=seed))

    def get(self, model: Model | str) -> Model:
        """A model by its name or id."""
        return self._portal.run(self._inner.get(model))

    def list(self) -> builtins.list[Model]:
        """All of the project's models."""
        return self._portal.run(self._inner.list())

    def delete(self, model: Model | str) -> None:
        """Delete a model; its engines stay."""
        self._portal.run(self._inner.delete(model))


class Datasets:
    """The datasets of a project. See `AsyncDatasets` for what each method does."""

    def __init__(self, portal: Portal, inner: AsyncDatasets) -> None:
        self._portal = portal
        self._inner = inner

    def upload(
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
        """Upload arrays, images or a TFRecord and register them. `progress` is called in another thread."""
        upload = self._inner.upload(
            data,
            dataset_id,
            format=format,
            tfrecord=tfrecord,
            labels=labels,
            replace=replace,
            progress=progress,
        )
        return self._portal.run(upload)

    def get(self, dataset: Dataset | str) -> Dataset:
        """A dataset by its name or id."""
        return self._portal.run(self._inner.get(dataset))

    def list(self) -> builtins.list[Dataset]:
        """All of the project's datasets."""
        return self._portal.run(self._inner.list())

    def delete(self, dataset: Dataset | str) -> None:
        """Delete a dataset."""
        self._portal.run(self._inner.delete(dataset))


class Engines:
    """The engines of a project. See `AsyncEngines` for what each method does."""

    def __init__(self, portal: Portal, inner: AsyncEngines) -> None:
        self._portal = portal
        self._inner = inner

    def get(self, engine: Engine | Alias | str) -> Engine:
        """An engine by its name, its id or an alias ("{model}:{alias}")."""
        return self._portal.run(self._inner.get(engine))

    def list(
        self, *, model: Model | str | None = None, backend: str = "", precision: str | None = None, device: str = ""
    ) -> builtins.list[Engine]:
        """The project's engines; only those of a model, a backend, a precision, a device, where given."""
        return self._portal.run(self._inner.list(model=model, backend=backend, precision=precision, device=device))

    def delete(self, engine: Engine | str) -> None:
        """Delete an engine that no serving configuration and no alias names, and that is not pinned."""
        self._portal.run(self._inner.delete(engine))

    def pin(self, engine: Engine | Alias | str, pinned: bool = True) -> Engine:
        """Keep an engine from being deleted and collected; no longer when not `pinned`."""
        return self._portal.run(self._inner.pin(engine, pinned))

    def set_alias(self, alias: Alias | str, engine: Engine | Alias | str, *, etag: str = "") -> Alias:
        """Make an alias ("{model}:{alias}") or move it; what is served by it follows."""
        return self._portal.run(self._inner.set_alias(alias, engine, etag=etag))

    def get_alias(self, alias: Alias | str) -> Alias:
        """An alias, with the engine that it stands for now."""
        return self._portal.run(self._inner.get_alias(alias))

    def list_aliases(self, model: Model | str | None = None) -> builtins.list[Alias]:
        """The aliases of a model, or of all models."""
        return self._portal.run(self._inner.list_aliases(model))

    def delete_alias(self, alias: Alias | str) -> None:
        """Forget an alias that no serving configuration names; its engine stays."""
        self._portal.run(self._inner.delete_alias(alias))

    def export_file(
        self,
        engine: Engine | Alias | str,
        path: str | Path | None = None,
        *,
        overwrite: bool = False,
        progress: Progress | None = None,
    ) -> Path:
        """Write an engine and all that belongs to it as one file; it appears when it is whole."""
        export = self._inner.export_file(engine, path, overwrite=overwrite, progress=progress)
        return self._portal.run(export)

    def import_file(self, path: str | Path, *, model_id: str | None = None, progress: Progress | None = None) -> Engine:
        """Publish an engine that `export_file` wrote; again changes nothing."""
        return self._portal.run(self._inner.import_file(path, model_id=model_id, progress=progress))

    def sensitivity(self, engine: Engine | Alias | str) -> dict[str, Any] | None:
        """What each layer costs of accuracy, and which were left out for it; None where it was not measured."""
        return self._portal.run(self._inner.sensitivity(engine))

    def layers(self, engine: Engine | Alias | str) -> dict[str, Any] | None:
        """How each layer compares with FP32; None where verification did not compare layers."""
        return self._portal.run(self._inner.layers(engine))

    def inspector(self, engine: Engine | Alias | str) -> dict[str, Any] | None:
        """What the backend says of the layers that it made, their times among it; None where it says nothing."""
        return self._portal.run(self._inner.inspector(engine))

    def not_verified(self, engine: Engine | Alias | str) -> str:
        """Why an engine was published without verification; empty when it was verified."""
        return self._portal.run(self._inner.not_verified(engine))

    def manifest(self, engine: Engine | Alias | str) -> dict[str, Any]:
        """How the engine was made, stage by stage, with which tools, and what it measured."""
        return self._portal.run(self._inner.manifest(engine))

    def build_log(self, engine: Engine | Alias | str) -> str:
        """What the backend said while it built the engine; empty when it kept no log."""
        return self._portal.run(self._inner.build_log(engine))

    def download(
        self, engine: Engine | Alias | str, directory: str | Path | None = None, *, progress: Progress | None = None
    ) -> Path:
        """Download an engine's checked files; the directory appears when it is whole."""
        return self._portal.run(self._inner.download(engine, directory, progress=progress))


class Job:
    """An optimization that runs, or ran, in the optimizer. See `AsyncJob` for what each method does."""

    def __init__(self, portal: Portal, inner: AsyncJob) -> None:
        self._portal = portal
        self._inner = inner
        self.name = inner.name

    @property
    def id(self) -> str:
        """The last part of the name."""
        return self._inner.id

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"

    def events(self, after_sequence: int = 0) -> Iterator[JobEvent]:
        """What happened and happens, in order and each once, until the job ends. The last event has `job`."""
        return self._portal.iterate(self._inner.events(after_sequence))

    def result(self, timeout: float | None = None) -> list[Engine]:
        """Wait for the job and return its engines, in the order of its targets; raise what it ended with."""
        return self._portal.run(self._inner.result(timeout))

    def metadata(self) -> JobView:
        """The job as it is now."""
        return self._portal.run(self._inner.metadata())

    def log(self, stage: str) -> str:
        """The end of a stage's log, at most 1 MiB."""
        return self._portal.run(self._inner.log(stage))

    def cancel(self) -> None:
        """Ask the job to stop."""
        self._portal.run(self._inner.cancel())


class Jobs:
    """The jobs of a project. See `AsyncJobs` for what each method does."""

    def __init__(self, portal: Portal, inner: AsyncJobs) -> None:
        self._portal = portal
        self._inner = inner

    def get(self, job: JobView | str) -> Job:
        """A job by its name or id."""
        return Job(self._portal, self._portal.run(self._inner.get(job)))

    def retry(self, job: JobView | str, *, request_id: str | None = None) -> Job:
        """Start a finished job's request again, as a new job; stages that had succeeded are reused."""
        return Job(self._portal, self._portal.run(self._inner.retry(job, request_id=request_id)))

    def list(self, filter: str = "", *, limit: int | None = None) -> builtins.list[JobView]:  # noqa: A002
        """The project's jobs, the newest first."""
        return self._portal.run(self._inner.list(filter, limit=limit))


class Serving:
    """The serving configurations of a project. See `AsyncServing` for what each method does."""

    def __init__(self, portal: Portal, inner: AsyncServing) -> None:
        self._portal = portal
        self._inner = inner

    def get(self, model_name: ServingConfig | str) -> ServingConfig:
        """The configuration of a served model."""
        return self._portal.run(self._inner.get(model_name))

    def list(self) -> builtins.list[ServingConfig]:
        """All of the project's configurations."""
        return self._portal.run(self._inner.list())


class Telemetry:
    """The telemetry of a node, or of a cluster. See `AsyncTelemetry` for what each method does."""

    def __init__(self, portal: Portal, inner: AsyncTelemetry) -> None:
        self._portal = portal
        self._inner = inner

    def devices(self) -> DeviceList:
        """The GPUs; where there are none, why."""
        return self._portal.run(self._inner.devices())

    def snapshot(self, *, fields: Sequence[str] = ()) -> Sample:
        """The newest sample."""
        return self._portal.run(self._inner.snapshot(fields=fields))

    def stream(
        self, *, period: float = 1.0, fields: Sequence[str] = (), devices: Sequence[str | int] = ()
    ) -> Iterator[Sample]:
        """Samples as they are taken, every `period` seconds, until the iteration is left."""
        return self._portal.iterate(self._inner.stream(period=period, fields=fields, devices=devices))

    def history(
        self,
        start: datetime | None = None,
        end: datetime | None = None,
        *,
        fields: Sequence[str] = (),
        devices: Sequence[str | int] = (),
        limit: int | None = None,
    ) -> list[Sample]:
        """Past samples, oldest first, from `start` (inclusive) to `end` (exclusive)."""
        history = self._inner.history(start, end, fields=fields, devices=devices, limit=limit)
        return self._portal.run(history)

    def cluster(
        self,
        *,
        nodes: Sequence[str] = (),
        pods: Sequence[str] = (),
        products: Sequence[str] = (),
        fields: Sequence[str] = (),
    ) -> list[ClusterNode]:
        """Every node of a cluster with its newest sample."""
        return self._portal.run(self._inner.cluster(nodes=nodes, pods=pods, products=products, fields=fields))

    def stream_cluster(
        self,
        *,
        interval: float = 1.0,
        nodes: Sequence[str] = (),
        pods: Sequence[str] = (),
        products: Sequence[str] = (),
        fields: Sequence[str] = (),
    ) -> Iterator[tuple[ClusterNode, ...]]:
        """The nodes of a cluster that have news, a few at a time, until the iteration is left."""
        return self._portal.iterate(
            self._inner.stream_cluster(interval=interval, nodes=nodes, pods=pods, products=products, fields=fields)
        )
