"""The paper's phases of a run, each with its charts, or why it has none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from enginehouse.bench.plan import ALL_GPUS
from enginehouse.bench.rows import Row
from enginehouse.report.claims import RESNET, SCOPES
from enginehouse.report.data import Results
from enginehouse.report.figures import PALETTE, Plot, color_of
from enginehouse.report.plots import Line, lines_plot, modes_plot
from enginehouse.report.tables import SCOPES as ALL_SCOPES

# The fastest first: what a phase shows where a machine has it.
_TF_TRT = ("tf-trt-int8", "tf-trt-fp16", "tf-trt-fp32")
_NATIVE = ("tensorrt-int8", "tensorrt-fp16", "tensorrt-fp32")
_DASHES = (None, (5.0, 2.0), (2.0, 1.5), (6.0, 2.0, 1.5, 2.0))


@dataclass(frozen=True)
class PhaseView:
    """One phase: its charts, and in words what is missing and why."""

    id: str
    title: str
    plots: tuple[Plot, ...]
    missing: tuple[str, ...]


def phase_views(results: Results, others: Mapping[str, Results] | None = None) -> tuple[PhaseView, ...]:
    """Phases 1 to 4 and the models on the CPU. `others` are results of other servers by name."""
    servers = others or {}
    first = _of_backend("phase1", "Phase 1: TF-TRT on each GPU, and all models", _TF_TRT, results, servers)
    second = _of_backend("phase2", "Phase 2: native TensorRT, ResNet-50", _NATIVE, results, servers)
    return (first, second, _native_against_tf_trt(results), _side_by_side(results), *_on_cpu(results))


def _of_backend(
    name: str, title: str, modes: Sequence[str], results: Results, others: Mapping[str, Results]
) -> PhaseView:
    mode = next((mode for mode in modes if any(row.lane.mode == mode for row in results.rows)), None)
    if mode is None:
        return PhaseView(name, title, (), (f"no rows of {', '.join(modes)}: {reason(results, modes)}",))
    rows = in_scope(results.rows, mode)
    scope = rows[0].lane.scope
    resnet = [row for row in rows if row.lane.model == RESNET and row.lane.device != ALL_GPUS]
    plots, missing = [], []
    devices = list(dict.fromkeys(row.lane.device for row in resnet))
    if resnet:
        lines = [
            _line(device, [row for row in resnet if row.lane.device == device], n) for n, device in enumerate(devices)
        ]
        plots.append(lines_plot(f"{name}-gpus", f"{RESNET} under {mode}, each GPU ({scope})", lines))
    models = _by_model([row for row in rows if row.lane.device == rows[0].lane.device])
    if len(models) > 1:
        lines = [_line(model, found, n) for n, (model, found) in enumerate(models.items())]
        plots.append(lines_plot(f"{name}-models", f"Models under {mode}, one GPU ({scope})", lines))
    servers = {"this run": resnet[:] if resnet else []}
    for other, theirs in others.items():
        servers[other] = [r for r in in_scope(theirs.rows, mode) if r.lane.model == RESNET and r.lane.scope == scope]
    first = {server: _first_device(found) for server, found in servers.items() if found}
    if len(first) > 1:
        lines = [_line(server, found, n) for n, (server, found) in enumerate(first.items())]
        plots.append(lines_plot(f"{name}-servers", f"{RESNET} under {mode}, servers ({scope}; runs apart)", lines))
    else:
        missing.append("other servers: none given (`report --against` another results folder)")
    return PhaseView(name, title, tuple(plots), tuple(missing))


def _native_against_tf_trt(results: Results) -> PhaseView:
    title = "Phase 3: native TensorRT against TF-TRT, ResNet-50"
    plots = []
    for precision in ("int8", "fp16", "fp32"):
        pair = [f"tensorrt-{precision}", f"tf-trt-{precision}"]
        found = {
            mode: _first_device([r for r in in_scope(results.rows, mode) if r.lane.model == RESNET]) for mode in pair
        }
        if all(found.values()):
            lines = [Line(mode, tuple(rows), color_of(mode, results.modes)) for mode, rows in found.items()]
            scope = found[pair[0]][0].lane.scope
            plots.append(
                lines_plot(f"phase3-{precision}", f"{RESNET} {precision.upper()}: native and TF-TRT ({scope})", lines)
            )
    missing = () if plots else (f"needs rows of both: {reason(results, [*_TF_TRT, *_NATIVE])}",)
    return PhaseView("phase3", title, tuple(plots), missing)


def _side_by_side(results: Results) -> PhaseView:
    single = [row for row in results.rows if row.lane.device != ALL_GPUS]
    plots = tuple(
        modes_plot(f"modes-{scope}", [row for row in single if row.lane.scope == scope], results.modes, scope)
        for scope in ALL_SCOPES
        if any(row.lane.scope == scope for row in single)
    )
    return PhaseView("phase4", "Phase 4: all modes side by side", plots, () if plots else ("no row was finished",))


def _on_cpu(results: Results) -> tuple[PhaseView, ...]:
    """Today's answer on a CPU, where several models have it."""
    plots = []
    for mode in ("onnxruntime-cpu-int8", "onnxruntime-cpu-fp32", "tensorflow-cpu-fp32"):
        models = _by_model(in_scope(results.rows, mode))
        if len(models) > 1:
            lines = [_line(model, found, n) for n, (model, found) in enumerate(models.items())]
            plots.append(lines_plot(f"cpu-models-{mode}", f"Models under {mode} (host)", lines))
    return (PhaseView("cpu", "The models on the CPU", tuple(plots), ()),) if plots else ()


def in_scope(rows: Sequence[Row], mode: str) -> list[Row]:
    """A mode's rows in the first of the paper's scopes that has any."""
    for scope in SCOPES:
        found = [row for row in rows if (row.lane.mode, row.lane.scope) == (mode, scope)]
        if found:
            return found
    return []


def reason(results: Results, modes: Sequence[str]) -> str:
    """Why these modes have no rows, as the run says."""
    reasons = dict.fromkeys(entry.reason for entry in results.not_run if entry.lane.mode in modes)
    return "; ".join(reasons) or "the suite does not have them"


def _by_model(rows: Sequence[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.lane.model, []).append(row)
    return found


def _first_device(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.lane.device == rows[0].lane.device]


def _line(label: str, rows: Sequence[Row], number: int) -> Line:
    dashes = _DASHES[number // len(PALETTE) % len(_DASHES)]
    return Line(label, tuple(rows), PALETTE[number % len(PALETTE)], dashes)
