"""Files made to hurt, through the upload door and the pipeline: each job says what is wrong; the service lives."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from image_files import pixels
from model_files import PREPROCESSING
from real_stack import stack_with

from enginehouse import Calibration, Client, Job, Synthetic, Target, VerificationSpec
from enginehouse.client.values import Model
from enginehouse.client.values.store import StoreTotals
from enginehouse.errors import FailedPreconditionError, InvalidArgumentError

FP32 = [Target("onnxruntime", "fp32")]
BOTH = [*FP32, Target("onnxruntime", "int8")]
SYNTHETIC = Calibration("max", synthetic=Synthetic(samples=4))


@pytest.fixture(scope="module")
def good(client: Client, onnx_models: Path) -> Model:
    return client.models.upload(onnx_models / "colours.onnx", "good", preprocessing=PREPROCESSING)


@pytest.fixture(autouse=True, scope="module")
def unharmed(client: Client, good: Model) -> Iterator[None]:
    """After all of it: no engine, a sound store, nothing half-written, and a service that still works."""
    yield
    assert client.engines.list() == []
    *findings, totals = list(client.store.check())
    assert findings == [] and isinstance(totals, StoreTotals) and totals.engines == 0
    usage = client.store.usage()
    assert (usage.engine_bytes, usage.unfinished_upload_bytes, usage.quarantined_bytes) == (0, 0, 0)
    assert all(job.done for job in client.jobs.list())
    assert len(client.optimize(good, BOTH, calibration=SYNTHETIC).result(120)) == 2


def refused(start: Callable[[], Job], *words: str) -> str:
    """What an upload or its optimization fails with: never an internal error, nor a crash."""
    with pytest.raises((InvalidArgumentError, FailedPreconditionError)) as caught:
        start().result(200)
    message = caught.value.message
    for word in words:
        assert word in message, message
    assert "Traceback" not in message and len(message) < 2000
    return message


@pytest.fixture
def submit(client: Client, tmp_path: Path, request: pytest.FixtureRequest) -> Callable[..., Job]:
    """Upload bytes under a file's name and start to optimize them."""

    def go(data: bytes, name: str, **options: str) -> Job:
        path = tmp_path / name
        path.write_bytes(data)
        identifier = "".join(c if c.isalnum() else "-" for c in request.node.name.lower()).strip("-")[:60]
        return client.optimize(client.models.upload(path, identifier, **options), FP32)

    return go


Submit = Callable[..., Job]


@pytest.mark.parametrize("name", ["x.onnx", "x.keras", "x.h5", "x.pb", "x.zip"])
def test_files_without_a_byte(submit: Submit, name: str) -> None:
    options = {"format": "saved_model"} if name == "x.zip" else {}
    refused(lambda: submit(b"", name, **options))


def test_truncated_onnx(submit: Submit, onnx_models: Path) -> None:
    data = (onnx_models / "colours.onnx").read_bytes()
    refused(lambda: submit(data[: len(data) // 2], "half.onnx"), "stage 'import' failed", "cut short")


def test_onnx_that_is_something_else(submit: Submit) -> None:
    refused(lambda: submit(b"\x89PNG\r\n\x1a\n" + bytes(1000), "picture.onnx"), "stage 'import' failed")


def test_another_format_under_a_keras_name(submit: Submit, onnx_models: Path) -> None:
    refused(lambda: submit((onnx_models / "colours.onnx").read_bytes(), "x.keras"), "is not a .keras archive")


def test_external_data_that_leaves_the_folder(
    client: Client, submit: Submit, onnx_models: Path, tmp_path: Path
) -> None:
    model = (onnx_models / "escaping.onnx").read_bytes()
    # The SDK finds it before it uploads anything ...
    refused(lambda: submit(model, "escaping.onnx"), "secret.bin", "outside its folder")
    # ... and the server when it comes in an archive that somebody else made.
    archive = tmp_path / "escaping.zip"
    with zipfile.ZipFile(archive, "w") as made:
        made.writestr("a/escaping.onnx", model)
        made.writestr("a/weights.bin", bytes(10000))
    uploaded = client.models.upload(archive)
    refused(lambda: client.optimize(uploaded, FP32), "stage 'import' failed", "secret.bin")


def test_archives_that_leave_their_folder(client: Client, tmp_path: Path, onnx_models: Path) -> None:
    model = (onnx_models / "colours.onnx").read_bytes()
    for name, kind, link in (("../evil.onnx", tarfile.REGTYPE, ""), ("x.onnx", tarfile.SYMTYPE, "/etc/passwd")):
        archive = tmp_path / f"evil-{len(link)}.tar"
        with tarfile.open(archive, "w") as made:
            member = tarfile.TarInfo(name)
            member.type, member.linkname, member.size = kind, link, 0 if link else len(model)
            made.addfile(member, None if link else io.BytesIO(model))
        refused(lambda path=archive: client.optimize(client.models.upload(path, format="onnx"), FP32), "archive")  # type: ignore[misc]


def test_weights_that_are_no_numbers(client: Client, onnx_models: Path) -> None:
    model = client.models.upload(onnx_models / "nan.onnx")
    refused(lambda: client.optimize(model, BOTH, calibration=SYNTHETIC), "third", "NaN")


def test_operators_that_nobody_has(client: Client, onnx_models: Path) -> None:
    refused(lambda: client.optimize(client.models.upload(onnx_models / "unknown.onnx"), FP32), "NoSuchOperator")


def test_data_of_a_wrong_shape(client: Client, good: Model) -> None:
    images, labels = pixels(8)
    small = client.datasets.upload({"image": images[:, :12], "labels": labels}, "wrong-shape")
    other = client.datasets.upload({"elsewhere": images}, "wrong-name")
    many = client.datasets.upload({"image": images, "labels": labels + 5}, "wrong-labels")
    for data, words in ((small, ("12", "16")), (other, ("image", "elsewhere"))):
        refused(lambda d=data: client.optimize(good, BOTH, calibration=Calibration("max", dataset=d)), *words)  # type: ignore[misc]
    refused(lambda: client.optimize(good, FP32, verification=VerificationSpec(dataset=many)), "from 5 to 7", "0 to 2")


def test_tables_that_do_not_fit(client: Client, good: Model, tmp_path: Path) -> None:
    cache = tmp_path / "calibration.cache"
    cache.write_text("TRT-8600-EntropyCalibration2\nelsewhere: 3c010204\n")
    refused(lambda: client.optimize(good, BOTH, calibration=Calibration(table=cache)), "lacks", "first_relu")
    cache.write_text("TRT-8600-EntropyCalibration2\nelsewhere: no number\n")
    refused(lambda: client.optimize(good, BOTH, calibration=Calibration(table=cache)), "elsewhere")


def test_onnx_models_have_no_tensorflow_graph(client: Client, good: Model) -> None:
    refused(
        lambda: client.optimize(good, [Target("tensorflow", "fp32")]),
        "is an ONNX model; tensorflow engines are built from TensorFlow graphs",
        "upload a SavedModel",
    )


@pytest.mark.slow
@pytest.mark.tensorflow
@pytest.mark.parametrize("name", ["colours.keras", "colours.h5", "frozen.pb"])
def test_truncated_models_of_tensorflow(submit: Submit, tensorflow_models: Path, name: str) -> None:
    data = (tensorflow_models / name).read_bytes()
    refused(lambda: submit(data[: len(data) // 2], name), "stage 'freeze' failed")


@pytest.mark.slow
@pytest.mark.tensorflow
def test_keras_models_that_run_code(
    client: Client, tensorflow_models: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tensorflow_models / "lambda.keras"
    model = client.models.upload(file)
    refused(lambda: client.optimize(model, FP32), "custom", "Lambda", "ENGINEHOUSE_ALLOW_UNSAFE_MODELS")
    with (
        stack_with(tmp_path_factory.mktemp("unsafe"), ENGINEHOUSE_ALLOW_UNSAFE_MODELS="true") as home,
        Client.from_environment({"ENGINEHOUSE_HOME": str(home)}) as unsafe,
    ):
        (engine,) = unsafe.optimize(unsafe.models.upload(file), FP32).result(200)
        assert engine.inputs[0].shape == (-1, 16, 16, 3)


def test_a_dataset_that_is_none(client: Client, tmp_path: Path) -> None:
    for name, data in (("x.npz", b""), ("y.npz", b"PK\x03\x04 and no more"), ("z.tfrecord", bytes(100))):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InvalidArgumentError):
            client.datasets.upload(tmp_path / name)
    with pytest.raises(InvalidArgumentError):
        client.datasets.upload({"x": np.array([object()])}, "objects")
