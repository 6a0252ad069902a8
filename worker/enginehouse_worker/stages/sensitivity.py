"""sensitivity: which layers cost accuracy when quantized, and which to leave in FP32 to reach a wanted SQNR."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from enginehouse_worker import cpu
from enginehouse_worker.data.preprocessing import read_preprocessing
from enginehouse_worker.datasets import Dataset, open_dataset
from enginehouse_worker.files import write_json
from enginehouse_worker.graphs.signature import model_signature
from enginehouse_worker.layers.layer import Layer, quantized_layers
from enginehouse_worker.quantization.exclusion import excluded_nodes
from enginehouse_worker.quantization.model import nothing_to_quantize
from enginehouse_worker.sensitivity.measure import measure_layers, measure_model
from enginehouse_worker.sensitivity.noise import shares, sqnr
from enginehouse_worker.sensitivity.order import exclusion_orders
from enginehouse_worker.sensitivity.report import FILE
from enginehouse_worker.sensitivity.search import Found, search
from enginehouse_worker.stages.context import Progress, Stage, StageContext
from enginehouse_worker.stages.params import Params
from enginehouse_worker.stages.quantization import PARAMS, open_quantization

_PARAMS = (
    *PARAMS,
    "synthetic",
    "max_samples",
    "batch_size",
    "preprocessing",
    "minimum_sqnr_db",
    "max_layers",
)
_MAX_SAMPLES = 16
# Values between segments of one batch are all in memory at once: about 20 MB a sample for ResNet-50.
_BATCH_SIZE = 8
_MINIMUM_SQNR_DB = 20.0
# How much of the stage's time the layers take, for progress.
_MEASURING = 0.8


def run(ctx: StageContext) -> dict[str, Any]:
    params = Params(ctx.params, _PARAMS, ctx.stage)
    minimum = params.number("minimum_sqnr_db", _MINIMUM_SQNR_DB, -200.0, 200.0)
    size = params.integer("batch_size", _BATCH_SIZE, 1, 4096)
    most = params.integer("max_layers", 0, 0) if "max_layers" in params else None
    quantization = open_quantization(ctx, params)
    graph, dialect, reduced = quantization.graph, quantization.dialect, quantization.reduced_range
    excluded = excluded_nodes(graph, params.strings("exclude"))
    placement = quantization.place(excluded)
    layers = quantized_layers(graph, placement)
    if not layers:
        raise nothing_to_quantize(dialect.name, bool(excluded))
    dataset = open_dataset(
        ctx.inputs.get("dataset"),
        params.mapping("synthetic") if "synthetic" in params else None,
        model_signature(ctx.input("model"), graph.model),
        params.integer("max_samples", _MAX_SAMPLES, 1),
        preprocessing=read_preprocessing(params),
    )
    batches = -(-dataset.samples // size)

    def report(batch: int, position: int, ratio: float) -> None:
        share = (batch * len(layers) + position + 1) / (batches * len(layers))
        alone = f"{sqnr(ratio):.1f} dB" if ratio > 0.0 else "exact"
        name = f"layer {position + 1} of {len(layers)}, batch {batch + 1} of {batches}: {layers[position].name}"
        ctx.progress(_MEASURING * share, f"{name} alone: {alone}")

    noises, references = measure_layers(quantization, placement, layers, dataset.batches(size), report)
    trials = _Trials(ctx.progress)

    def measure(nodes: frozenset[int]) -> float:
        widen = cpu.int8_products_saturate() and not reduced
        ratio = measure_model(quantization, excluded | nodes, dataset.batches(size), references, widen)
        trials.tried(len(nodes), ratio)
        return ratio

    everything = measure(frozenset())
    limit = most if most is not None else max(1, len(layers) // 4)
    ordered: list[Layer] = []
    ratios: list[float] = []
    found = Found(0, float("inf"), False)
    for order in exclusion_orders(graph, dialect, placement, layers, noises):
        numbers, in_order = [layers[position].number for position in order], [noises[position] for position in order]
        tried = search(
            in_order,
            everything,
            10.0 ** (-minimum / 10.0),
            limit,
            lambda count, numbers=numbers: measure(frozenset(numbers[:count])),  # type: ignore[misc]
        )
        if tried.reached or tried.ratio < found.ratio:
            found, ordered, ratios = tried, [layers[position] for position in order], in_order
        if found.reached:
            break
    content = _content(ordered, ratios, everything, found, minimum, dataset)
    if limit > 0 and not found.reached:
        content["message"] = _unreached(found, minimum, limit)
    write_json(ctx.output / FILE, {"dialect": dialect.name, "reduced_range": reduced, **content})
    facts = ("samples", "quantized_sqnr_db", "minimum_sqnr_db", "reached_sqnr_db", "excluded", "message")
    return {name: content[name] for name in facts if name in content} | {"layers": len(layers)}


class _Trials:
    """Progress of the search, whose length is not known beforehand: each trial takes a third of what is left."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._fraction = _MEASURING

    def tried(self, count: int, ratio: float) -> None:
        self._fraction += (1.0 - self._fraction) / 3
        reached = f"{sqnr(ratio):.1f} dB" if ratio > 0.0 else "exact"
        self._progress(self._fraction, f"quantized but for {count} layers: {reached}")


def _content(
    layers: Sequence[Layer],
    ratios: Sequence[float],
    everything: float,
    found: Found,
    minimum: float,
    dataset: Dataset,
) -> dict[str, Any]:
    measured = list(enumerate(zip(layers, ratios, shares(ratios), strict=True)))
    rows = []
    for position, (layer, ratio, share) in sorted(measured, key=lambda entry: -entry[1][1]):
        row = {
            "name": layer.name,
            "type": layer.op_type,
            "sqnr_db": sqnr(ratio),
            "noise_share": round(share, 6),
            "excluded": position < found.count,
        }
        rows.append({name: value for name, value in row.items() if value is not None})
    content = {
        "samples": dataset.samples,
        "data": dataset.describe(),
        "quantized_sqnr_db": sqnr(everything),
        "minimum_sqnr_db": minimum,
        "reached_sqnr_db": sqnr(found.ratio),
        "excluded": [layer.name for layer in layers[: found.count]],
        "layers": rows,
    }
    return {name: value for name, value in content.items() if value is not None}


def _unreached(found: Found, minimum: float, limit: int) -> str:
    return (
        f"excluding up to {limit} layers does not reach {minimum:g} dB: the best of those tried is "
        f"{sqnr(found.ratio)} dB without {found.count} layers. Allow more layers, calibrate with another method or "
        "more data, or ask for less"
    )


STAGE = Stage("sensitivity", ("model", "calibration", "dataset"), run, ("onnxruntime", "onnx", "numpy"))
