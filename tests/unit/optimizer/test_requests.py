"""What a request means: formats, data, and what contradicts itself."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
from enginehouse_optimizer.api.file_kinds import check_model_file, kind_of, model_file
from enginehouse_optimizer.api.model_checks import check_preprocessing, file_digest, zoo_digest
from enginehouse_optimizer.api.resolution import resolve
from enginehouse_optimizer.pipeline.inputs import AutomaticExclusion, Inputs, Preprocessing, TfRecord
from enginehouse_optimizer.pipeline.plan import Output, Upload
from enginehouse_optimizer.pipeline.planner import make_plan

from enginehouse.errors import FailedPreconditionError, InvalidArgumentError
from enginehouse.names import ResourceName
from enginehouse.v1 import engines_pb2, models_pb2
from enginehouse.v1 import optimizer_pb2 as pb

BLOB = "sha256:" + "a" * 64
TABLE = "sha256:" + "c" * 64
PARENT = "projects/p"
KERAS = models_pb2.Model(format=models_pb2.MODEL_FORMAT_KERAS, blob=BLOB, file_name="m.keras")
ONNX = models_pb2.Model(format=models_pb2.MODEL_FORMAT_ONNX, blob=BLOB, file_name="m.onnx")
ZOO = models_pb2.Model(
    format=models_pb2.MODEL_FORMAT_ZOO, zoo=models_pb2.ZooSource(architecture="resnet_v1_50", weights=TABLE, classes=10)
)
FP32 = pb.EngineTarget(backend="onnxruntime", precision=engines_pb2.PRECISION_FP32)
INT8 = pb.EngineTarget(backend="onnxruntime", precision=engines_pb2.PRECISION_INT8)
TENSORFLOW = pb.EngineTarget(backend="tensorflow", precision=engines_pb2.PRECISION_FP32)
SYNTHETIC = pb.SyntheticData(samples=4)
NPZ = models_pb2.Dataset(blob=BLOB)
IMAGES = models_pb2.Dataset(blob=BLOB, format=models_pb2.DATASET_FORMAT_IMAGES, file_name="photos.tar.gz")
RECORDS = models_pb2.Dataset(
    blob=BLOB,
    format=models_pb2.DATASET_FORMAT_TFRECORD,
    tfrecord=models_pb2.TfRecordFeatures(image="jpeg", label_offset=1),
)


def inputs(model: models_pb2.Model, dataset: models_pb2.Dataset = NPZ, **fields: Any) -> Inputs:
    stored, data = models_pb2.Model(), models_pb2.Dataset()
    stored.CopyFrom(model)
    stored.name = f"{PARENT}/models/m"
    data.CopyFrom(dataset)
    data.name = f"{PARENT}/datasets/d"

    def find_model(name: ResourceName) -> models_pb2.Model:
        return stored

    def find_dataset(name: ResourceName) -> models_pb2.Dataset:
        return data

    request = pb.OptimizeRequest(**{"parent": PARENT, "model": stored.name, "targets": [FP32], **fields})
    return resolve("p", request, find_model, find_dataset)


def stages(inputs: Inputs) -> dict[str, Any]:
    return {stage.name: stage for stage in make_plan(inputs, {}).stages}


@pytest.mark.parametrize(
    ("model", "format_name", "file_name"),
    [
        (KERAS, "keras", "model.keras"),
        (models_pb2.Model(format=models_pb2.MODEL_FORMAT_KERAS_HDF5, blob=BLOB), "keras_hdf5", "model.h5"),
        (
            models_pb2.Model(format=models_pb2.MODEL_FORMAT_SAVED_MODEL, blob=BLOB, file_name="x.tar"),
            "saved_model",
            "model.tar",
        ),
        (
            models_pb2.Model(format=models_pb2.MODEL_FORMAT_FROZEN_GRAPH, blob=BLOB, file_name="g.pb"),
            "frozen_graph",
            "model.pb",
        ),
    ],
)
def test_tensorflow_models_are_frozen_and_converted(model: models_pb2.Model, format_name: str, file_name: str) -> None:
    model.import_options.outputs.append("y:0")
    found = stages(inputs(model))
    assert found["freeze"].inputs == {"model": Upload(BLOB, file_name)}
    assert found["freeze"].params == {"format": format_name, "import": {"outputs": ["y:0"]}}
    assert found["reference"].inputs["model"] == Output("convert")
    model.ClearField("import_options")


def test_an_onnx_model_is_imported() -> None:
    found = stages(inputs(ONNX, targets=[FP32, INT8], calibration=pb.CalibrationSpec(synthetic=SYNTHETIC)))
    assert "freeze" not in found and "convert" not in found
    assert found["import"].inputs == {"model": Upload(BLOB, "model.onnx")}
    assert found["import"].environment == "onnxruntime"
    assert found["build onnxruntime fp32"].inputs == {"model": Output("import")}
    assert found["calibrate"].inputs["model"] == Output("import")


def test_a_zoo_model_may_have_weights_and_classes() -> None:
    freeze = stages(inputs(ZOO))["freeze"]
    assert freeze.params == {"zoo": {"architecture": "resnet_v1_50", "seed": 0, "classes": 10}}
    assert freeze.inputs == {"weights": Upload(TABLE, "weights.h5")}


def test_images_are_prepared_once_for_all_who_need_them() -> None:
    calibration = pb.CalibrationSpec(dataset=f"{PARENT}/datasets/d")
    found = stages(inputs(ZOO, IMAGES, targets=[INT8], calibration=calibration))
    prepare = found["prepare d"]
    assert prepare.inputs == {"model": Output("convert"), "dataset": Upload(BLOB, "data.tar.gz")}
    assert prepare.params == {"format": "images", "central_fraction": 0.875, "resampling": "bilinear"}
    for name in ("calibrate", "reference", "verify onnxruntime int8"):
        assert found[name].inputs["dataset"] == Output("prepare d")
        assert found[name].params["preprocessing"]["bgr"] is True


def test_records_name_their_features() -> None:
    verification = pb.VerificationSpec(dataset=f"{PARENT}/datasets/d", max_samples=5)
    given = inputs(KERAS, RECORDS, verification=verification)
    assert given.verification.data.tfrecord == TfRecord("jpeg", "image/class/label", 1)
    prepare = stages(given)["prepare d (5 samples)"]
    assert prepare.params["tfrecord"] == {"image": "jpeg", "label": "image/class/label", "label_offset": 1}
    assert Inputs.from_json(given.to_json()) == given


def test_preprocessing_is_folded_into_the_graph_when_asked() -> None:
    calibration = pb.CalibrationSpec(dataset=f"{PARENT}/datasets/d")
    given = inputs(ZOO, IMAGES, targets=[INT8], calibration=calibration, fold_preprocessing=True)
    found = stages(given)
    assert found["preprocess"].inputs == {"model": Output("convert")}
    assert found["preprocess"].params["preprocessing"]["mean"] == [103.939, 116.779, 123.68]
    assert found["calibrate"].inputs["model"] == Output("preprocess")
    assert found["prepare d"].inputs["model"] == Output("convert")
    assert "preprocessing" not in found["calibrate"].params
    with pytest.raises(FailedPreconditionError, match="has no preprocessing"):
        inputs(KERAS, fold_preprocessing=True)
    with pytest.raises(FailedPreconditionError, match="tensorflow engines are built from"):
        inputs(ZOO, fold_preprocessing=True, targets=[TENSORFLOW])


def test_layers_are_left_out_by_sensitivity() -> None:
    calibration = pb.CalibrationSpec(
        synthetic=SYNTHETIC, exclude=["Gemm"], automatic_exclusion=pb.AutomaticExclusion(max_layers=3)
    )
    given = inputs(KERAS, targets=[INT8], calibration=calibration, verification=pb.VerificationSpec(per_layer=True))
    assert given.calibration is not None and given.calibration.automatic == AutomaticExclusion(20.0, 3, 0)
    plan = make_plan(given, {})
    found = {stage.name: stage for stage in plan.stages}
    sensitivity = found["sensitivity onnxruntime"]
    assert sensitivity.params["minimum_sqnr_db"] == 20.0 and sensitivity.params["exclude"] == ["Gemm"]
    assert found["quantize onnxruntime"].inputs["sensitivity"] == Output("sensitivity onnxruntime")
    assert found["layers onnxruntime"].inputs["quantized"] == Output("quantize onnxruntime")
    (engine,) = plan.engines
    assert (engine.sensitivity, engine.layers) == ("sensitivity onnxruntime", "layers onnxruntime")


def test_sensitivity_says_nothing_of_fp8() -> None:
    fp8 = pb.EngineTarget(backend="tensorrt", precision=engines_pb2.PRECISION_FP8)
    calibration = pb.CalibrationSpec(synthetic=SYNTHETIC)
    assert stages(inputs(KERAS, targets=[fp8], calibration=calibration))["quantize tensorrt fp8"]
    calibration.automatic_exclusion.SetInParent()
    with pytest.raises(InvalidArgumentError, match="a target is FP8"):
        inputs(KERAS, targets=[fp8], calibration=calibration)


def test_a_refused_engine_has_a_stage_that_finds_the_layers_to_blame() -> None:
    given = inputs(KERAS, targets=[FP32, INT8], calibration=pb.CalibrationSpec(synthetic=SYNTHETIC))
    plan = make_plan(given, {})
    blame = [engine.blame for engine in plan.engines]
    assert blame[0] is None and blame[1] is not None
    assert blame[1].params["max_layers"] == 0 and blame[1].params["max_samples"] == 8
    assert [stage.stage for stage in plan.with_stage(blame[1]).stages] == [
        "freeze", "convert", "calibrate", "sensitivity"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("calibration", "named"),
    [
        ({"table": TABLE}, "calibration.table"),
        ({"synthetic": SYNTHETIC, "method": pb.CALIBRATION_METHOD_MAX}, "calibration.method MAX"),
        ({"synthetic": SYNTHETIC, "exclude": ["Gemm"]}, "calibration.exclude"),
        ({"synthetic": SYNTHETIC, "automatic_exclusion": pb.AutomaticExclusion()}, "calibration.automatic_exclusion"),
    ],
)
def test_tf_trt_calibrates_its_own_way(calibration: dict[str, Any], named: str) -> None:
    target = pb.EngineTarget(backend="tf-trt", precision=engines_pb2.PRECISION_INT8)
    with pytest.raises(InvalidArgumentError, match=named):
        inputs(KERAS, targets=[INT8, target], calibration=pb.CalibrationSpec(**calibration))
    plain = pb.CalibrationSpec(synthetic=SYNTHETIC)
    assert stages(inputs(KERAS, targets=[target], calibration=plain))["build tf-trt int8"].params["synthetic"]
    half = pb.EngineTarget(backend="tf-trt", precision=engines_pb2.PRECISION_FP16)
    inputs(KERAS, targets=[INT8, half], calibration=pb.CalibrationSpec(**calibration))


def test_a_table_stands_for_a_calibration() -> None:
    given = inputs(KERAS, targets=[INT8], calibration=pb.CalibrationSpec(table=TABLE, exclude=["a"]))
    calibrate = stages(given)["calibrate"]
    assert calibrate.inputs == {"model": Output("convert"), "table": Upload(TABLE, "calibration.json")}
    assert calibrate.params == {}
    assert given.verification.data.synthetic is not None
    for wrong in (
        {"method": pb.CALIBRATION_METHOD_MAX},
        {"max_samples": 3},
        {"automatic_exclusion": pb.AutomaticExclusion()},
    ):
        with pytest.raises(InvalidArgumentError, match="does not go with"):
            inputs(KERAS, targets=[INT8], calibration=pb.CalibrationSpec(table=TABLE, **wrong))  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="digest"):
        inputs(KERAS, targets=[INT8], calibration=pb.CalibrationSpec(table="nothing"))


@pytest.mark.parametrize(
    ("model", "fields", "words"),
    [
        (ONNX, {"targets": [TENSORFLOW]}, "ONNX model"),
        (ONNX, {"input_layout": "nchw"}, "ONNX model"),
        (KERAS, {"priority": 101}, "-100 to 100"),
    ],
)
def test_requests_that_cannot_be(model: models_pb2.Model, fields: dict[str, Any], words: str) -> None:
    with pytest.raises((FailedPreconditionError, InvalidArgumentError), match=words):
        inputs(model, **fields)


def _archive(kind: str) -> bytes:
    stream = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(stream, "w") as file:
            file.writestr("saved_model.pb", b"x")
        return stream.getvalue()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        info = tarfile.TarInfo("saved_model.pb")
        info.size = 1
        tar.addfile(info, io.BytesIO(b"x"))
    return gzip.compress(stream.getvalue()) if kind == "gzip" else stream.getvalue()


@pytest.mark.parametrize(("kind", "suffix"), [("zip", ".zip"), ("tar", ".tar"), ("gzip", ".tar.gz")])
def test_an_archive_keeps_a_name_that_says_what_it_is(tmp_path: Path, kind: str, suffix: str) -> None:
    path = tmp_path / "blob"
    path.write_bytes(_archive(kind))
    assert kind_of(path) == kind
    for model_format in (models_pb2.MODEL_FORMAT_SAVED_MODEL, models_pb2.MODEL_FORMAT_ONNX):
        name = check_model_file(path, model_format, "net.bin")
        assert name == f"net.bin{suffix}" and model_file(model_format, name) == f"model{suffix}"
        assert check_model_file(path, model_format, f"net{suffix}") == f"net{suffix}"


@pytest.mark.parametrize(
    ("content", "model_format", "words"),
    [
        (b"", models_pb2.MODEL_FORMAT_ONNX, "no bytes"),
        (b"plain", models_pb2.MODEL_FORMAT_KERAS, "not a .keras archive"),
        (b"PK\x03\x04", models_pb2.MODEL_FORMAT_KERAS_HDF5, "zip file"),
        (b"\x08\x03", models_pb2.MODEL_FORMAT_SAVED_MODEL, "SavedModel"),
        (b"\x89HDF\r\n\x1a\n", models_pb2.MODEL_FORMAT_FROZEN_GRAPH, "hdf5 file"),
    ],
)
def test_a_file_of_another_kind_is_refused(
    tmp_path: Path, content: bytes, model_format: models_pb2.ModelFormat.ValueType, words: str
) -> None:
    path = tmp_path / "blob"
    path.write_bytes(content)
    with pytest.raises(InvalidArgumentError, match=words):
        check_model_file(path, model_format, "")


def test_what_determines_a_model() -> None:
    assert file_digest(BLOB, models_pb2.ImportOptions()) == BLOB
    assert file_digest(BLOB, models_pb2.ImportOptions(signature="other")) != BLOB
    plain = zoo_digest(models_pb2.ZooSource(architecture="vgg16"))
    assert plain != zoo_digest(models_pb2.ZooSource(architecture="vgg16", classes=10))
    for wrong in (
        {"architecture": "vgg61"},
        {"architecture": "vgg16", "classes": 1},
        {"architecture": "vgg16", "seed": -1},
    ):
        with pytest.raises(InvalidArgumentError):
            zoo_digest(models_pb2.ZooSource(**wrong))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "fields",
    [
        {"mean": [float("nan")]},
        {"deviation": [0.0]},
        {"central_fraction": 1.5},
        {"resampling": "magic"},
    ],
)
def test_preprocessing_that_cannot_be(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError, match="preprocessing"):
        check_preprocessing(models_pb2.Preprocessing(**fields))


def test_preprocessing_of_a_model_stands_before_the_zoos() -> None:
    model = models_pb2.Model()
    model.CopyFrom(ZOO)
    assert inputs(model).model.preprocessing == Preprocessing((103.939, 116.779, 123.68), (1.0,), True)
    model.preprocessing.mean.append(1.0)
    assert inputs(model).model.preprocessing == Preprocessing((1.0,), (1.0,))
