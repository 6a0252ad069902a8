"""Checks an OptimizeRequest and says what it means: `Inputs`, with digests for names and defaults filled in."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable
from uuid import UUID

from enginehouse.artifacts import parse_digest
from enginehouse.errors import FailedPreconditionError, InvalidArgumentError
from enginehouse.names import parse
from enginehouse.v1 import engines_pb2
from enginehouse.v1 import optimizer_pb2 as pb
from enginehouse_optimizer.api.sources import FindDataset, FindModel, check_project, dataset_data, model_input
from enginehouse_optimizer.pipeline.backends import BACKENDS, QUANTIZED, backends_with
from enginehouse_optimizer.pipeline.inputs import (
    AutomaticExclusion,
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
MAX_PRIORITY = 100
_METHODS = {
    pb.CALIBRATION_METHOD_UNSPECIFIED: "entropy",
    pb.CALIBRATION_METHOD_ENTROPY: "entropy",
    pb.CALIBRATION_METHOD_MAX: "max",
    pb.CALIBRATION_METHOD_PERCENTILE: "percentile",
    pb.CALIBRATION_METHOD_MSE: "mse",
}
_DEFAULT_PERCENTILE = 99.99
_LABEL_VALUE = r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
_DEFAULT_AUTOMATIC_SQNR_DB = 20.0


def resolve(
    project: str,
    request: pb.OptimizeRequest,
    find_model: FindModel,
    find_dataset: FindDataset,
    *,
    allow_unsafe: bool = False,
) -> Inputs:
    """What a request means.

    Args:
        find_model, find_dataset: look a name up, or raise NotFoundError.
        allow_unsafe: load models that bring code of their own; the operator's decision.

    Raises:
        InvalidArgumentError, FailedPreconditionError, NotFoundError: naming what is wrong.
    """
    check_request_id(request.request_id)
    name = parse(request.model, "models")
    check_project(project, name, "model")
    layout = request.input_layout or "keep"
    if layout not in LAYOUTS:
        raise InvalidArgumentError(f"input_layout is {layout!r}: expected one of {', '.join(LAYOUTS)}")
    targets = _targets(request)

    def data(source: pb.CalibrationSpec | pb.VerificationSpec, what: str) -> Data | None:
        if source.WhichOneof("data") == "dataset":
            dataset = parse(source.dataset, "datasets")
            check_project(project, dataset, f"{what}.dataset")
            return dataset_data(find_dataset(dataset))
        return _synthetic(source.synthetic, what) if source.WhichOneof("data") == "synthetic" else None

    calibration = _calibration(request, targets, data)
    _check_own_calibration(targets, calibration)
    verification = _verification(request, calibration, data, targets, layout)
    _check_priority(request.priority)
    model = model_input(find_model(name), allow_unsafe=allow_unsafe)
    _check_model(model, targets, layout, request.fold_preprocessing)
    return Inputs(model, targets, verification, calibration, layout, request.fold_preprocessing)


def check_request_id(request_id: str) -> None:
    """Raises InvalidArgumentError when it is set and no UUID."""
    if request_id:
        try:
            UUID(request_id)
        except ValueError:
            raise InvalidArgumentError(f"request_id {request_id!r} is not a UUID") from None


def _check_model(model: ModelInput, targets: tuple[Target, ...], layout: str, fold: bool) -> None:
    """Raises FailedPreconditionError for targets and options that this model cannot have."""
    frozen = sorted({target.backend for target in targets if BACKENDS[target.backend].builds_from == "freeze"})
    if model.format == "onnx" and frozen:
        raise FailedPreconditionError(
            f"{model.name} is an ONNX model; {frozen[0]} engines are built from TensorFlow graphs: "
            "upload a SavedModel, a Keras file or a frozen graph, or take another backend",
            details={"model": model.name, "backend": frozen[0]},
        )
    if model.format == "onnx" and layout != "keep":
        raise FailedPreconditionError(
            f"{model.name} is an ONNX model, whose layout stays as it is: leave input_layout {layout!r} away"
        )
    if fold and model.preprocessing is None:
        raise FailedPreconditionError(
            f"fold_preprocessing: {model.name} has no preprocessing: create the model with one (mean, deviation, bgr)"
        )
    if fold and frozen:
        raise FailedPreconditionError(
            f"fold_preprocessing: {frozen[0]} engines are built from the model's own graph, which takes what it always "
            f"took: ask for {frozen[0]} in a request of its own"
        )


def _check_priority(priority: int) -> None:
    if not -MAX_PRIORITY <= priority <= MAX_PRIORITY:
        raise InvalidArgumentError(f"priority is {priority}: expected {-MAX_PRIORITY} to {MAX_PRIORITY}")


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
    if given.gpu_product and not re.fullmatch(_LABEL_VALUE, given.gpu_product):
        raise InvalidArgumentError(
            f"{where}.gpu_product is {given.gpu_product!r}: expected a product as the node label "
            "nvidia.com/gpu.product has it, such as NVIDIA-H200"
        )
    options = dict(sorted(given.options.items()))
    return Target(backend.name, precision, _profile(given, where), options, given.gpu_product)


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
                f"a target is {quantized[0]} but there is no calibration: "
                "name a dataset, a table, or synthetic data for a trial"
            )
        return None
    spec = request.calibration
    if spec.WhichOneof("data") == "table":
        return _imported(spec)
    method = _METHODS.get(spec.method)
    if method is None:
        raise InvalidArgumentError(f"calibration.method {spec.method} is unknown: expected one of CalibrationMethod's")
    source = data(spec, "calibration")
    if source is None:
        raise InvalidArgumentError("calibration has no data: expected a dataset, synthetic data, or a table")
    if spec.percentile and method != "percentile":
        raise InvalidArgumentError(f"calibration.percentile is for the method PERCENTILE, not for {method.upper()}")
    percentile = (spec.percentile or _DEFAULT_PERCENTILE) if method == "percentile" else None
    if percentile is not None and not 50.0 <= percentile <= 100.0:
        raise InvalidArgumentError(f"calibration.percentile is {percentile}: expected 50 to 100")
    if not 0 <= spec.batch_size <= 4096:
        raise InvalidArgumentError(f"calibration.batch_size is {spec.batch_size}: expected 1 to 4096, or 0")
    _check_samples(spec.max_samples, "calibration")
    automatic = _automatic(spec.automatic_exclusion) if spec.HasField("automatic_exclusion") else None
    if automatic is not None and "FP8" in quantized:
        raise InvalidArgumentError(
            "calibration.automatic_exclusion measures what layers cost in INT8, and a target is FP8: ask for FP8 in a "
            "request of its own, with the layers to leave out in calibration.exclude"
        )
    return Calibration(
        method, source, percentile, spec.max_samples, spec.batch_size, _excluded(spec), automatic=automatic
    )


def _check_own_calibration(targets: tuple[Target, ...], calibration: Calibration | None) -> None:
    """Raises InvalidArgumentError for what a backend that calibrates itself cannot heed."""
    own = [t.backend for t in targets if BACKENDS[t.backend].calibrates and t.precision in QUANTIZED]
    if not own or calibration is None:
        return
    given = {
        "table": bool(calibration.table),
        f"method {calibration.method.upper()}": calibration.method not in ("entropy", "table"),
        "exclude": bool(calibration.exclude),
        "automatic_exclusion": calibration.automatic is not None,
    }
    wrong = [name for name, is_given in given.items() if is_given]
    if wrong:
        raise InvalidArgumentError(
            f"calibration.{wrong[0]} does not go with a {own[0]} target at INT8: TF-TRT calibrates while it "
            "builds, with data, TensorRT's entropy method and all layers. Ask for it in a request of its own"
        )


def _imported(spec: pb.CalibrationSpec) -> Calibration:
    """A table made elsewhere: nothing of how tables are made applies to it."""
    for name in ("method", "percentile", "max_samples", "batch_size"):
        if getattr(spec, name):
            raise InvalidArgumentError(f"calibration.{name} does not go with calibration.table, which is made already")
    if spec.HasField("automatic_exclusion"):
        raise InvalidArgumentError(
            "calibration.automatic_exclusion does not go with calibration.table, which has no data to measure "
            "layers on: name the layers in calibration.exclude"
        )
    parse_digest(spec.table)
    return Calibration("table", Data(), exclude=_excluded(spec), table=spec.table)


def _excluded(spec: pb.CalibrationSpec) -> tuple[str, ...]:
    if any(not re.fullmatch(r"[^\x00-\x1f]{1,512}", item) for item in spec.exclude):
        raise InvalidArgumentError("calibration.exclude has an empty or unprintable name")
    return tuple(sorted(set(spec.exclude)))


def _automatic(given: pb.AutomaticExclusion) -> AutomaticExclusion:
    what = "calibration.automatic_exclusion"
    sqnr = given.minimum_sqnr_db if given.HasField("minimum_sqnr_db") else _DEFAULT_AUTOMATIC_SQNR_DB
    if not math.isfinite(sqnr) or not -200.0 <= sqnr <= 200.0:
        raise InvalidArgumentError(f"{what}.minimum_sqnr_db is {sqnr}: expected -200 to 200")
    if given.max_layers < 0:
        raise InvalidArgumentError(f"{what}.max_layers is {given.max_layers}: expected 0 (a quarter) or more")
    _check_samples(given.max_samples, what)
    return AutomaticExclusion(sqnr, given.max_layers, given.max_samples)


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
    if source is None and calibration is not None and not calibration.table:
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
    return Verification(source, max_samples, relative, sqnr, spec.per_layer)


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
