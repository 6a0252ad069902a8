"""Reading suites: YAML files, ours or users' own. Strict: an error names the file, the line and the key."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from enginehouse.bench import schema
from enginehouse.bench.modes import BACKENDS, DEVICE_KINDS, PRECISIONS, Mode, known_modes
from enginehouse.bench.statistics import WINDOWS_OF_A_RESULT
from enginehouse.bench.suite import CalibrationPlan, MeasureSpec, ModelSpec, Suite
from enginehouse.errors import NotFoundError

SCOPES = ("engine", "host", "served")
ORDERS = ("random", "fixed")
METHODS = ("entropy", "max", "percentile", "mse")
DISTRIBUTIONS = ("normal", "uniform", "images")
MAX_BATCH = 65536


def packaged_suites() -> tuple[str, ...]:
    """Names of the suites that come with Enginehouse."""
    names = (entry.name for entry in resources.files("enginehouse.bench").joinpath("suites").iterdir())
    return tuple(sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml")))


def load_suite(name_or_path: str | Path) -> Suite:
    """The packaged suite of that name, or the suite in that file.

    Raises:
        NotFoundError: neither exists.
        InvalidArgumentError: the file is not a valid suite; names the file, the key and what was expected.
    """
    if str(name_or_path) in packaged_suites():
        file = f"{name_or_path}.yaml"
        text = resources.files("enginehouse.bench").joinpath("suites").joinpath(file).read_text("utf-8")
        return parse_suite(text, file)
    path = Path(name_or_path)
    if not path.is_file():
        raise NotFoundError(
            f"suite {str(name_or_path)!r} not found: expected the path of a YAML file or one of "
            + ", ".join(packaged_suites())
        )
    return parse_suite(path.read_text("utf-8"), str(path))


def parse_suite(text: str, file: str) -> Suite:
    """The suite in a YAML text; `file` is what errors call it.

    Raises:
        InvalidArgumentError: it is not a valid suite.
    """
    optional = ("description", "scopes", "concurrency", "instances", "gpus", "measure", "calibration", "seed")
    top = schema.parse(text, file).mapping(("name", "models", "modes", "batches"), optional)
    known: dict[str, Any] = {}
    if "description" in top:
        known["description"] = top["description"].text().strip()
    if "scopes" in top:
        nodes = top["scopes"].items("scopes")
        known["scopes"] = tuple(node.choice(SCOPES) for node in nodes)
        schema.unique(nodes, known["scopes"], "a scope")
    if "concurrency" in top:
        known["concurrency"] = _integers(top["concurrency"], "numbers of requests in flight", 4096)
    if "instances" in top:
        known["instances"] = top["instances"].integer(1, 64)
    if "gpus" in top:
        known["gpus"] = () if top["gpus"].value == "all" else _gpus(top["gpus"])
    if "measure" in top:
        known["measure"] = _measure(top["measure"])
    if "calibration" in top:
        known["calibration"] = _calibration(top["calibration"])
    if "seed" in top:
        known["seed"] = top["seed"].integer(0, 2**31 - 1)
    return Suite(
        name=top["name"].text("a name"),
        models=_models(top["models"], Path(file).parent),
        modes=_modes(top["modes"]),
        batches=_integers(top["batches"], "batch sizes", MAX_BATCH),
        **known,
    )


def _integers(node: schema.Node, what: str, high: int) -> tuple[int, ...]:
    nodes = node.items(what)
    values = tuple(item.integer(1, high) for item in nodes)
    schema.unique(nodes, values, "a value")
    return values


def _gpus(node: schema.Node) -> tuple[int, ...]:
    if not isinstance(node.value, list):
        raise node.error('"all" or a list of GPU indices')
    nodes = node.items("GPU indices")
    values = tuple(item.integer(0, 1023) for item in nodes)
    schema.unique(nodes, values, "an index")
    return values


def _models(node: schema.Node, folder: Path) -> tuple[ModelSpec, ...]:
    nodes = node.items("models")
    models = tuple(_model(item, folder) for item in nodes)
    schema.unique(nodes, [model.name for model in models], "a model name")
    return models


def _model(node: schema.Node, folder: Path) -> ModelSpec:
    if isinstance(node.value, str):
        architecture = node.text()
        return ModelSpec(name=architecture, zoo=architecture)
    keys = node.mapping(("name",), ("zoo", "seed", "file", "registered"))
    sources = [key for key in ("zoo", "file", "registered") if key in keys]
    if len(sources) != 1 or ("seed" in keys and "zoo" not in keys):
        raise node.error("exactly one of zoo, file and registered beside name (seed only with zoo)")
    if "file" in keys:
        path = folder / keys["file"].text("a model file's path")
        if not path.is_file():
            raise keys["file"].error("a model file that is there, from the suite's folder")
        return ModelSpec(name=keys["name"].text("a name"), file=str(path))
    return ModelSpec(
        name=keys["name"].text("a name"),
        seed=keys["seed"].integer(0, 2**31 - 1) if "seed" in keys else 0,
        **{source: keys[source].text() for source in sources},
    )


def _modes(node: schema.Node) -> tuple[Mode, ...]:
    known = known_modes()
    nodes = node.items("modes")
    modes = tuple(_mode(item, known) for item in nodes)
    schema.unique(nodes, [mode.name for mode in modes], "a mode name")
    return modes


def _mode(node: schema.Node, known: Mapping[str, Mode]) -> Mode:
    example = "a mode such as tensorflow-cpu-fp32, onnxruntime-cpu-int8, tf-trt-int8 or tensorrt-int8"
    if isinstance(node.value, str):
        if node.value not in known:
            raise node.error(example)
        return known[node.value]
    optional = ("backend", "device", "precision", "build_options", "load_options", "batches", "environment")
    keys = node.mapping(("name",), optional)
    name = keys["name"].text("a name")
    triple = [key for key in ("backend", "device", "precision") if key in keys]
    if not triple:
        if name not in known:
            raise keys["name"].error(f"{example}, or backend, device and precision beside a name of your own")
        base = known[name]
    elif len(triple) < 3:
        raise node.error("all of backend, device and precision, or none of them")
    else:
        base = Mode(
            name,
            keys["backend"].choice(BACKENDS),
            keys["device"].choice(DEVICE_KINDS),
            keys["precision"].choice(PRECISIONS),
        )
        same = known.get(name, base)
        if (same.backend, same.device, same.precision) != (base.backend, base.device, base.precision):
            raise keys["name"].error(f"a name of your own: {name} means something else")
    build = keys["build_options"].options() if "build_options" in keys else {}
    return dataclasses.replace(
        base,
        build_options={option: _option_text(value) for option, value in build.items()},
        load_options=keys["load_options"].options() if "load_options" in keys else base.load_options,
        batches=_integers(keys["batches"], "batch sizes", MAX_BATCH) if "batches" in keys else (),
        environment=keys["environment"].text("a worker environment's name")
        if "environment" in keys
        else base.environment,
    )


def _option_text(value: str | int | float | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _measure(node: schema.Node) -> MeasureSpec:
    names = [field.name for field in dataclasses.fields(MeasureSpec)]
    keys = node.mapping((), names)
    known: dict[str, Any] = {}
    for key, low, high in (
        ("warmup_seconds", 0, 3600),
        ("warmup_max_seconds", 0, 3600),
        ("window_seconds", 0.01, 600),
        ("max_seconds", 0.1, 86400),
        ("agreement", 0.001, 1),
    ):
        if key in keys:
            known[key] = keys[key].number(low, high)
    if "max_windows" in keys:
        known["max_windows"] = keys["max_windows"].integer(WINDOWS_OF_A_RESULT, 1000)
    if "order" in keys:
        known["order"] = keys["order"].choice(ORDERS)
    return MeasureSpec(**known)


def _calibration(node: schema.Node) -> CalibrationPlan:
    keys = node.mapping((), ("method", "percentile", "dataset", "synthetic", "max_samples", "batch_size"))
    known: dict[str, Any] = {}
    if "dataset" in keys and "synthetic" in keys:
        raise node.error("either dataset or synthetic, not both")
    if "method" in keys:
        known["method"] = keys["method"].choice(METHODS)
    if "percentile" in keys:
        if known.get("method") != "percentile":
            raise keys["percentile"].error("no percentile unless method is percentile")
        known["percentile"] = keys["percentile"].number(50, 100)
    if "dataset" in keys:
        known["dataset"] = keys["dataset"].text("a dataset's id or resource name")
    if "synthetic" in keys:
        synthetic = keys["synthetic"].mapping((), ("distribution", "samples", "seed"))
        if "distribution" in synthetic:
            known["distribution"] = synthetic["distribution"].choice(DISTRIBUTIONS)
        if "samples" in synthetic:
            known["samples"] = synthetic["samples"].integer(1, 100_000)
        if "seed" in synthetic:
            known["seed"] = synthetic["seed"].integer(0, 2**31 - 1)
    for key in ("max_samples", "batch_size"):
        if key in keys:
            known[key] = keys[key].integer(1, 1_000_000)
    return CalibrationPlan(**known)
