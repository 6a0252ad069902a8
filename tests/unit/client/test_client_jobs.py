"""Optimization: the request, events through broken streams, results and errors."""

from __future__ import annotations

import pytest
from client_servers import PROJECT, Servers

from enginehouse import AsyncClient, BatchProfile, Calibration, Synthetic, Target, VerificationSpec
from enginehouse.client import jobs
from enginehouse.errors import (
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
)
from enginehouse.v1 import engines_pb2, optimizer_pb2


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    async def at_once(attempt: int) -> None:
        return None

    monkeypatch.setattr(jobs, "backoff", at_once)


TARGETS = [Target("onnxruntime", "fp32"), Target("onnxruntime", "int8", BatchProfile(1, 2, 4), {"a": "b"})]


async def test_the_request_says_what_was_asked(client: AsyncClient, servers: Servers) -> None:
    await client.optimize(
        "m",
        TARGETS,
        calibration=Calibration("max", synthetic=Synthetic(samples=7)),
        verification=VerificationSpec(dataset="d", minimum_relative_accuracy=0.0),
        input_layout="nchw",
    )
    (request,) = servers.optimizer.requests
    assert (request.parent, request.model, request.input_layout) == (PROJECT, f"{PROJECT}/models/m", "nchw")
    assert request.targets[0].precision == engines_pb2.PRECISION_FP32 and not request.targets[0].HasField("profile")
    assert request.targets[1].profile.max == 4 and dict(request.targets[1].options) == {"a": "b"}
    assert request.calibration.method == optimizer_pb2.CALIBRATION_METHOD_MAX
    assert request.calibration.synthetic.samples == 7
    assert request.verification.dataset == f"{PROJECT}/datasets/d"
    assert request.verification.HasField("minimum_relative_accuracy")
    assert not request.verification.HasField("minimum_sqnr_db")


async def test_a_repeated_start_keeps_its_request_id(client: AsyncClient, servers: Servers) -> None:
    servers.optimizer.unavailable = 2
    await client.optimize("m", TARGETS)
    assert len(servers.optimizer.requests) == 3
    assert len({r.request_id for r in servers.optimizer.requests}) == 1 and servers.optimizer.requests[0].request_id


async def test_events_go_on_after_a_broken_stream(client: AsyncClient, servers: Servers) -> None:
    servers.optimizer.break_at = [2, 3]
    job = await client.optimize("m", TARGETS)
    events = [event async for event in job.events()]
    assert [event.sequence for event in events] == [1, 2, 3, 4, 5]
    assert servers.optimizer.watches == [0, 2, 3]
    assert events[0].stage is not None and events[0].stage.fraction == 0.25 and events[0].queued_seconds is None
    assert events[-1].job is not None and events[-1].job.state == "succeeded"


async def test_results_are_the_engines(client: AsyncClient, servers: Servers) -> None:
    servers.optimizer.engines = [engines_pb2.Engine(name=f"{PROJECT}/engines/e{n}") for n in range(2)]
    job = await client.optimize("m", TARGETS)
    assert [engine.id for engine in await job.result()] == ["e0", "e1"]
    assert await job.log("freeze") == "log of freeze"
    await job.cancel()
    assert servers.optimizer.cancelled


async def test_a_failed_job_raises_its_error(client: AsyncClient, servers: Servers) -> None:
    servers.optimizer.error = FailedPreconditionError("accuracy too low", details={"stage": "verify"})
    job = await client.optimize("m", TARGETS)
    with pytest.raises(FailedPreconditionError, match="accuracy too low") as caught:
        await job.result()
    assert caught.value.details == {"stage": "verify"}
    view = await job.metadata()
    assert view.state == "failed" and view.done and isinstance(view.error, FailedPreconditionError)


async def test_waiting_ends_at_the_timeout(client: AsyncClient, servers: Servers) -> None:
    servers.optimizer.hang = True
    job = await client.optimize("m", TARGETS)
    with pytest.raises(DeadlineExceededError, match="still runs"):
        await job.result(timeout=0.2)


async def test_an_optimizer_that_stays_away_is_an_error(
    client: AsyncClient, servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "MAX_TRIES", 2)
    job = await client.optimize("m", TARGETS)
    await servers.stop()
    with pytest.raises(UnavailableError, match="no server answers at"):
        await job.result()


async def test_jobs_are_found_again(client: AsyncClient) -> None:
    (view,) = await client.jobs.list()
    job = await client.jobs.get(view.id)
    assert job.name == view.name == (await client.jobs.get(view)).name
    with pytest.raises(NotFoundError):
        await client.jobs.get("job-2")


async def test_a_retry_is_a_new_job(client: AsyncClient, servers: Servers) -> None:
    (view,) = await client.jobs.list()
    assert (view.stages[0].took_seconds, view.stages[0].peak_memory_bytes) == (12.5, 3 << 30)
    job = await client.jobs.retry(view)
    await client.jobs.retry(view.id, request_id="6c0d8a9e-3f0e-4b53-8c6c-0f3a3b1f9d10")
    one, two = servers.optimizer.retries
    assert job.name == one.name == two.name == view.name
    assert one.request_id and two.request_id == "6c0d8a9e-3f0e-4b53-8c6c-0f3a3b1f9d10"


async def test_contradictions_are_refused_here(client: AsyncClient) -> None:
    with pytest.raises(InvalidArgumentError, match="not both"):
        await client.optimize("m", TARGETS, calibration=Calibration(dataset="d", synthetic=Synthetic()))
    with pytest.raises(InvalidArgumentError, match="entropy, max, percentile, mse"):
        await client.optimize("m", TARGETS, calibration=Calibration("guess", synthetic=Synthetic()))
    with pytest.raises(InvalidArgumentError, match="min <= opt <= max"):
        BatchProfile(4, 2, 8)
