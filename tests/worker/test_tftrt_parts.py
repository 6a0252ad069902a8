"""TF-TRT without TensorFlow: options, counting ops, reading which engines were built, batches to calibrate with."""

from __future__ import annotations

import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from enginehouse_worker.backends import registry
from enginehouse_worker.backends.base import BatchProfile, Signature, TensorSpec
from enginehouse_worker.backends.calibrating import CalibratingBackend
from enginehouse_worker.backends.tensorflow.device import DeviceFacts
from enginehouse_worker.backends.tftrt import BACKEND
from enginehouse_worker.backends.tftrt.batches import building_batches, calibration_batches, check_convertible
from enginehouse_worker.backends.tftrt.builder import check_built
from enginehouse_worker.backends.tftrt.counts import Conversion, count
from enginehouse_worker.backends.tftrt.options import build_options
from enginehouse_worker.backends.tftrt.records import PREFIX, engine_batches
from enginehouse_worker.backends.tftrt.rewriting import forbid, rename
from enginehouse_worker.backends.tftrt.runtime import check_fits, free_suffix, require_gpu, take
from enginehouse_worker.errors import WorkerError
from enginehouse_worker.synthetic import SyntheticDataset
from hypothesis import given
from hypothesis import strategies as st

PROFILE = BatchProfile(1, 8, 64)
IMAGES = Signature((TensorSpec("image", "FP32", (-1, 4, 4, 3)),), (TensorSpec("y", "FP32", (-1, 2)),), batched=True)


def refusal(code: str, *arguments: Any) -> str:
    function, *rest = arguments
    with pytest.raises(WorkerError) as refused:
        function(*rest)
    assert refused.value.code == code
    return refused.value.message


def test_engines_are_built_for_the_profile_unless_batches_are_named() -> None:
    assert build_options({}, "FP16", PROFILE).batches == (1, 8, 64)
    assert build_options({"batches": "64, 1,16"}, "FP32", PROFILE).batches == (1, 16, 64)
    assert build_options({}, "INT8", PROFILE).batches == (64,)
    assert not build_options({}, "FP16", PROFILE).build_at_runtime
    assert build_options({"build_at_runtime": "true"}, "FP16", PROFILE).build_at_runtime


@pytest.mark.parametrize("batches", ["", "1,8", "0,64", "1,65", "1;64", "1,64,", "-1,64"])
def test_batches_that_leave_some_of_the_profile_without_an_engine_are_refused(batches: str) -> None:
    message = refusal("INVALID_ARGUMENT", build_options, {"batches": batches}, "FP16", PROFILE)
    assert "'batches'" in message and "1 to 64" in message


def test_int8_has_one_engine() -> None:
    assert build_options({"batches": "64"}, "INT8", PROFILE).batches == (64,)
    message = refusal("INVALID_ARGUMENT", build_options, {"batches": "1,64"}, "INT8", PROFILE)
    assert "one engine" in message and "64" in message


def test_unknown_options_and_precisions_are_named() -> None:
    assert "did you mean 'batches'" in refusal("INVALID_ARGUMENT", build_options, {"batch": "1"}, "FP16", PROFILE)
    assert "BF16" in refusal("FAILED_PRECONDITION", build_options, {}, "BF16", PROFILE)
    assert "intra" in refusal("INVALID_ARGUMENT", build_options, {"intra_op_threads": "many"}, "FP16", PROFILE)


def node(op: str, name: str = "", segment: str = "") -> SimpleNamespace:
    function = SimpleNamespace(func=SimpleNamespace(name=segment))
    return SimpleNamespace(op=op, name=name or op, attr={"segment_func": function} if segment else {})


def function(name: str, *nodes: SimpleNamespace) -> SimpleNamespace:
    return SimpleNamespace(signature=SimpleNamespace(name=name), node_def=list(nodes))


def test_ops_are_counted_where_they_run() -> None:
    """Engines inside a function of the library count, and so do ops that it leaves to TensorFlow."""
    graph = SimpleNamespace(
        node=[node("Placeholder"), node("TRTEngineOp", "a", "a_native"), node("ArgMax"), node("PartitionedCall")],
        library=SimpleNamespace(
            function=[
                function("a_native", node("Const"), node("Conv2D"), node("Relu", "r1"), node("Relu", "r2")),
                function("inner", node("TRTEngineOp", "b", "b_native"), node("TopKV2"), node("ArgMax", "second")),
                function("b_native", node("MatMul"), node("Identity")),
            ]
        ),
    )
    found = count(graph)
    assert found == Conversion(("a", "b"), 4, {"ArgMax": 2, "TopKV2": 1})
    assert found.to_json()["tensorflow_ops"] == 3


def varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out, value = out + bytes([value & 0x7F | 0x80]), value >> 7
    return out + bytes([value])


def field(number: int, data: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(data)) + data


def record(shape: list[int], plan: bytes, inputs: int = 1) -> bytes:
    shapes = field(1, b"".join(field(2, varint(1 << 3) + varint(size)) for size in shape)) * inputs
    data = shapes + field(2, plan)
    return struct.pack("<QI", len(data), 0) + data + b"\0\0\0\0"


@given(st.lists(st.tuples(st.integers(1, 70000), st.integers(0, 5000), st.integers(1, 9)), max_size=4))
def test_batch_sizes_of_engines_are_read_from_their_files(
    tmp_path_factory: pytest.TempPathFactory, engines: list[tuple[int, int, int]]
) -> None:
    folder = tmp_path_factory.mktemp("saved_model")
    (folder / "assets").mkdir()
    file = folder / "assets" / f"{PREFIX}TRTEngineOp_000_000"
    file.write_bytes(b"".join(record([batch, 224, 224, 3], bytes(size), inputs) for batch, size, inputs in engines))
    assert engine_batches(folder) == {"TRTEngineOp_000_000": tuple(sorted(batch for batch, _, _ in engines))}


@pytest.mark.parametrize("damage", [lambda d: d[:-1], lambda d: b"\x10" + d, lambda d: d[:12] + b"\0" * 40 + d[52:]])
def test_a_damaged_engine_file_is_named(tmp_path: Path, damage: Any) -> None:
    (tmp_path / "assets").mkdir()
    (tmp_path / "assets" / f"{PREFIX}x").write_bytes(damage(record([8, 3], bytes(100))))
    assert PREFIX + "x" in refusal("INTERNAL", engine_batches, tmp_path)


def test_a_graph_without_any_engine_is_refused(capfd: pytest.CaptureFixture[str]) -> None:
    converted = Conversion(("a", "b"), 10, {})
    assert "built no engine" in refusal("FAILED_PRECONDITION", check_built, converted, {"a": ()})
    check_built(converted, {"a": (1, 8)})
    assert "no engine for b" in capfd.readouterr().err


@given(st.integers(1, 40), st.integers(1, 16))
def test_calibration_shows_every_sample_in_batches_of_one_size(samples: int, size: int) -> None:
    data = SyntheticDataset({"samples": samples}, IMAGES, None)
    reports: list[tuple[int, int]] = []
    batches = [batch["image"] for batch in calibration_batches(data, size, lambda *r: reports.append(r))()]
    assert {batch.shape for batch in batches} == {(size, 4, 4, 3)}
    shown = {row.tobytes() for batch in batches for row in batch}
    assert shown == {row.tobytes() for batch in data.batches(samples) for row in batch["image"]}
    assert reports[-1] == (samples, samples)


def test_engines_are_built_from_the_smallest_on() -> None:
    told: list[int] = []
    shown = [len(batch["image"]) for batch in building_batches(IMAGES, (64, 1, 8), told.append)()]
    assert shown == told == [1, 8, 64]


def test_models_that_have_no_fixed_shape_per_image_are_refused() -> None:
    check_convertible(IMAGES)
    wide = Signature((TensorSpec("image", "FP32", (-1, -1, 4, 3)),), IMAGES.outputs, batched=True)
    assert "'image'" in refusal("FAILED_PRECONDITION", check_convertible, wide)
    single = Signature(IMAGES.inputs, IMAGES.outputs, batched=False)
    assert "batch dimension" in refusal("FAILED_PRECONDITION", check_convertible, single)


def test_an_engine_of_another_gpu_or_version_is_refused_with_both_named() -> None:
    h200 = DeviceFacts("gpu", "NVIDIA H200", "9.0", "580.1")
    engine = {"backend_version": "2.14.1+tensorrt8.5.3.1", "precision": "FP16", "device": h200.to_json()}
    check_fits(engine, "2.14.1+tensorrt8.5.3.1", h200)
    message = refusal(
        "FAILED_PRECONDITION", check_fits, engine, "2.14.1+tensorrt8.5.3.1", DeviceFacts("gpu", "L4", "8.9")
    )
    assert "NVIDIA H200" in message and "L4" in message and "tf-trt:fp16" in message
    message = refusal("FAILED_PRECONDITION", check_fits, engine, "2.15.0+tensorrt8.6.1", h200)
    assert "2.14.1+tensorrt8.5.3.1" in message and "2.15.0+tensorrt8.6.1" in message


def test_it_runs_on_gpus_only() -> None:
    refusal("FAILED_PRECONDITION", lambda: require_gpu("cpu", tf32=None))


def test_it_takes_calibration_data_and_is_known_by_name() -> None:
    assert isinstance(BACKEND, CalibratingBackend)
    assert "tf-trt" in registry.names()
    assert not isinstance(registry.get("onnxruntime"), CalibratingBackend)
    if not registry.framework_version("tf-trt"):
        assert "tensorflow before 2.18 with tensorrt" in refusal("FAILED_PRECONDITION", registry.get, "tf-trt")


def test_rows_stay_what_they_are_when_a_batch_is_filled_up() -> None:
    data = SyntheticDataset({"samples": 3}, IMAGES, None)
    (batch,) = calibration_batches(data, 8, lambda *_: None)()
    (alone,) = data.batches(3)
    np.testing.assert_array_equal(batch["image"], alone["image"][[0, 1, 2, 0, 1, 2, 0, 1]])


def test_engines_are_renamed_with_everything_that_refers_to_them() -> None:
    """TensorFlow refuses to load a second SavedModel whose engines have the names of the first's."""

    def renamable(op: str, name: str, *inputs: str) -> SimpleNamespace:
        return SimpleNamespace(op=op, name=name, input=list(inputs), attr={"resource_name": SimpleNamespace(s=b"a")})

    body = [renamable("TRTEngineOp", "a", "x"), renamable("Relu", "ab", "a:out_tensor:0", "^a", "ab:y:0")]
    inner = SimpleNamespace(node_def=body, ret={"y": "a:out_tensor:0", "z": "ab:y:0"}, control_ret={"c": "a"})
    graph = SimpleNamespace(
        node=[
            renamable("CreateTRTResourceHandle", "h"),
            renamable("TRTEngineOp", "b"),
            renamable("Add", "c", "b:1", "a"),
        ],
        library=SimpleNamespace(function=[inner]),
    )
    rename(graph, "_7")
    assert [n.name for n in (*graph.node, *body)] == ["h", "b_7", "c", "a_7", "ab"]
    assert graph.node[0].attr["resource_name"].s == b"a_7"
    assert graph.node[2].input == ["b_7:1", "a"], "an op of that name in a function is another"
    assert body[1].input == ["a_7:out_tensor:0", "^a_7", "ab:y:0"]
    assert inner.ret == {"y": "a_7:out_tensor:0", "z": "ab:y:0"} and inner.control_ret == {"c": "a_7"}


def test_engine_ops_are_kept_from_building_while_serving() -> None:
    def engine() -> SimpleNamespace:
        return SimpleNamespace(op="TRTEngineOp", attr={"_allow_build_at_runtime": SimpleNamespace(b=True)})

    inner = SimpleNamespace(node_def=[engine()])
    graph = SimpleNamespace(node=[engine(), node("Relu")], library=SimpleNamespace(function=[inner]))
    forbid(graph)
    assert not graph.node[0].attr["_allow_build_at_runtime"].b
    assert not inner.node_def[0].attr["_allow_build_at_runtime"].b


def test_no_name_is_used_twice() -> None:
    """The first of a process has its own names; others, and one that comes again, get new ones."""
    assert free_suffix(["test_a", "test_b"]) == ""
    take(["test_a", "test_b"])
    second = free_suffix(["test_b"])
    assert second and free_suffix(["test_a"]) not in ("", second)
    assert free_suffix(["test_c"]) == ""
