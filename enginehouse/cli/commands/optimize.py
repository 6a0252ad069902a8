"""optimize: a model, a file or an architecture of the zoo into engines."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from enginehouse.cli import completion
from enginehouse.cli.commands.engines import print_engines, say_unverified
from enginehouse.cli.context import connected
from enginehouse.cli.options import pairs, profile
from enginehouse.cli.output import Json, print_json, say
from enginehouse.cli.transfer import shown
from enginehouse.cli.watch import follow
from enginehouse.client import Client
from enginehouse.client.dataset_files import is_dataset_file
from enginehouse.client.model_files import model_file
from enginehouse.client.values import AutomaticExclusion, Calibration, Model, Synthetic, Target, VerificationSpec
from enginehouse.errors import InvalidArgumentError, NotFoundError

EPILOG = (
    "Examples: enginehouse optimize net.keras --precision fp32 --precision int8 --calibration-data data.npz; "
    "enginehouse optimize resnet_v1_50 --precision int8 --synthetic 64 --method entropy --batch 1:8:32; "
    "enginehouse optimize resnet_v1_50 --target tensorrt:fp16 --target onnxruntime:fp32"
)

_CALIBRATE = "give --calibration-data DATASET, --synthetic N or --calibration-table FILE"


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command("optimize", epilog=EPILOG)(_optimize)


def _optimize(
    model: Annotated[
        str,
        typer.Argument(
            help="A model's id, a file (uploaded first), or an architecture of the zoo (made first).",
            autocompletion=completion.models,
        ),
    ],
    precision: Annotated[
        list[str] | None, typer.Option(help="fp32 (the default), tf32, fp16, bf16, int8, fp8; may be repeated.")
    ] = None,
    backend: Annotated[
        list[str] | None,
        typer.Option(help="onnxruntime (the default), tensorflow, tensorrt, tf-trt; may be repeated."),
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            metavar="BACKEND:PRECISION[@GPU]",
            help="Such as tensorrt:int8, instead of the two above; in a cluster also on which GPU, such as "
            "tensorrt:int8@NVIDIA-H200; may be repeated.",
        ),
    ] = None,
    batch: Annotated[str | None, typer.Option(help="Batch sizes, MAX or MIN:OPT:MAX; 1:8:64 when absent.")] = None,
    option: Annotated[list[str] | None, typer.Option(help="A backend option, NAME=VALUE; may be repeated.")] = None,
    calibration_data: Annotated[
        str | None, typer.Option(help="A dataset's id, or a file or ./folder (uploaded first): `datasets upload`.")
    ] = None,
    synthetic: Annotated[int | None, typer.Option(min=1, help="Calibrate on so many made-up samples.")] = None,
    distribution: Annotated[
        str | None, typer.Option(help="Of made-up samples: normal (when absent), uniform or images.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of made-up samples, and of a zoo model's weights.")] = 0,
    method: Annotated[
        str | None, typer.Option(help="Calibration: entropy (when absent), max, percentile or mse.")
    ] = None,
    percentile: Annotated[float | None, typer.Option(help="For the method percentile; 99.99 when absent.")] = None,
    max_samples: Annotated[int, typer.Option(min=0, help="Calibrate on at most so many samples; 0: all.")] = 0,
    calibration_table: Annotated[
        str | None,
        typer.Option(help="Take this calibration table, a file or the digest of an uploaded one; no data is needed."),
    ] = None,
    auto_exclude: Annotated[
        bool, typer.Option("--auto-exclude", help="Leave the layers that cost most accuracy in higher precision.")
    ] = False,
    auto_exclude_sqnr: Annotated[
        float | None,
        typer.Option(
            "--auto-exclude-db", metavar="DB", help="Until outputs have this SQNR; 20 when absent. Implies it."
        ),
    ] = None,
    max_excluded: Annotated[int, typer.Option(min=0, help="Exclude at most so many layers; a quarter when 0.")] = 0,
    exclude: Annotated[
        list[str] | None, typer.Option(help="A node or operator type to leave in higher precision; may be repeated.")
    ] = None,
    verification_data: Annotated[
        str | None, typer.Option(help="Compare with FP32 on this dataset, file or ./folder.")
    ] = None,
    min_accuracy: Annotated[
        float | None, typer.Option(help="With labels, refuse engines below this fraction of FP32's top-1.")
    ] = None,
    min_sqnr: Annotated[float | None, typer.Option(help="Without labels, refuse outputs below this many dB.")] = None,
    per_layer: Annotated[
        bool, typer.Option("--per-layer", help="Also compare each layer with FP32: `engines show --layers`.")
    ] = False,
    fold_preprocessing: Annotated[
        bool,
        typer.Option("--fold-preprocessing", help="The engine takes UINT8 images and normalizes them itself."),
    ] = False,
    priority: Annotated[int, typer.Option(min=-100, max=100, help="Of waiting jobs the highest starts first.")] = 0,
    layout: Annotated[str, typer.Option(help="keep, or nchw for images channels first.")] = "keep",
    name: Annotated[str | None, typer.Option(help="The id of an uploaded file.")] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Start it and return; `jobs watch` follows it.")] = False,
    json: Json = False,
) -> None:
    """Turn a model into engines, one for each backend and precision. Ctrl-C asks the job to stop."""
    if sum(given is not None for given in (calibration_data, synthetic, calibration_table)) > 1:
        raise InvalidArgumentError("give one of --calibration-data, --synthetic and --calibration-table")
    automatic = auto_exclude or auto_exclude_sqnr is not None
    if automatic and calibration_table is not None:
        raise InvalidArgumentError("--auto-exclude measures layers on data, which a --calibration-table has not")
    if max_excluded and not automatic:
        raise InvalidArgumentError("--max-excluded limits --auto-exclude: give that too")
    calibrated = not (calibration_data is None and synthetic is None and calibration_table is None)
    made = {"--method": method is not None, "--percentile": percentile is not None, "--max-samples": max_samples > 0}
    if calibration_table is not None:
        _refuse(made, "does not go with --calibration-table, which is made already")
    if not calibrated:
        _refuse({**made, "--exclude": bool(exclude), "--auto-exclude": automatic}, f"is of calibration: {_CALIBRATE}")
    if method is None or method.lower() != "percentile":
        _refuse({"--percentile": percentile is not None}, "is for --method percentile: give that too")
    if synthetic is None:
        _refuse({"--distribution": distribution is not None}, "is of made-up samples: give --synthetic N too")
    if target and (backend or precision):
        raise InvalidArgumentError("--target names backend and precision: give it, or --backend and --precision")
    wanted = [_target(text) for text in target or ()] or [
        (b, p, "") for b in backend or ["onnxruntime"] for p in precision or ["fp32"]
    ]
    targets = [Target(b, p, profile(batch), pairs(option, "--option"), gpu) for b, p, gpu in wanted]
    if not calibrated and any(t.precision.lower() in ("int8", "fp8") for t in targets):
        raise InvalidArgumentError(f"int8 and fp8 need calibration: {_CALIBRATE}")
    if min_accuracy is not None and verification_data is None and calibration_data is None:
        raise InvalidArgumentError(
            "--min-accuracy needs labelled samples: give --verification-data (or --calibration-data); "
            "--min-sqnr needs none"
        )
    with connected() as client:
        calibration = None
        if calibrated:
            calibration = Calibration(
                method=method or "entropy",
                dataset=_dataset(client, calibration_data),
                synthetic=Synthetic(distribution or "normal", synthetic, seed) if synthetic is not None else None,
                percentile=percentile or 0.0,
                max_samples=max_samples,
                exclude=tuple(exclude or ()),
                table=calibration_table,
                automatic_exclusion=AutomaticExclusion(auto_exclude_sqnr, max_excluded) if automatic else None,
            )
        verification = None
        if verification_data is not None or min_accuracy is not None or min_sqnr is not None or per_layer:
            verification = VerificationSpec(
                # None is the server's choice: the calibration's data, else made-up samples.
                dataset=_dataset(client, verification_data),
                minimum_relative_accuracy=min_accuracy,
                minimum_sqnr_db=min_sqnr,
                per_layer=per_layer,
            )
        found = _model(client, model, name, seed)
        job = client.optimize(
            found,
            targets,
            calibration=calibration,
            verification=verification,
            input_layout=layout,
            fold_preprocessing=fold_preprocessing,
            priority=priority,
        )
        if detach:
            print_json({"name": job.name, "id": job.id}) if json else say(f"started {job.id}")
            return
        engines = list(follow(job).engines)
        say_unverified(client, engines)
    print_json(engines) if json else print_engines(engines)


def _refuse(given: Mapping[str, bool], why: str) -> None:
    """Raises InvalidArgumentError for options that would change nothing, when they are given."""
    if wrong := [option for option, is_given in given.items() if is_given]:
        raise InvalidArgumentError(f"{', '.join(wrong)} {why}")


def _target(text: str) -> tuple[str, str, str]:
    """(backend, precision, GPU) of "tensorrt:int8@NVIDIA-H200"; the GPU may be left out, and is then empty.

    Raises:
        InvalidArgumentError: it is not of that form.
    """
    wanted, at, gpu = text.partition("@")
    backend, colon, precision = wanted.partition(":")
    if not (backend and colon and precision) or (at and not gpu):
        raise InvalidArgumentError(
            f"--target {text!r} is not valid: expected BACKEND:PRECISION, such as tensorrt:int8, or with the GPU to "
            "build on tensorrt:int8@NVIDIA-H200"
        )
    return backend, precision, gpu


def _model(client: Client, text: str, name: str | None, seed: int) -> Model:
    path = Path(text)
    if path.exists():
        if path.is_dir() and path.name == text and (registered := _named_as_folder(client, path)) is not None:
            return registered
        with shown(path.name) as progress:
            model = client.models.upload(path, name, progress=progress)
        say(f"uploaded {model.id}")
        return model
    if ("/" in text and not text.startswith("projects/")) or path.suffix in (".keras", ".onnx", ".h5", ".pb"):
        raise InvalidArgumentError(f"there is no file {text}")
    try:
        return client.models.get(text)
    except NotFoundError:
        pass
    try:
        model = client.models.ensure_zoo(text, seed=seed)
    except InvalidArgumentError as error:
        raise NotFoundError(f"{text} is no file, no model, and no architecture of the zoo [{error.message}]") from None
    say(f"made {model.id} of the zoo")
    return model


def _named_as_folder(client: Client, folder: Path) -> Model | None:
    """The model whose id is a folder's name, where the folder itself holds none, such as the demo's `digits`."""
    try:
        model_file(folder)
    except InvalidArgumentError as no_model:
        try:
            return client.models.get(folder.name)
        except (NotFoundError, InvalidArgumentError):
            raise no_model from None
    return None


def _dataset(client: Client, text: str | None) -> str | None:
    if text is None:
        return None
    path = Path(text)
    if not is_dataset_file(text) and not path.is_file():
        if "/" in text and not text.startswith("projects/"):
            raise InvalidArgumentError(f"there is no {text}: expected a dataset's id, a file, or a folder of images")
        if path.is_dir():
            _refuse_folder_without_dataset(client, text)
        return text
    with shown(path.name) as progress:
        dataset = client.datasets.upload(path, replace=True, progress=progress)
    say(f"uploaded {dataset.id} ({dataset.samples} samples)")
    return dataset.name


def _refuse_folder_without_dataset(client: Client, text: str) -> None:
    try:
        client.datasets.get(text)
    except (NotFoundError, InvalidArgumentError):
        raise NotFoundError(f"there is no dataset {text!r}; to upload the folder of that name, say ./{text}") from None
