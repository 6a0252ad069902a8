"""Makes the plan of an optimization from data alone.

    freeze ─ convert ─┬─ calibrate ─ [sensitivity] ─ quantize (one for each dialect) ─ build ─┐
       │              ├─ build ───────────────────────────────────────────────────────────────┼─ verify (one for
       │              └─ reference ───────────────────────────────────────────────────────────┤  each target)
       └─ build (tensorflow; tf-trt, which calibrates itself) ────────────────────────────────┘

An ONNX model is imported instead of frozen and converted. `preprocess` stands after both when the engine is to take
images as they are; `prepare` makes arrays of image files for calibrate, reference, verify and their kin; `layers`
compares a quantized graph with FP32, layer by layer. A sensitivity stage that no plan holds is ready for an engine
that is refused, to name the layers that cost its accuracy.

A stage's key is the digest of its name, the version of its environment, what of the machine its result depends on, its
parameters and the keys (of uploads: the digests) of its inputs. So all keys are known before anything runs, equal work
in two jobs has one key, and a key does not change because a tool writes its files differently each time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from enginehouse.artifacts import canonical_json, digest_json
from enginehouse.artifacts.manifest import engine_key
from enginehouse_optimizer.pipeline.backends import BACKENDS, FREEZING, QUANTIZED, QUANTIZING, Backend, takes_table
from enginehouse_optimizer.pipeline.inputs import Calibration, Data, Inputs, ModelInput, Target
from enginehouse_optimizer.pipeline.machine import CPU, DRIVER, GPU
from enginehouse_optimizer.pipeline.plan import Output, Plan, PlannedEngine, PlannedStage, Source, Upload
from enginehouse_optimizer.pipeline.timing import timing_cache_name

# The API's "all" said to the stage that would otherwise stop at a number of its own.
_ALL_SAMPLES = 2**31 - 1
# Enough to tell a layer that costs accuracy from one that does not, for an engine that was refused.
_BLAME_SAMPLES = 8


@dataclass
class _Builder:
    """Collects stages; adding one that is there already changes nothing."""

    versions: Mapping[str, str]
    stages: dict[str, PlannedStage] = field(default_factory=dict)

    def add(
        self,
        name: str,
        environment: str,
        params: Mapping[str, Any],
        *,
        machine: str = "",
        timing_cache: str = "",
        gpu: str = "",
        **inputs: Source | None,
    ) -> Output:
        """Add a stage, called by the first word of its name; returns its output. Inputs that are None are left out.

        Args:
            machine: what of the machine the result depends on (CPU or GPU).
            timing_cache: the cache that it takes and gives back.
            gpu: the product that it runs on in a cluster, instead of the machine's.
        """
        stage = self.stage(name, environment, params, machine=machine, timing_cache=timing_cache, gpu=gpu, **inputs)
        self.stages.setdefault(name, stage)
        return Output(name)

    def stage(
        self,
        name: str,
        environment: str,
        params: Mapping[str, Any],
        *,
        machine: str = "",
        timing_cache: str = "",
        gpu: str = "",
        **inputs: Source | None,
    ) -> PlannedStage:
        """A stage that is not added, with its key."""
        stage = name.split()[0]
        given = {key: source for key, source in inputs.items() if source is not None}
        keys = {
            key: source.digest if isinstance(source, Upload) else self.stages[source.stage].key
            for key, source in given.items()
        }
        version = self.versions.get(environment, "")
        determinants = {"stage": stage, "environment": version, "params": dict(params), "inputs": keys}
        if machine:
            determinants["machine"] = self.versions.get(machine, "")
        if gpu:
            determinants["machine"] = gpu
        key = digest_json(determinants)
        return PlannedStage(name, stage, environment, dict(params), given, key, timing_cache, gpu)

    def key(self, output: Output) -> str:
        return self.stages[output.stage].key


def make_plan(inputs: Inputs, versions: Mapping[str, str]) -> Plan:
    """The plan for a request.

    Args:
        versions: for each environment, and for CPU and GPU, a text that changes whenever what depends on it may; and
            the GPU driver's version (DRIVER; with a product after it, that product's in a cluster).
    """
    builder = _Builder(versions)
    frozen = None if inputs.model.format == "onnx" else _freeze(builder, inputs.model)
    graph = _graph(builder, inputs, frozen)
    model = _folded(builder, inputs, graph)
    calibrated = _calibrate(builder, inputs, model, graph)
    verification = inputs.verification
    samples = _samples(inputs, verification.data, verification.max_samples)
    dataset = _dataset(builder, inputs, verification.data, verification.max_samples, graph)
    reference = builder.add("reference", QUANTIZING, samples, model=model, dataset=dataset)
    limits = {
        "minimum_relative_accuracy": verification.minimum_relative_accuracy,
        "minimum_sqnr_db": verification.minimum_sqnr_db,
    }
    engines = []
    for target, suffix in zip(inputs.targets, _suffixes(inputs.targets), strict=True):
        backend = BACKENDS[target.backend]
        source, calibrate, sensitivity, layers, blame = model, None, None, None, None
        cache = _timing_cache(versions, target) if backend.timing_cache else ""
        if backend.builds_from == "freeze":
            if frozen is None:
                raise ValueError(f"{inputs.model.name} has no frozen graph for {backend.name}")
            source = frozen
        if takes_table(target.backend, target.precision) and calibrated is not None:
            calibrate = calibrated.stage
            # Sensitivity is measured as INT8: it says nothing of FP8.
            if target.precision == "INT8":
                sensitivity = _sensitivity(builder, inputs, backend, model, graph, calibrated)
                few = {**samples, **_placement_params(inputs, backend), "max_layers": 0}
                few["max_samples"] = min(verification.max_samples or _BLAME_SAMPLES, _BLAME_SAMPLES)
                blame = builder.stage(
                    f"sensitivity of {suffix}",
                    QUANTIZING,
                    few,
                    model=model,
                    calibration=calibrated,
                    dataset=dataset,
                )
            source = _quantize(builder, inputs, target, model, calibrated, sensitivity)
            if verification.per_layer:
                name = f"layers {_placed(target)}"
                layers = builder.add(name, QUANTIZING, samples, model=model, quantized=source, dataset=dataset)
        low, best, high = target.profile
        params = {
            "backend": backend.name,
            "precision": target.precision,
            "profile": {"min": low, "opt": best, "max": high},
            "options": dict(target.options),
        }
        machine = GPU if backend.device == "gpu" else ""
        shown = None
        if backend.calibrates and target.precision in QUANTIZED and inputs.calibration is not None:
            params |= _calibration_samples(inputs, inputs.calibration)
            shown = _calibration_dataset(builder, inputs, inputs.calibration, graph)
        built = builder.add(
            f"build {suffix}", backend.environment, params, machine=machine, timing_cache=cache, gpu=target.gpu_product,
            model=source, dataset=shown,
        )  # fmt: skip
        verified = builder.add(
            f"verify {suffix}", backend.environment, {**samples, **limits}, gpu=target.gpu_product, engine=built,
            reference=reference, dataset=dataset,
        )  # fmt: skip
        # Its bytes follow from the build alone: not from what it is measured on, nor from the limits that refuse it.
        key = engine_key({"build": builder.key(built)})
        engines.append(
            PlannedEngine(
                target=target,
                build=built.stage,
                verify=verified.stage,
                calibrate=calibrate,
                sensitivity=sensitivity.stage if sensitivity else None,
                layers=layers.stage if layers else None,
                key=key,
                id=f"{inputs.model.id}-{backend.name}-{target.precision.lower()}-{key.partition(':')[2][:12]}",
                blame=blame,
            )
        )
    return Plan(tuple(builder.stages.values()), tuple(engines))


def environments_of(inputs: Inputs) -> tuple[str, ...]:
    """The worker environments that a request needs, sorted."""
    return tuple(sorted({stage.environment for stage in make_plan(inputs, {}).stages}))


def _freeze(builder: _Builder, model: ModelInput) -> Output:
    if model.format == "zoo":
        zoo: dict[str, Any] = {"architecture": model.architecture, "seed": model.seed}
        if model.classes:
            zoo["classes"] = model.classes
        weights = Upload(model.weights, "weights.h5") if model.weights else None
        return builder.add("freeze", FREEZING, {"zoo": zoo}, weights=weights)
    params: dict[str, Any] = {"format": model.format}
    options = {"inputs": list(model.inputs), "outputs": list(model.outputs), "signature": model.signature}
    if any(options.values()):
        params["import"] = {name: value for name, value in options.items() if value}
    if model.allow_unsafe:
        params["allow_unsafe"] = True
    return builder.add("freeze", FREEZING, params, model=Upload(model.blob, model.file_name))


def _graph(builder: _Builder, inputs: Inputs, frozen: Output | None) -> Output:
    """The FP32 model in ONNX, as its framework feeds it."""
    if frozen is None:
        return builder.add("import", QUANTIZING, {}, model=Upload(inputs.model.blob, inputs.model.file_name))
    return builder.add("convert", FREEZING, {"layout": inputs.layout}, frozen=frozen)


def _folded(builder: _Builder, inputs: Inputs, graph: Output) -> Output:
    if not inputs.fold_preprocessing:
        return graph
    return builder.add("preprocess", QUANTIZING, {"preprocessing": _normalization(inputs.model)}, model=graph)


def _calibrate(builder: _Builder, inputs: Inputs, model: Output, graph: Output) -> Output | None:
    calibration = inputs.calibration
    if calibration is None or not any(takes_table(target.backend, target.precision) for target in inputs.targets):
        return None
    if calibration.table:
        table = Upload(calibration.table, "calibration.json")
        return builder.add("calibrate", QUANTIZING, {}, model=model, table=table)
    params: dict[str, Any] = {"method": calibration.method, **_calibration_samples(inputs, calibration)}
    if calibration.percentile is not None:
        params["percentile"] = calibration.percentile
    if calibration.batch_size:
        params["batch_size"] = calibration.batch_size
    dataset = _calibration_dataset(builder, inputs, calibration, graph)
    return builder.add("calibrate", QUANTIZING, params, model=model, dataset=dataset)


def _calibration_samples(inputs: Inputs, calibration: Calibration) -> dict[str, Any]:
    return _samples(inputs, calibration.data, calibration.max_samples or _ALL_SAMPLES)


def _calibration_dataset(builder: _Builder, inputs: Inputs, calibration: Calibration, graph: Output) -> Source | None:
    return _dataset(builder, inputs, calibration.data, calibration.max_samples, graph)


def _sensitivity(
    builder: _Builder, inputs: Inputs, backend: Backend, model: Output, graph: Output, calibrated: Output
) -> Output | None:
    calibration = inputs.calibration
    automatic = calibration.automatic if calibration else None
    if calibration is None or automatic is None:
        return None
    params = {
        **_samples(inputs, calibration.data, automatic.max_samples),
        **_placement_params(inputs, backend),
        "minimum_sqnr_db": automatic.minimum_sqnr_db,
    }
    if automatic.max_layers:
        params["max_layers"] = automatic.max_layers
    dataset = _dataset(builder, inputs, calibration.data, calibration.max_samples, graph)
    name = f"sensitivity {backend.dialect}"
    return builder.add(name, QUANTIZING, params, machine=CPU, model=model, calibration=calibrated, dataset=dataset)


def _placement_params(inputs: Inputs, backend: Backend) -> dict[str, Any]:
    """What places Q/DQ, beside a table: for all stages the same."""
    exclude = inputs.calibration.exclude if inputs.calibration else ()
    return {"dialect": backend.dialect, "exclude": sorted(exclude)}


def _placed(target: Target) -> str:
    """What tells quantized graphs of one model apart: "tensorrt", or "tensorrt fp8"."""
    dialect = str(BACKENDS[target.backend].dialect)
    return dialect if target.precision == "INT8" else f"{dialect} {target.precision.lower()}"


def _quantize(
    builder: _Builder,
    inputs: Inputs,
    target: Target,
    model: Output,
    calibrated: Output,
    sensitivity: Output | None,
) -> Output:
    # INT8 is the stage's own choice.
    number_format = {} if target.precision == "INT8" else {"format": target.precision.lower()}
    return builder.add(
        f"quantize {_placed(target)}",
        QUANTIZING,
        {**_placement_params(inputs, BACKENDS[target.backend]), **number_format},
        machine=CPU,
        model=model,
        calibration=calibrated,
        sensitivity=sensitivity,
    )


def _samples(inputs: Inputs, data: Data, max_samples: int) -> dict[str, Any]:
    params: dict[str, Any] = {}
    if data.synthetic is not None:
        params["synthetic"] = dict(vars(data.synthetic))
    elif inputs.model.preprocessing is not None and not inputs.fold_preprocessing:
        params["preprocessing"] = _normalization(inputs.model)
    if max_samples:
        params["max_samples"] = max_samples
    return params


def _normalization(model: ModelInput) -> dict[str, Any]:
    """What becomes of pixels; their number is `prepare`'s matter."""
    if model.preprocessing is None:
        raise ValueError(f"{model.name} has no preprocessing")
    given = model.preprocessing
    return {"mean": list(given.mean), "deviation": list(given.deviation), "bgr": given.bgr}


def _dataset(builder: _Builder, inputs: Inputs, data: Data, max_samples: int, graph: Output) -> Source | None:
    """Arrays as they were uploaded, or made of image files for the size that the model takes."""
    if not data.blob:
        return None
    upload = Upload(data.blob, data.file_name)
    if data.format == "npz":
        return upload
    params: dict[str, Any] = {"format": data.format}
    if inputs.model.preprocessing is not None:
        params["central_fraction"] = inputs.model.preprocessing.central_fraction
        params["resampling"] = inputs.model.preprocessing.resampling
    if data.tfrecord is not None:
        params["tfrecord"] = dict(vars(data.tfrecord))
    name = f"prepare {data.dataset.rsplit('/', 1)[-1]}"
    if max_samples:
        params["max_samples"] = max_samples
        name += f" ({max_samples} samples)"
    return builder.add(name, QUANTIZING, params, model=graph, dataset=upload)


def _timing_cache(versions: Mapping[str, str], target: Target) -> str:
    """The name of the cache of what was measured where a target is built."""
    environment, product = versions.get(BACKENDS[target.backend].environment, ""), target.gpu_product
    if product:
        return timing_cache_name(environment, canonical_json([product]), versions.get(f"{DRIVER} {product}", ""))
    return timing_cache_name(environment, versions.get(GPU, ""), versions.get(DRIVER, ""))


def _suffixes(targets: tuple[Target, ...]) -> list[str]:
    """What tells targets apart in the names of their stages: "onnxruntime int8", with a number from the second on."""
    seen: dict[str, int] = {}
    names = []
    for target in targets:
        name = f"{target.backend} {target.precision.lower()}{target.gpu_product and f' {target.gpu_product}'}"
        seen[name] = seen.get(name, 0) + 1
        names.append(name if seen[name] == 1 else f"{name} #{seen[name]}")
    return names
