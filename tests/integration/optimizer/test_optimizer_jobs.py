"""Optimizations through the real service, with a worker that has no framework."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import numpy as np
import pytest
from google.longrunning import operations_pb2
from google.protobuf.duration_pb2 import Duration
from optimizer_process import FP32, INT8, PARENT, OptimizerProcess, error_of, fake_workers, npz

from enginehouse.artifacts import EngineManifest
from enginehouse.errors import (
    CancelledError,
    EnginehouseError,
    FailedPreconditionError,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
)
from enginehouse.v1 import blobs_pb2, engines_pb2, models_pb2
from enginehouse.v1 import optimizer_pb2 as pb

Start = Callable[..., OptimizerProcess]
SYNTHETIC = pb.CalibrationSpec(synthetic=pb.SyntheticData(samples=8))


def gone(pid: int, seconds: float = 5.0) -> bool:
    end = time.monotonic() + seconds
    while Path(f"/proc/{pid}").exists() and time.monotonic() < end:
        time.sleep(0.02)
    return not Path(f"/proc/{pid}").exists()


def test_from_upload_to_engine(optimizer: OptimizerProcess) -> None:
    model = optimizer.model()
    operation = optimizer.optimize(model, FP32, INT8, calibration=SYNTHETIC)
    plain, quantized = optimizer.result(operation)
    for engine, precision in ((plain, "fp32"), (quantized, "int8")):
        model_id = model.rsplit("/", 1)[1]
        assert engine.name == f"{PARENT}/engines/{model_id}-onnxruntime-{precision}-{engine.key[7:19]}"
        files = {file.path: optimizer.download(file.digest) for file in engine.files}
        assert json.loads(files["engine.json"])["precision"] == precision.upper()
        assert "result.json" not in files
        manifest = EngineManifest.from_json(optimizer.download(engine.manifest_digest))
        assert manifest.digest == engine.manifest_digest and manifest.key == engine.key
        assert b"build starts" in optimizer.download(engine.build_log_digest)
        assert engine.verification.data == "synthetic" and engine.verification.sqnr_db == 40.0
        assert not engine.verification.HasField("top1"), "absent when not measured"
        assert (engine.max_batch_size, engine.batched, engine.profile.opt) == (64, True, 8)
        get = engines_pb2.GetEngineRequest(name=engine.name)
        assert optimizer.engines.GetEngine(get) == engine
    assert quantized.calibration_digest and not plain.calibration_digest
    listed = optimizer.engines.ListEngines(engines_pb2.ListEnginesRequest(parent=PARENT, model=model, precision=INT8))
    assert list(listed.engines) == [quantized]


def test_the_same_request_again_builds_nothing(optimizer: OptimizerProcess) -> None:
    model = optimizer.model()
    first = optimizer.result(optimizer.optimize(model, FP32))
    again = optimizer.optimize(model, FP32)
    assert optimizer.result(again) == first
    assert set(optimizer.states(again.name).values()) == {"REUSED"}
    tuned = optimizer.optimize(model, targets=[target(profile=profile(1, 1, 1))])
    assert optimizer.result(tuned)[0].key != first[0].key
    states = optimizer.states(tuned.name)
    assert states["convert"] == "REUSED" and states["build onnxruntime fp32"] == "SUCCEEDED"


def test_a_model_of_another_name_shares_the_work_but_has_its_own_engine(optimizer: OptimizerProcess) -> None:
    data = b'PK\x03\x04{"nonce": "shared"}'
    one, two = optimizer.model(data), optimizer.model(data)
    (first,) = optimizer.result(optimizer.optimize(one))
    operation = optimizer.optimize(two)
    (second,) = optimizer.result(operation)
    assert first.key == second.key and first.name != second.name and second.model == two
    assert set(optimizer.states(operation.name).values()) == {"REUSED"}


def test_equal_stages_of_two_jobs_run_once(optimizer: OptimizerProcess) -> None:
    model = optimizer.model(convert="slow")
    one, two = optimizer.optimize(model), optimizer.optimize(model)
    assert optimizer.result(one) == optimizer.result(two)
    log = optimizer.optimizer.GetStageLog(pb.GetStageLogRequest(name=two.name, stage="convert"))
    assert log.text.count("convert starts") == 1
    service = optimizer.log.read_text()
    key = {s.key for s in _manifest(optimizer, optimizer.result(one)[0]).stages if s.name == "convert"}.pop()
    assert service.count(f'"key": "{key}"') == 1


def _manifest(optimizer: OptimizerProcess, engine: engines_pb2.Engine) -> EngineManifest:
    return EngineManifest.from_json(optimizer.download(engine.manifest_digest))


def test_events_replay_follow_and_resume(optimizer: OptimizerProcess) -> None:
    operation = optimizer.optimize(optimizer.model(convert="slow"))
    events = list(optimizer.watch(operation.name))
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert events[0].state == pb.JOB_STATE_QUEUED
    running = next(event for event in events if event.state == pb.JOB_STATE_RUNNING)
    assert running.HasField("queued") and running.queued.ToNanoseconds() >= 0
    assert events[-1].state == pb.JOB_STATE_SUCCEEDED and events[-1].operation.done
    fractions = [event.stage.fraction for event in events if event.stage.name == "convert"]
    assert len(fractions) > 3 and fractions == sorted(fractions) and fractions[-1] == 1.0
    assert list(optimizer.watch(operation.name, after=5)) == events[5:]
    assert list(optimizer.watch(operation.name, after=len(events))) == []
    metadata = optimizer.metadata(operation.name)
    assert metadata.state == pb.JOB_STATE_SUCCEEDED and metadata.HasField("end_time")
    assert [stage.state for stage in metadata.stages] == [pb.STAGE_STATE_SUCCEEDED] * len(metadata.stages)


def test_a_stage_that_fails_ends_the_job_with_its_error(optimizer: OptimizerProcess) -> None:
    operation = optimizer.optimize(optimizer.model(convert="error"))
    with pytest.raises(FailedPreconditionError, match="'convert' failed: cannot do it") as caught:
        optimizer.result(operation)
    assert caught.value.details == {"stage": "convert", "why": "a test"}
    states = optimizer.states(operation.name)
    assert states["convert"] == "FAILED" and states["freeze"] == "SUCCEEDED"
    assert {states[name] for name in states if name not in ("freeze", "convert")} == {"CANCELLED"}


def test_a_crash_ends_the_job_with_the_log(optimizer: OptimizerProcess) -> None:
    model = optimizer.model(build="crash")
    operation = optimizer.optimize(model)
    with pytest.raises(InternalError, match="SIGSEGV"):
        optimizer.result(operation)
    request = pb.GetStageLogRequest(name=operation.name, stage="build onnxruntime fp32")
    assert "about to crash" in optimizer.optimizer.GetStageLog(request).text
    engines = optimizer.engines.ListEngines(engines_pb2.ListEnginesRequest(parent=PARENT, model=model))
    assert not engines.engines, "nothing is published"


def test_stage_logs_while_they_run_and_unknown_ones(optimizer: OptimizerProcess) -> None:
    operation = optimizer.optimize(optimizer.model(convert="hang"))
    optimizer.await_stage(operation.name, "convert", message="started")
    logs = optimizer.optimizer.GetStageLog
    assert "convert starts" in logs(pb.GetStageLogRequest(name=operation.name, stage="convert")).text
    assert "freeze starts" in logs(pb.GetStageLogRequest(name=operation.name, stage="freeze")).text
    assert logs(pb.GetStageLogRequest(name=operation.name, stage="reference")).text == ""
    unknown = error_of(logs, pb.GetStageLogRequest(name=operation.name, stage="nope"))
    assert isinstance(unknown, NotFoundError) and "freeze" in unknown.message
    optimizer.operations.CancelOperation(operations_pb2.CancelOperationRequest(name=operation.name))
    with pytest.raises(CancelledError):
        optimizer.result(operation)


def test_cancelling_kills_the_stage(optimizer: OptimizerProcess) -> None:
    operation = optimizer.optimize(optimizer.model(convert="stubborn"))
    optimizer.await_stage(operation.name, "convert", message="child")
    stage = next(s for s in optimizer.metadata(operation.name).stages if s.name == "convert")
    child = int(stage.message.split()[1])
    pids = optimizer.stage_pids()
    busy = error_of(optimizer.operations.DeleteOperation, operations_pb2.DeleteOperationRequest(name=operation.name))
    assert isinstance(busy, FailedPreconditionError)
    in_use = error_of(
        optimizer.models.DeleteModel, models_pb2.DeleteModelRequest(name=optimizer.metadata(operation.name).model)
    )
    assert isinstance(in_use, FailedPreconditionError)
    began = time.monotonic()
    optimizer.operations.CancelOperation(operations_pb2.CancelOperationRequest(name=operation.name))
    with pytest.raises(CancelledError):
        optimizer.result(operation)
    assert time.monotonic() - began < 4
    assert all(gone(pid) for pid in [child, *pids])
    assert optimizer.states(operation.name)["convert"] == "CANCELLED"
    optimizer.operations.CancelOperation(operations_pb2.CancelOperationRequest(name=operation.name))
    optimizer.operations.DeleteOperation(operations_pb2.DeleteOperationRequest(name=operation.name))
    missing = error_of(optimizer.operations.GetOperation, operations_pb2.GetOperationRequest(name=operation.name))
    assert isinstance(missing, NotFoundError)


def test_one_job_cancelled_leaves_the_shared_stage_to_the_other(optimizer: OptimizerProcess) -> None:
    model = optimizer.model(convert="slow")
    one, two = optimizer.optimize(model), optimizer.optimize(model)
    optimizer.await_stage(one.name, "convert")
    optimizer.await_stage(two.name, "convert")
    optimizer.operations.CancelOperation(operations_pb2.CancelOperationRequest(name=one.name))
    with pytest.raises(CancelledError):
        optimizer.result(one)
    assert optimizer.result(two)


def test_a_request_id_is_one_operation(optimizer: OptimizerProcess) -> None:
    model = optimizer.model()
    identifier = str(uuid4())
    calls = [
        optimizer.optimizer.Optimize.future(
            pb.OptimizeRequest(
                parent=PARENT,
                model=model,
                targets=[pb.EngineTarget(backend="onnxruntime", precision=FP32)],
                request_id=identifier,
            )
        )
        for _ in range(5)
    ]
    assert len({call.result().name for call in calls}) == 1
    optimizer.result(calls[0].result())
    optimizer.models.DeleteModel(models_pb2.DeleteModelRequest(name=model))
    assert optimizer.optimize(model, request_id=identifier).done


def target(backend: str = "onnxruntime", precision: Any = FP32, **fields: Any) -> pb.EngineTarget:
    return pb.EngineTarget(backend=backend, precision=precision, **fields)


def profile(low: int, best: int, high: int) -> engines_pb2.BatchProfile:
    return engines_pb2.BatchProfile(min=low, opt=best, max=high)


@pytest.mark.parametrize(
    ("fields", "kind", "words"),
    [
        ({"model": f"{PARENT}/models/nobody"}, NotFoundError, "nobody"),
        ({"model": "projects/other/models/m"}, InvalidArgumentError, "not in the request's project"),
        ({"model": "m"}, InvalidArgumentError, "expected"),
        ({"targets": []}, InvalidArgumentError, "0 targets"),
        ({"targets": [target("onnx")]}, InvalidArgumentError, "unknown backend"),
        ({"targets": [target(precision=0)]}, InvalidArgumentError, "precision"),
        ({"targets": [target("tensorflow", INT8)], "calibration": SYNTHETIC}, FailedPreconditionError, "onnxruntime"),
        ({"targets": [target(precision=engines_pb2.PRECISION_FP16)]}, FailedPreconditionError, "tensorrt"),
        ({"targets": [target("tensorrt")]}, FailedPreconditionError, "not installed"),
        ({"targets": [target(), target()]}, InvalidArgumentError, "again"),
        ({"targets": [target(profile=profile(0, 1, 1))]}, InvalidArgumentError, "profile"),
        ({"targets": [target(profile=profile(2, 1, 4))]}, InvalidArgumentError, "profile"),
        ({"targets": [target(options={"intra_op_thread": "1"})]}, InvalidArgumentError, "intra_op_threads"),
        ({"targets": [target(precision=INT8)]}, InvalidArgumentError, "no calibration"),
        (
            {"targets": [target(precision=INT8)], "calibration": pb.CalibrationSpec()},
            InvalidArgumentError,
            "no data",
        ),
        (
            {"calibration": pb.CalibrationSpec(percentile=99, synthetic=pb.SyntheticData())},
            InvalidArgumentError,
            "percentile",
        ),
        (
            {"calibration": pb.CalibrationSpec(synthetic=pb.SyntheticData(distribution="cauchy"))},
            InvalidArgumentError,
            "cauchy",
        ),
        ({"calibration": pb.CalibrationSpec(dataset=f"{PARENT}/datasets/none")}, NotFoundError, "none"),
        ({"calibration": pb.CalibrationSpec(dataset="projects/o/datasets/d")}, InvalidArgumentError, "project"),
        ({"verification": pb.VerificationSpec(max_samples=-1)}, InvalidArgumentError, "max_samples"),
        ({"verification": pb.VerificationSpec(minimum_relative_accuracy=2)}, InvalidArgumentError, "0 to 1"),
        ({"verification": pb.VerificationSpec(minimum_sqnr_db=float("nan"))}, InvalidArgumentError, "sqnr"),
        ({"input_layout": "nhwc"}, InvalidArgumentError, "keep, nchw"),
        ({"request_id": "not-a-uuid"}, InvalidArgumentError, "UUID"),
        ({"parent": "default"}, InvalidArgumentError, "projects/"),
    ],
)
def test_requests_that_are_refused(
    optimizer: OptimizerProcess, fields: dict[str, Any], kind: type[EnginehouseError], words: str
) -> None:
    error = error_of(optimizer.optimize, **{"model": optimizer.model(), **fields})
    assert isinstance(error, kind) and words in error.message, error


def test_a_table_that_was_not_uploaded(optimizer: OptimizerProcess) -> None:
    calibration = pb.CalibrationSpec(table="sha256:" + "0" * 64)
    error = error_of(optimizer.optimize, optimizer.model(), INT8, calibration=calibration)
    assert isinstance(error, FailedPreconditionError) and "upload it" in error.message


def test_verification_uses_the_calibration_data_by_default(optimizer: OptimizerProcess) -> None:
    dataset = optimizer.dataset(npz(x=np.zeros((4, 4), np.float32), labels=np.arange(4)))
    calibration = pb.CalibrationSpec(dataset=dataset.name, method=pb.CALIBRATION_METHOD_MAX)
    (engine,) = optimizer.result(optimizer.optimize(optimizer.model(), INT8, calibration=calibration))
    assert engine.verification.data == dataset.name
    stages = {stage.name: stage for stage in _manifest(optimizer, engine).stages}
    assert stages["verify onnxruntime int8"].inputs["dataset"] == dataset.blob
    assert stages["calibrate"].params == {"method": "max", "max_samples": 2**31 - 1}
    assert stages["quantize onnxruntime"].params == {"dialect": "onnxruntime", "exclude": []}


def test_an_engine_verified_on_other_data_is_not_built_again(optimizer: OptimizerProcess) -> None:
    model = optimizer.model()
    (first,) = optimizer.result(optimizer.optimize(model))
    dataset = optimizer.dataset(npz(x=np.zeros((4, 4), np.float32)))
    again = optimizer.optimize(model, verification=pb.VerificationSpec(dataset=dataset.name))
    (second,) = optimizer.result(again)
    assert optimizer.states(again.name)["build onnxruntime fp32"] == "REUSED"
    assert (second.name, second.files, second.create_time) == (first.name, first.files, first.create_time)
    assert (first.verification.data, second.verification.data) == ("synthetic", dataset.name)
    assert optimizer.engines.GetEngine(engines_pb2.GetEngineRequest(name=first.name)) == second
    assert _manifest(optimizer, second).verification["data"] == dataset.name


def test_operations_are_listed_filtered_and_awaited(optimizer: OptimizerProcess) -> None:
    finished = optimizer.optimize(optimizer.model())
    optimizer.result(finished)
    model = optimizer.model(convert="hang")
    hanging = optimizer.optimize(model)

    def names(text: str) -> list[str]:
        request = operations_pb2.ListOperationsRequest(name=PARENT, filter=text, page_size=1000)
        return [operation.name for operation in optimizer.operations.ListOperations(request).operations]

    assert names(f'model="{model}"') == [hanging.name]
    assert names(f'model="{model}" AND done=true') == []
    assert hanging.name in names("done=false") and finished.name not in names("done=false")
    assert finished.name in names("state=SUCCEEDED") and hanging.name not in names("state=SUCCEEDED")
    assert names("")[:2] == [hanging.name, finished.name]
    created = optimizer.metadata(hanging.name).create_time.ToJsonString()
    assert names(f'create_time>="{created}"') == [hanging.name]
    assert hanging.name not in names(f"create_time<{created}") and finished.name in names(f"create_time<{created}")
    paged: list[str] = []
    request = operations_pb2.ListOperationsRequest(name=f"{PARENT}/operations", page_size=3)
    while True:
        page = optimizer.operations.ListOperations(request)
        paged += [operation.name for operation in page.operations]
        request.page_token = page.next_page_token
        if not request.page_token:
            break
    assert paged == names("")
    for wrong in ("colour=red", "done=maybe", "state=NOPE", "done", "create_time>noon", "state>1", "create_time=1"):
        assert isinstance(
            error_of(
                optimizer.operations.ListOperations,
                operations_pb2.ListOperationsRequest(name=PARENT, filter=wrong),
            ),
            InvalidArgumentError,
        )
    wait = operations_pb2.WaitOperationRequest(name=hanging.name, timeout=Duration(nanos=200_000_000))
    assert not optimizer.operations.WaitOperation(wait).done
    waiting = optimizer.operations.WaitOperation.future(operations_pb2.WaitOperationRequest(name=hanging.name))
    optimizer.operations.CancelOperation(operations_pb2.CancelOperationRequest(name=hanging.name))
    assert waiting.result(timeout=10).error.code == 1


def test_a_damaged_stage_result_is_made_again(start: Start) -> None:
    server = start()
    model = server.model()
    (engine,) = server.result(server.optimize(model))
    assert server.stop() == 0
    payload = next(file for file in engine.files if file.path == "model.bin")
    digits = payload.digest.partition(":")[2]
    blob = server.data_dir / "projects" / "default" / "blobs" / "sha256" / digits[:2] / digits
    blob.chmod(0o644)
    blob.write_bytes(b"damaged")
    server.start()
    request = blobs_pb2.ReadBlobRequest(parent=PARENT, digest=payload.digest)
    assert error_of(server.blobs.ReadBlob, request).reason == "DATA_LOSS"
    operation = server.optimize(model)
    assert server.result(operation) == [engine]
    assert server.states(operation.name)["build onnxruntime fp32"] == "SUCCEEDED"
    assert server.states(operation.name)["convert"] == "REUSED"
    assert server.download(payload.digest)


def test_the_queue_is_bounded(start: Start) -> None:
    server = start(ENGINEHOUSE_MAX_QUEUED_JOBS="1", ENGINEHOUSE_MAX_RUNNING_JOBS="1")
    running = server.optimize(server.model(freeze="hang"))
    server.await_stage(running.name, "freeze")
    queued = server.optimize(server.model())
    full = error_of(server.optimize, server.model())
    assert isinstance(full, ResourceExhaustedError) and full.retry_after_seconds == 10.0
    server.operations.CancelOperation(operations_pb2.CancelOperationRequest(name=queued.name))
    with pytest.raises(CancelledError):
        server.result(queued)
    after = server.optimize(server.model())
    server.operations.CancelOperation(operations_pb2.CancelOperationRequest(name=running.name))
    assert server.result(after)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_jobs_survive_the_service(start: Start, number: signal.Signals) -> None:
    server = start(ENGINEHOUSE_MAX_RUNNING_JOBS="1")
    model = server.model(convert="slow")
    running, queued = server.optimize(model), server.optimize(server.model())
    server.await_stage(running.name, "convert", message="step")
    before = _some(server, running.name)
    pids = server.stage_pids()
    began = time.monotonic()
    server.stop(number)
    assert time.monotonic() - began < 5, "streams and stages must not hold the service up"
    assert all(gone(pid) for pid in pids)
    server.start()
    assert server.result(running) and server.result(queued)
    states = server.states(running.name)
    assert states["freeze"] == "REUSED" and states["convert"] == "SUCCEEDED"
    events = list(server.watch(running.name))
    assert events[: len(before)] == before, "what was told stays told"
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert not list((server.data_dir / "work").glob("*"))


def _some(server: OptimizerProcess, name: str) -> list[pb.OperationEvent]:
    """The events so far."""
    events = []
    try:
        for event in server.watch(name, timeout=0.3):
            events.append(event)
    except grpc.RpcError:
        pass
    return events


def test_waiting_jobs_start_by_priority_also_after_a_restart(start: Start, tmp_path: Path) -> None:
    server = start(ENGINEHOUSE_MAX_RUNNING_JOBS="1")
    gate = tmp_path / "gate"
    running = server.optimize(server.model(freeze="gate", gate=str(gate)), priority=100)
    server.await_stage(running.name, "freeze")
    low, middle, high = (server.optimize(server.model(), priority=priority) for priority in (-1, 0, 50))
    server.stop(signal.SIGKILL)
    gate.touch()
    server.start()
    for operation in (running, low, middle, high):
        assert server.result(operation)
    begun = [server.metadata(job.name).start_time.ToNanoseconds() for job in (running, high, middle, low)]
    assert begun == sorted(begun)
    wrong = error_of(server.optimize, server.model(), priority=101)
    assert isinstance(wrong, InvalidArgumentError) and "-100 to 100" in wrong.message


def test_a_cancelled_job_stays_cancelled_over_a_crash(start: Start) -> None:
    server = start(ENGINEHOUSE_STAGE_GRACE_SECONDS="60")
    operation = server.optimize(server.model(convert="stubborn"))
    server.await_stage(operation.name, "convert", message="child")
    server.operations.CancelOperation(operations_pb2.CancelOperationRequest(name=operation.name))
    server.stop(signal.SIGKILL)
    server.start()
    with pytest.raises(CancelledError):
        server.result(operation)


def test_streams_end_when_the_service_stops(start: Start) -> None:
    server = start()
    operation = server.optimize(server.model(convert="hang"))
    ends: list[grpc.StatusCode] = []

    def watch() -> None:
        try:
            for _ in server.watch(operation.name):
                pass
        except grpc.RpcError as error:
            ends.append(error.code())

    thread = threading.Thread(target=watch)
    thread.start()
    server.await_stage(operation.name, "convert")
    assert server.process is not None
    server.process.send_signal(signal.SIGTERM)
    thread.join(10)
    assert ends == [grpc.StatusCode.UNAVAILABLE]
    assert server.process.wait(10) == 0


def test_a_second_optimizer_on_the_folder_is_refused(start: Start) -> None:
    server = start()
    assert server.process is not None
    second = subprocess.run(server.command, env=server.variables, capture_output=True, text=True, timeout=20)
    assert second.returncode == 1
    assert f"another optimizer (process {server.process.pid})" in second.stderr


def test_wrong_settings_are_named(start: Start) -> None:
    server = start()
    variables = {**server.variables, "ENGINEHOUSE_MAX_QUEUED_JOBS": "many"}
    wrong = subprocess.run(server.command, env=variables, capture_output=True, text=True, timeout=20)
    assert wrong.returncode == 2 and "max_queued_jobs" in wrong.stderr


def test_environments_that_are_missing_or_broken(start: Start) -> None:
    server = start(**fake_workers("tensorflow"))
    missing = error_of(server.optimize, server.model())
    assert isinstance(missing, FailedPreconditionError) and "'onnxruntime' is not installed" in missing.message
    broken = start(ENGINEHOUSE_WORKER_PATH=os.devnull)
    error = error_of(broken.optimize, broken.model())
    assert isinstance(error, FailedPreconditionError) and "does not work" in error.message


def test_limits_on_stages(start: Start) -> None:
    server = start(ENGINEHOUSE_STAGE_TIMEOUT_SECONDS="4", ENGINEHOUSE_STAGE_MEMORY_BYTES=str(100 << 20))
    hog, hang = server.optimize(server.model(freeze="hog")), server.optimize(server.model(freeze="hang"))
    with pytest.raises(ResourceExhaustedError, match="memory"):
        server.result(hog)
    with pytest.raises(EnginehouseError, match="longer than its limit"):
        server.result(hang)
