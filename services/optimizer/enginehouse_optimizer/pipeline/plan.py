"""The plan of an optimization: a graph of stages with their cache keys, made from data alone.

    freeze ─ convert ─┬─ calibrate ─ quantize (one for each dialect) ─ build ─┐
       │              ├─ build ───────────────────────────────────────────────┼─ verify (one for each target)
       │              └─ reference ───────────────────────────────────────────┤
       └─ build (tensorflow) ─────────────────────────────────────────────────┘

A stage's key is the digest of its name, the version of its environment, what of the machine its result depends on, its
parameters and the keys (of uploads: the digests) of its inputs. So all keys are known before anything runs, equal work
in two jobs has one key, and a key does not change because a tool writes its files differently each time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from enginehouse.artifacts import digest_json
from enginehouse.artifacts.manifest import engine_key
from enginehouse_optimizer.pipeline.backends import BACKENDS, FREEZING, QUANTIZED, QUANTIZING, Backend
from enginehouse_optimizer.pipeline.inputs import Data, Inputs, Target
from enginehouse_optimizer.pipeline.machine import CPU, GPU

# The API's "all" said to the stage that would otherwise stop at a number of its own.
_ALL_SAMPLES = 2**31 - 1


@dataclass(frozen=True)
class Upload:
    """An input that is a directory with one uploaded file."""

    digest: str
    file_name: str


@dataclass(frozen=True)
class Output:
    """An input that is another stage's output."""

    stage: str


Source = Upload | Output


@dataclass(frozen=True)
class PlannedStage:
    """A stage to run: `name` is unique in its plan, `stage` is what the worker calls it."""

    name: str
    stage: str
    environment: str
    params: Mapping[str, Any]
    inputs: Mapping[str, Source]
    key: str

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the stages whose outputs it takes."""
        return tuple(source.stage for source in self.inputs.values() if isinstance(source, Output))


@dataclass(frozen=True)
class PlannedEngine:
    """An engine to publish from the outputs of two stages; `id` is the last part of its name."""

    target: Target
    build: str
    verify: str
    calibrate: str | None
    key: str
    id: str


@dataclass(frozen=True)
class Plan:
    """Stages in an order in which each comes after those it needs; engines in the order of the request's targets."""

    stages: tuple[PlannedStage, ...]
    engines: tuple[PlannedEngine, ...]

    def stage(self, name: str) -> PlannedStage:
        return next(stage for stage in self.stages if stage.name == name)

    def lineage(self, name: str) -> tuple[PlannedStage, ...]:
        """A stage and all it needs, in the plan's order."""
        wanted = {name}
        for stage in reversed(self.stages):
            if stage.name in wanted:
                wanted.update(stage.needs)
        return tuple(stage for stage in self.stages if stage.name in wanted)


@dataclass
class _Builder:
    """Collects stages; adding one that is there already changes nothing."""

    versions: Mapping[str, str]
    stages: dict[str, PlannedStage] = field(default_factory=dict)

    def add(
        self, name: str, environment: str, params: Mapping[str, Any], *, machine: str = "", **inputs: Source | None
    ) -> Output:
        """Add a stage, called by the first word of its name; returns its output. Inputs that are None are left out.

        `machine` names what of the machine the result depends on (CPU or GPU).
        """
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
        key = digest_json(determinants)
        self.stages.setdefault(name, PlannedStage(name, stage, environment, dict(params), given, key))
        return Output(name)

    def key(self, output: Output) -> str:
        return self.stages[output.stage].key


def make_plan(inputs: Inputs, versions: Mapping[str, str]) -> Plan:
    """The plan for a request.

    Args:
        versions: for each environment, and for CPU and GPU, a text that changes whenever what depends on it may.
    """
    builder = _Builder(versions)
    frozen = _freeze(builder, inputs)
    converted = builder.add("convert", FREEZING, {"layout": inputs.layout}, frozen=frozen)
    calibrated = _calibrate(builder, inputs, converted)
    verification = inputs.verification
    samples = _samples(verification.data, verification.max_samples)
    dataset = _dataset(verification.data)
    reference = builder.add("reference", QUANTIZING, samples, model=converted, dataset=dataset)
    limits = {
        "minimum_relative_accuracy": verification.minimum_relative_accuracy,
        "minimum_sqnr_db": verification.minimum_sqnr_db,
    }
    engines = []
    for target, suffix in zip(inputs.targets, _suffixes(inputs.targets), strict=True):
        backend = BACKENDS[target.backend]
        quantized = target.precision in QUANTIZED
        model = frozen if backend.builds_from == "freeze" else converted
        if quantized and calibrated is not None:
            model = _quantize(builder, inputs, backend, converted, calibrated)
        low, best, high = target.profile
        params = {
            "backend": backend.name,
            "precision": target.precision,
            "profile": {"min": low, "opt": best, "max": high},
            "options": dict(target.options),
        }
        machine = GPU if backend.device == "gpu" else ""
        built = builder.add(f"build {suffix}", backend.environment, params, machine=machine, model=model)
        verified = builder.add(
            f"verify {suffix}", backend.environment, {**samples, **limits}, engine=built, reference=reference,
            dataset=dataset,
        )  # fmt: skip
        # Its bytes follow from the build alone: not from what it is measured on, nor from the limits that refuse it.
        key = engine_key({"build": builder.key(built)})
        identifier = f"{inputs.model.id}-{backend.name}-{target.precision.lower()}-{key.partition(':')[2][:12]}"
        calibrate = calibrated.stage if quantized and calibrated else None
        engines.append(PlannedEngine(target, built.stage, verified.stage, calibrate, key, identifier))
    return Plan(tuple(builder.stages.values()), tuple(engines))


def environments_of(inputs: Inputs) -> tuple[str, ...]:
    """The worker environments that a request needs, sorted."""
    return tuple(sorted({stage.environment for stage in make_plan(inputs, {}).stages}))


def _freeze(builder: _Builder, inputs: Inputs) -> Output:
    model = inputs.model
    if model.architecture:
        return builder.add("freeze", FREEZING, {"zoo": {"architecture": model.architecture, "seed": model.seed}})
    return builder.add("freeze", FREEZING, {}, model=Upload(model.blob, model.file_name))


def _calibrate(builder: _Builder, inputs: Inputs, converted: Output) -> Output | None:
    calibration = inputs.calibration
    if calibration is None or not any(target.precision in QUANTIZED for target in inputs.targets):
        return None
    samples = _samples(calibration.data, calibration.max_samples or _ALL_SAMPLES)
    params: dict[str, Any] = {"method": calibration.method, **samples}
    if calibration.percentile is not None:
        params["percentile"] = calibration.percentile
    if calibration.batch_size:
        params["batch_size"] = calibration.batch_size
    return builder.add("calibrate", QUANTIZING, params, model=converted, dataset=_dataset(calibration.data))


def _quantize(builder: _Builder, inputs: Inputs, backend: Backend, converted: Output, calibrated: Output) -> Output:
    exclude = inputs.calibration.exclude if inputs.calibration else ()
    params = {"dialect": backend.dialect, "exclude": sorted(exclude)}
    name = f"quantize {backend.dialect}"
    return builder.add(name, QUANTIZING, params, machine=CPU, model=converted, calibration=calibrated)


def _samples(data: Data, max_samples: int) -> dict[str, Any]:
    params: dict[str, Any] = {}
    if data.synthetic is not None:
        params["synthetic"] = dict(vars(data.synthetic))
    if max_samples:
        params["max_samples"] = max_samples
    return params


def _dataset(data: Data) -> Upload | None:
    return Upload(data.blob, "data.npz") if data.blob else None


def _suffixes(targets: tuple[Target, ...]) -> list[str]:
    """What tells targets apart in the names of their stages: "onnxruntime int8", with a number from the second on."""
    seen: dict[str, int] = {}
    names = []
    for target in targets:
        name = f"{target.backend} {target.precision.lower()}"
        seen[name] = seen.get(name, 0) + 1
        names.append(name if seen[name] == 1 else f"{name} #{seen[name]}")
    return names
