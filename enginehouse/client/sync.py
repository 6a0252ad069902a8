"""The synchronous client: `AsyncClient` behind an event loop in a background thread."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from enginehouse.client.addresses import INFERENCE, OPTIMIZER, TELEMETRY, Addresses
from enginehouse.client.aio import AsyncClient
from enginehouse.client.balancing.policy import Balancing
from enginehouse.client.calibrations import Calibrations
from enginehouse.client.cluster import NAMESPACE, find_cluster
from enginehouse.client.connection import TLS
from enginehouse.client.fitting import Inputs
from enginehouse.client.portal import Portal
from enginehouse.client.store import Store
from enginehouse.client.sync_resources import Datasets, Engines, Job, Jobs, Models, Serving, Telemetry
from enginehouse.client.values import (
    Alias,
    Batching,
    Calibration,
    Engine,
    InferResult,
    Model,
    ModelIndex,
    ModelSignature,
    ServingConfig,
    Target,
    VerificationSpec,
)
from enginehouse.names import DEFAULT_PROJECT
from enginehouse.rpc.channels import Token, token_of


class Client:
    """A client of a project's optimizer, inference servers and telemetry agent.

    Channels and the background thread are made when they are first used. It may be used from several threads, and a
    process that forks while none of its calls runs may use it on both sides. Close it, or use it in a `with` block.
    Every call raises `EnginehouseError`, of the subclass that stands for what went wrong.

    Args:
        optimizer: address of the optimizer, "host:port".
        inference: address of an inference server, or several (a list, or one text with commas). Requests are spread
            over them, and over the servers that a name with several addresses stands for.
        telemetry: address of a telemetry agent.
        project: the project that ids belong to.
        timeout: seconds that a single call may take (uploads, downloads and streams may take longer).
        tls: how to speak TLS; plain text when None.
        token: goes with every call: a text, or a `Token` that says more.
        token_file: the same in a file, which is read again as it changes (a Kubernetes service account's).
        balancing: how requests are spread over inference servers and sent again; the defaults when None.
    """

    def __init__(
        self,
        optimizer: str = OPTIMIZER,
        inference: str | Sequence[str] = INFERENCE,
        telemetry: str = TELEMETRY,
        *,
        project: str = DEFAULT_PROJECT,
        timeout: float = 30.0,
        tls: TLS | None = None,
        token: str | Token | None = None,
        token_file: Path | str | None = None,
        balancing: Balancing | None = None,
    ) -> None:
        inner = AsyncClient(
            optimizer,
            inference,
            telemetry,
            project=project,
            timeout=timeout,
            tls=tls,
            token=token,
            token_file=token_file,
            balancing=balancing,
        )
        self._adopt(inner)

    @classmethod
    def from_environment(
        cls,
        variables: Mapping[str, str] | None = None,
        *,
        timeout: float = 30.0,
        balancing: Balancing | None = None,
    ) -> Client:
        """A client of what the environment and the local stack name, as `AsyncClient.from_environment` says."""
        client = cls.__new__(cls)
        client._adopt(AsyncClient.from_environment(variables, timeout=timeout, balancing=balancing))
        return client

    @classmethod
    def from_kubernetes(
        cls,
        namespace: str = NAMESPACE,
        *,
        project: str = DEFAULT_PROJECT,
        timeout: float = 30.0,
        tls: TLS | None = None,
        token: str | Token | None = None,
        token_file: Path | str | None = None,
        balancing: Balancing | None = None,
        release: str = "enginehouse",
        context: str = "",
    ) -> Client:
        """A client of the Enginehouse in a namespace of a Kubernetes cluster: by the services' names in a pod, through
        `kubectl port-forward` elsewhere. `AsyncClient.from_kubernetes` says what each argument means.
        """
        bearer = token_of(token, token_file)
        cluster = find_cluster(namespace, release=release, context=context)
        client = cls.__new__(cls)
        client._adopt(AsyncClient._of_cluster(cluster, project, timeout, tls, bearer, balancing))
        return client

    def _adopt(self, inner: AsyncClient) -> None:
        self._inner = inner
        self._portal = portal = Portal(inner.suspend)
        self.project = inner.project
        self.addresses: Addresses = inner.addresses
        self.models = Models(portal, inner.models)
        self.datasets = Datasets(portal, inner.datasets)
        self.engines = Engines(portal, inner.engines)
        self.calibrations = Calibrations(portal, inner.calibrations)
        self.jobs = Jobs(portal, inner.jobs)
        self.store = Store(portal, inner.store)
        self.serving = Serving(portal, inner.serving)
        self.telemetry = Telemetry(portal, inner.telemetry)

    def optimize(
        self,
        model: Model | str,
        targets: Sequence[Target],
        *,
        calibration: Calibration | None = None,
        verification: VerificationSpec | None = None,
        input_layout: str = "keep",
        fold_preprocessing: bool = False,
        priority: int = 0,
        request_id: str | None = None,
    ) -> Job:
        """Start to turn a model into engines, one for each target.

        Args:
            model: a model, its name or its id.
            targets: the engines to build.
            calibration: needed when a target is INT8 or FP8.
            verification: what to compare the engines with FP32 on; the server's choice when None.
            input_layout: "keep" (the model's own) or "nchw" (images channels first).
            fold_preprocessing: the engine takes UINT8 images, channels last, and normalizes them itself by the model's
                preprocessing.
            priority: -100 to 100; of waiting jobs the highest starts first, then the oldest.
            request_id: a UUID; the same one again returns the first call's job. Made up when None.
        """
        job = self._inner.optimize(
            model,
            targets,
            calibration=calibration,
            verification=verification,
            input_layout=input_layout,
            fold_preprocessing=fold_preprocessing,
            priority=priority,
            request_id=request_id,
        )
        return Job(self._portal, self._portal.run(job))

    def load(
        self,
        model_name: str,
        engine: Engine | Alias | str,
        *,
        version: int | None = None,
        instances: int | None = None,
        batching: Batching | None = None,
        options: Mapping[str, Any] | None = None,
        latest_versions: int | None = None,
        warmup_batch_sizes: Sequence[int] | None = None,
        wait: bool = True,
        timeout: float = 300.0,
    ) -> ServingConfig:
        """Serve an engine under a name, in every inference process of the project, and wait until ours has it ready.

        None keeps what is configured. `AsyncClient.load` says what each argument means.
        """
        return self._portal.run(
            self._inner.load(
                model_name,
                engine,
                version=version,
                instances=instances,
                batching=batching,
                options=options,
                latest_versions=latest_versions,
                warmup_batch_sizes=warmup_batch_sizes,
                wait=wait,
                timeout=timeout,
            )
        )

    def unload(self, model_name: str, *, wait: bool = True, timeout: float = 60.0) -> None:
        """Stop serving a model, in every inference process of the project."""
        self._portal.run(self._inner.unload(model_name, wait=wait, timeout=timeout))

    def infer(
        self,
        model_name: str,
        inputs: Inputs,
        *,
        outputs: Sequence[str] | None = None,
        version: int | str | None = None,
        timeout: float | None = None,
        request_id: str | None = None,
        parameters: Mapping[str, Any] | None = None,
        casting: str = "safe",
        into: Mapping[str, Any] | None = None,
    ) -> InferResult:
        """Run a model once: an array, or a mapping from input name to array, in; a mapping from output name out.

        An array of another dtype is cast where no value can change (uint8 to FP32); for float64 to FP32 say
        `casting="same_kind"`. Arrays on a GPU stay there, as inputs and as the outputs `into` which a model writes.
        `AsyncClient.infer` says what each argument means.
        """
        return self._portal.run(
            self._inner.infer(
                model_name,
                inputs,
                outputs=outputs,
                version=version,
                timeout=timeout,
                request_id=request_id,
                parameters=parameters,
                casting=casting,
                into=into,
            )
        )

    def infer_stream(
        self,
        model_name: str,
        requests: Iterable[Inputs],
        *,
        outputs: Sequence[str] | None = None,
        version: int | str | None = None,
        casting: str = "safe",
    ) -> Iterator[InferResult]:
        """Run a model on one request after another over one stream; results come in the order of the requests.

        At most 32 requests wait for their answers. `requests` is iterated in another thread.
        """
        return self._portal.iterate(
            self._inner.infer_stream(model_name, requests, outputs=outputs, version=version, casting=casting)
        )

    def model_metadata(self, model_name: str, version: int | str | None = None) -> ModelSignature:
        """What a served model takes and gives."""
        return self._portal.run(self._inner.model_metadata(model_name, version))

    def model_ready(self, model_name: str, version: int | str | None = None) -> bool:
        """Whether a server can take requests for a version of a model (the newest served when None)."""
        return self._portal.run(self._inner.model_ready(model_name, version))

    def model_index(self) -> list[ModelIndex]:
        """Every model and version that the inference servers know, with its state and why it is in it."""
        return self._portal.run(self._inner.model_index())

    def ready(self, timeout: float = 5.0) -> dict[str, bool]:
        """Whether each service answers within `timeout` seconds and says that it can work, by name."""
        return self._portal.run(self._inner.ready(timeout))

    def close(self) -> None:
        """Close the channels and stop the thread; calls in flight are cancelled. A second close does nothing."""
        if self._portal.started:
            self._portal.run(self._inner.close())
        self._portal.close()
        self._inner.leave_cluster()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
