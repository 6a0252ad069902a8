"""Checks an OptimizeRequest and says what it means: `Inputs`, with digests for names and defaults filled in."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable
from uuid import UUID

from enginehouse.errors import FailedPreconditionError, InvalidArgumentError, UnimplementedError
from enginehouse.names import ResourceName, parse
from enginehouse.v1 import engines_pb2, models_pb2
from enginehouse.v1 import optimizer_pb2 as pb
from enginehouse_optimizer.pipeline.backends import BACKENDS, QUANTIZED, backends_with
from enginehouse_optimizer.pipeline.inputs import (
    Calibration,
    Data,
    Inputs,
    ModelInput,
    Synthetic,
    Target,
    Verification,
)

DISTRIBUTIONS = ("normal", "uniform", "images")
LAYOUTS = ("keep", "nchw")
DEFAULT_PROFILE = (1, 8, 64)
MAX_BATCH = 65536
MAX_SYNTHETIC_SAMPLES = 1_000_000
MAX_TARGETS = 32
_METHODS = {
    pb.CALIBRATION_METHOD_UNSPECIFIED: "entropy",
    pb.CALIBRATION_METHOD_ENTROPY: "entropy",
    pb.CALIBRATION_METHOD_MAX: "max",
    pb.CALIBRATION_METHOD_PERCENTILE: "percentile",
    pb.CALIBRATION_METHOD_MSE: "mse",
}
_FILE_NAMES = {models_pb2.MODEL_FORMAT_KERAS: "model.keras", models_pb2.MODEL_FORMAT_KERAS_HDF5: "model.h5"}
_DEFAULT_PERCENTILE = 99.99

FindModel = Callable[[ResourceName], models_pb2.Model]
FindDataset = Callable[[ResourceName], models_pb2.Dataset]


def resolve(project: str, request: pb.OptimizeRequest, find_model: FindModel, find_dataset: FindDataset) -> Inputs:
    """What a request means.

    Args:
        find_model, find_dataset: look a name up, or raise NotFoundError.

    Raises:
        InvalidArgumentError, FailedPreconditionError, NotFoundError, UnimplementedError: naming what is wrong.
    """
    check_request_id(request.request_id)
    name = parse(request.model, "models")
    _check_project(project, name, "model")
    layout = request.input_layout or "keep"
    if layout not in LAYOUTS:
        raise InvalidArgumentError(f"input_layout is {layout!r}: expected one of {', '.join(LAYOUTS)}")
    targets = _targets(request)

    def data(source: pb.CalibrationSpec | pb.VerificationSpec, what: str) -> Data | None:
        if source.WhichOneof("data") == "dataset":
            dataset = parse(source.dataset, "datasets")
            _check_project(project, dataset, f"{what}.dataset")
            return Data(str(dataset), find_dataset(dataset).blob)
        return _synthetic(source.synthetic, what) if source.WhichOneof("data") == "synthetic" else None

    calibration = _calibration(request, targets, data)
    verification = _verification(request, calibration, data, targets, layout)
    return Inputs(_model(find_model(name)), targets, verification, calibration, layout)


def check_request_id(request_id: str) -> None:
    """Raises InvalidArgumentError when it is set and no UUID."""
    if request_id:
        try:
            UUID(request_id)
        except ValueError:
            raise InvalidArgumentError(f"request_id {request_id!r} is not a UUID") from None


def _model(model: models_pb2.Model) -> ModelInput:
    if model.format == models_pb2.MODEL_FORMAT_ZOO:
        return ModelInput(model.name, model.digest, architecture=model.zoo.architecture, seed=model.zoo.seed)
    file_name = _FILE_NAMES.get(model.format)
    if file_name is None:
        raise UnimplementedError(
            f"{model.name} has the format {models_pb2.ModelFormat.Name(model.format)}, which cannot be optimized yet: "
            "expected a Keras file (KERAS, KERAS_HDF5) or a ZOO architecture"
        )
    return ModelInput(model.name, model.digest, model.blob, file_name)


def _targets(request: pb.OptimizeRequest) -> tuple[Target, ...]:
    if not 0 < len(request.targets) <= MAX_TARGETS:
        raise InvalidArgumentError(f"there are {len(request.targets)} targets: expected 1 to {MAX_TARGETS}")
    targets: list[Target] = []
    for index, given in enumerate(request.targets):
        target = _target(given, f"targets[{index}]")
        if target in targets:
            raise InvalidArgumentError(
                f"targets[{index}] is targets[{targets.index(target)}] again ({target.backend} {target.precision})"
            )
        targets.append(target)
    return tuple(targets)


def _target(given: pb.EngineTarget, where: str) -> Target:
    backend = BACKENDS.get(given.backend)
    if backend is None:
        raise InvalidArgumentError(
            f"{where}: unknown backend {given.backend!r}: expected one of {', '.join(sorted(BACKENDS))}"
        )
    if given.precision == engines_pb2.PRECISION_UNSPECIFIED or given.precision not in engines_pb2.Precision.values():
        raise InvalidArgumentError(
            f"{where} has no known precision: expected one of {', '.join(sorted(backend.precisions))}"
        )
    precision = engines_pb2.Precision.Name(given.precision).removeprefix("PRECISION_")
    if precision not in backend.precisions:
        others = backends_with(precision)
        raise FailedPreconditionError(
            f"{where}: backend {backend.name!r} has no {precision} (it has {', '.join(sorted(backend.precisions))}); "
            + (f"backends with {precision}: {', '.join(others)}" if others else f"no backend has {precision} yet"),
            details={"backend": backend.name, "precision": precision, "backends": ",".join(others)},
        )
    for option in given.options:
        if option not in backend.options:
            known = ", ".join(sorted(backend.options)) or "none"
            near = difflib.get_close_matches(option, list(backend.options), n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise InvalidArgumentError(
                f"{where}: backend {backend.name!r} has no option {option!r} (known: {known}){hint}"
            )
    return Target(backend.name, precision, _profile(given, where), dict(sorted(given.options.items())))


def _profile(given: pb.EngineTarget, where: str) -> tuple[int, int, int]:
    if not given.HasField("profile"):
        return DEFAULT_PROFILE
    profile = given.profile
    if not 1 <= profile.min <= profile.opt <= profile.max <= MAX_BATCH:
        raise InvalidArgumentError(
            f"{where}.profile is min {profile.min}, opt {profile.opt}, max {profile.max}: "
            f"expected 1 <= min <= opt <= max <= {MAX_BATCH}"
        )
    return (profile.min, profile.opt, profile.max)


def _calibration(
    request: pb.OptimizeRequest,
    targets: tuple[Target, ...],
    data: Callable[[pb.CalibrationSpec, str], Data | None],
) -> Calibration | None:
    quantized = sorted({target.precision for target in targets} & QUANTIZED)
    if not request.HasField("calibration"):
        if quantized:
            raise InvalidArgumentError(
                f"a target is {quantized[0]} but there is no calibration: name a dataset, or synthetic data for a trial"
            )
        return None
    spec = request.calibration
    method = _METHODS.get(spec.method)
    if method is None:
        raise InvalidArgumentError(f"calibration.method {spec.method} is unknown: expected one of CalibrationMethod's")
    source = data(spec, "calibration")
    if source is None:
        raise InvalidArgumentError("calibration has no data: expected a dataset or synthetic data")
    if spec.percentile and method != "percentile":
        raise InvalidArgumentError(f"calibration.percentile is for the method PERCENTILE, not for {method.upper()}")
    percentile = (spec.percentile or _DEFAULT_PERCENTILE) if method == "percentile" else None
    if percentile is not None and not 50.0 <= percentile <= 100.0:
        raise InvalidArgumentError(f"calibration.percentile is {percentile}: expected 50 to 100")
    if not 0 <= spec.batch_size <= 4096:
        raise InvalidArgumentError(f"calibration.batch_size is {spec.batch_size}: expected 1 to 4096, or 0")
    _check_samples(spec.max_samples, "calibration")
    if any(not re.fullmatch(r"[^\x00-\x1f]{1,512}", item) for item in spec.exclude):
        raise InvalidArgumentError("calibration.exclude has an empty or unprintable name")
    return Calibration(method, source, percentile, spec.max_samples, spec.batch_size, tuple(sorted(set(spec.exclude))))


def _verification(
    request: pb.OptimizeRequest,
    calibration: Calibration | None,
    data: Callable[[pb.VerificationSpec, str], Data | None],
    targets: tuple[Target, ...],
    layout: str,
) -> Verification:
    spec = request.verification
    # The frozen graph keeps its layout while the reference is channels first: only some data is the same for both.
    mixed = layout == "nchw" and any(BACKENDS[target.backend].builds_from == "freeze" for target in targets)
    source, max_samples = data(spec, "verification"), spec.max_samples
    if source is None and calibration is not None:
        source, max_samples = calibration.data, max_samples or calibration.max_samples
    if source is None:
        source = Data(synthetic=Synthetic("images" if mixed else "normal"))
    if mixed and source.synthetic is not None and source.synthetic.distribution != "images":
        raise InvalidArgumentError(
            "input_layout nchw with a tensorflow or tf-trt target: verify with a dataset or with synthetic data of the "
            f'distribution "images" (given: {source.synthetic.distribution!r}), or keep the layout'
        )
    _check_samples(spec.max_samples, "verification")
    relative = spec.minimum_relative_accuracy if spec.HasField("minimum_relative_accuracy") else 0.99
    if not 0.0 <= relative <= 1.0:
        raise InvalidArgumentError(f"verification.minimum_relative_accuracy is {relative}: expected 0 to 1")
    sqnr = spec.minimum_sqnr_db if spec.HasField("minimum_sqnr_db") else 10.0
    if not math.isfinite(sqnr) or not -200.0 <= sqnr <= 200.0:
        raise InvalidArgumentError(f"verification.minimum_sqnr_db is {sqnr}: expected -200 to 200")
    return Verification(source, max_samples, relative, sqnr)


def _synthetic(given: pb.SyntheticData, what: str) -> Data:
    distribution = given.distribution or "normal"
    if distribution not in DISTRIBUTIONS:
        raise InvalidArgumentError(
            f"{what}.synthetic.distribution is {distribution!r}: expected one of {', '.join(DISTRIBUTIONS)}"
        )
    if not 0 <= given.samples <= MAX_SYNTHETIC_SAMPLES:
        raise InvalidArgumentError(
            f"{what}.synthetic.samples is {given.samples}: expected 1 to {MAX_SYNTHETIC_SAMPLES}"
        )
    if given.seed < 0:
        raise InvalidArgumentError(f"{what}.synthetic.seed is {given.seed}: expected 0 or more")
    return Data(synthetic=Synthetic(distribution, given.samples or 32, given.seed))


def _check_samples(samples: int, what: str) -> None:
    if samples < 0:
        raise InvalidArgumentError(f"{what}.max_samples is {samples}: expected 0 (all) or more")


def _check_project(project: str, name: ResourceName, what: str) -> None:
    if name.project != project:
        raise InvalidArgumentError(f"{what} {name} is not in the request's project: expected one of projects/{project}")
