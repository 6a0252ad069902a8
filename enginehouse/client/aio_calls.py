"""What a client does itself, beside its resources: optimize, load and unload; infer, and what that needs to know."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Iterable, Mapping, Sequence
from typing import Any

from enginehouse.client.calibrations import AsyncCalibrations
from enginehouse.client.fitting import Inputs
from enginehouse.client.inference import AsyncInference
from enginehouse.client.jobs import AsyncJob, AsyncJobs
from enginehouse.client.serving import AsyncServing
from enginehouse.client.tables import with_uploaded_table
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


class ProjectCalls:
    """Calls that change a project: make engines, serve them."""

    jobs: AsyncJobs
    calibrations: AsyncCalibrations
    serving: AsyncServing

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
            wait: return when the inference servers of this client that answer have it ready.
            timeout: seconds to wait for that.

        Raises:
            FailedPreconditionError: the engine did not load; the message has the reason.
            DeadlineExceededError: it is not ready yet.
            UnavailableError: no inference server answers, for half a minute; the configuration is kept.
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
            wait: return when the inference servers of this client let it go.
            timeout: seconds to wait for that.

        Raises:
            NotFoundError: no model is served under that name.
        """
        await self.serving.unload(model_name, wait=wait, timeout=timeout)


class InferenceCalls:
    """Calls to the inference servers."""

    _infer: AsyncInference

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
        """Run a model once, at the server with the fewest of our requests.

        A server that cannot take it is left for another one, within `timeout`; docs/clients.md says when.

        Arrays on a device (CuPy's, PyTorch's, whatever has `__cuda_array_interface__`) stay there, as inputs and in
        `into`: a server on the same machine reads and writes their memory. Needs enginehouse[cuda]. Nothing may
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
            UnavailableError: no server is there, or two lost it while it ran.
            ResourceExhaustedError: the servers' queues are full.
            DeadlineExceededError: it is too late, all tries together.
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

        At most 32 requests wait for their answers at any time, so `requests` may be endless. The stream stays at the
        server that it began with.

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
        """Whether a server can take requests for a version of a model (the newest served when None)."""
        return await self._infer.model_ready(model_name, version)

    async def model_index(self) -> list[ModelIndex]:
        """Every model and version that the inference servers know, with its state and why it is in it.

        Of several servers the worst state counts; the reason says which of them are not ready.
        """
        return await self._infer.index()
