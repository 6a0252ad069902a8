"""The asynchronous client: the one implementation, on grpc.aio."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any

from enginehouse.client.addresses import INFERENCE, OPTIMIZER, TELEMETRY, Addresses
from enginehouse.client.blobs import AsyncBlobs
from enginehouse.client.calibrations import AsyncCalibrations
from enginehouse.client.connection import TLS, Endpoint
from enginehouse.client.datasets import AsyncDatasets
from enginehouse.client.engines import AsyncEngines
from enginehouse.client.fitting import Inputs
from enginehouse.client.health import is_serving
from enginehouse.client.inference import AsyncInference
from enginehouse.client.jobs import AsyncJob, AsyncJobs
from enginehouse.client.models import AsyncModels
from enginehouse.client.serving import AsyncServing
from enginehouse.client.store import AsyncStore
from enginehouse.client.tables import with_uploaded_table
from enginehouse.client.telemetry import AsyncTelemetry
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
from enginehouse.names import DEFAULT_PROJECT, check_id


class AsyncClient:
    """A client of a project's optimizer, inference process and telemetry agent. `Client` is the same without `await`.

    Channels are made when they are first used. Every call raises `EnginehouseError`, of the subclass that stands for
    what went wrong.

    Args:
        optimizer: address of the optimizer, "host:port".
        inference: address of an inference process.
        telemetry: address of a telemetry agent.
        project: the project that ids belong to.
        timeout: seconds that a single call may take (uploads, downloads and streams may take longer).
        tls: how to speak TLS; plain text when None.
    """

    def __init__(
        self,
        optimizer: str = OPTIMIZER,
        inference: str = INFERENCE,
        telemetry: str = TELEMETRY,
        *,
        project: str = DEFAULT_PROJECT,
        timeout: float = 30.0,
        tls: TLS | None = None,
    ) -> None:
        parent = f"projects/{check_id(project, 'project')}"
        self.project = project
        self.addresses = Addresses(optimizer, inference, telemetry)
        self._optimizer = Endpoint(optimizer, timeout=timeout, tls=tls)
        self._inference = Endpoint(inference, timeout=timeout, tls=tls)
        self._telemetry = Endpoint(telemetry, timeout=timeout, tls=tls)
        self._infer = AsyncInference(self._inference)
        self._blobs = blobs = AsyncBlobs(self._optimizer, parent)
        self.models = AsyncModels(self._optimizer, blobs, parent)
        self.datasets = AsyncDatasets(self._optimizer, blobs, parent)
        self.engines = AsyncEngines(self._optimizer, blobs, parent)
        self.calibrations = AsyncCalibrations(blobs, self.engines.get)
        self.jobs = AsyncJobs(self._optimizer, parent)
        self.store = AsyncStore(self._optimizer, parent)
        self.serving = AsyncServing(self._optimizer, self._infer, parent)
        self.telemetry = AsyncTelemetry(self._telemetry, parent)

    @classmethod
    def from_environment(cls, variables: Mapping[str, str] | None = None, *, timeout: float = 30.0) -> AsyncClient:
        """A client of what the environment names.

        ENGINEHOUSE_OPTIMIZER, ENGINEHOUSE_INFERENCE and ENGINEHOUSE_TELEMETRY are addresses, ENGINEHOUSE_PROJECT the
        project, ENGINEHOUSE_CLIENT_CA, _CERTIFICATE and _KEY PEM files. What they do not say comes from the stack that
        `enginehouse up` started in ENGINEHOUSE_HOME (or `.enginehouse` here), then from the defaults.
        """
        from enginehouse.client.addresses import from_environment

        found = from_environment(variables)
        return cls(
            found.addresses.optimizer,
            found.addresses.inference,
            found.addresses.telemetry,
            project=found.project,
            timeout=timeout,
            tls=found.tls,
        )

    async def optimize(
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
    ) -> AsyncJob:
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

        Raises:
            NotFoundError: there is no such model.
            ResourceExhaustedError: the optimizer's queue is full.
        """
        return await self.jobs.start(
            model,
            targets,
            calibration=await with_uploaded_table(calibration, self.calibrations),
            verification=verification,
            input_layout=input_layout,
            fold_preprocessing=fold_preprocessing,
            priority=priority,
            request_id=request_id,
        )

    async def load(
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
        """Serve an engine under a name, in every inference process of the project.

        None keeps what is configured, or takes the default where nothing is. Loading what is the newest version
        already, with nothing changed, changes nothing; anything else without a `version` makes the next one.

        Args:
            model_name: the name that inference clients use.
            engine: an engine, its name or its id; or an alias ("{model}:{alias}"), which is then followed: when it
                moves, its new engine is served as the next version.
            version: at least 1; None is the next.
            instances: execution contexts for each device.
            batching: how requests are put together.
            options: the backend's options at load, such as {"intra_op_threads": 2}.
            latest_versions: serve this many of the highest versions.
            warmup_batch_sizes: batch sizes run once at load.
            wait: return when the inference process at this client's address has it ready.
            timeout: seconds to wait for that.

        Raises:
            FailedPreconditionError: the engine did not load; the message has the reason.
            DeadlineExceededError: it is not ready yet.
            UnavailableError: the inference process does not answer, for half a minute; the configuration is kept.
        """
        return await self.serving.load(
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

    async def unload(self, model_name: str, *, wait: bool = True, timeout: float = 60.0) -> None:
        """Stop serving a model, in every inference process of the project.

        Args:
            model_name: the name that inference clients use.
            wait: return when the inference process at this client's address let it go.
            timeout: seconds to wait for that.

        Raises:
            NotFoundError: no model is served under that name.
        """
        await self.serving.unload(model_name, wait=wait, timeout=timeout)

    async def infer(
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
        """Run a model once.

        Arrays on a device (CuPy's, PyTorch's, whatever has `__cuda_array_interface__`) stay there, as inputs and in
        `into`: the server, on the same machine, reads and writes their memory. Needs enginehouse[cuda]. Nothing may
        change them while the call runs. The server keeps their allocations open until the client is closed.

        Args:
            model_name: the served name.
            inputs: an array for a model with one input, or a mapping from input name to array. Lists are converted by
                their values. An array of another dtype is cast where no value can change (uint8 to FP32); for float64
                to FP32 say `casting="same_kind"`, or cast it yourself.
            outputs: names of the outputs wanted; all when None.
            version: the newest served when None.
            timeout: seconds; the client's own when None. The server drops what it has not begun by then.
            request_id: comes back in the result.
            parameters: the protocol's request parameters.
            casting: NumPy's casting rule for arrays of another dtype: "no", "safe" or "same_kind".
            into: arrays on a device that outputs are written to, by output name; the result holds them. Each has the
                output's dtype and whole shape.

        Raises:
            InvalidArgumentError: a name, dtype or shape that the model does not take.
            NotFoundError: no such model or version is served.
            UnavailableError: the process is not there, or lost the device while it ran. It is not tried again here.
        """
        return await self._infer.infer(
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

    async def infer_stream(
        self,
        model_name: str,
        requests: AsyncIterable[Inputs] | Iterable[Inputs],
        *,
        outputs: Sequence[str] | None = None,
        version: int | str | None = None,
        casting: str = "safe",
    ) -> AsyncIterator[InferResult]:
        """Run a model on one request after another over one stream; results come in the order of the requests.

        At most 32 requests wait for their answers at any time, so `requests` may be endless.

        Raises:
            EnginehouseError: a request failed; the stream ends there.
        """
        async for result in self._infer.infer_stream(
            model_name, requests, outputs=outputs, version=version, casting=casting
        ):
            yield result

    async def model_metadata(self, model_name: str, version: int | str | None = None) -> ModelSignature:
        """What a served model takes and gives.

        Raises:
            NotFoundError: no such model or version is served.
        """
        return await self._infer.signature(model_name, version)

    async def model_ready(self, model_name: str, version: int | str | None = None) -> bool:
        """Whether a version of a model (the newest served when None) can take requests."""
        return await self._infer.model_ready(model_name, version)

    async def model_index(self) -> list[ModelIndex]:
        """Every model and version that the inference process knows, with its state and why it is in it."""
        return await self._infer.index()

    async def ready(self, timeout: float = 5.0) -> dict[str, bool]:
        """Whether each service answers within `timeout` seconds and says that it can work, by name."""
        return {
            "optimizer": await is_serving(self._optimizer, timeout),
            "inference": await self._infer.server_ready(timeout),
            "telemetry": await is_serving(self._telemetry, timeout),
        }

    async def suspend(self) -> None:
        """Close the channels until they are next used. gRPC's do not survive a fork, so `Client` does it before one."""
        for endpoint in (self._optimizer, self._inference, self._telemetry):
            await endpoint.suspend()

    async def close(self) -> None:
        """Close the channels; calls in flight are cancelled. A second close does nothing."""
        await self._infer.close()
        for endpoint in (self._optimizer, self._inference, self._telemetry):
            await endpoint.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
