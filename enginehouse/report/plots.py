"""The report's figures, drawn with matplotlib's Agg and SVG back ends. Each can be had as PNG (light) or as themed
inline SVG."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from enginehouse.bench.rows import Row
from enginehouse.report.series import Panel, Phase

# Drawn in these, then replaced in SVG by variables of the page's theme.
_FOREGROUND, _MUTED, _GRID = "#1f2933", "#5b6773", "#d9dee4"
_VARIABLES = {_FOREGROUND: "var(--fg)", _MUTED: "var(--muted)", _GRID: "var(--line)"}
# Distinguishable on white and on near black, and by most colour-blind readers.
_PALETTE = (
    "#2f81d8",
    "#e07b28",
    "#2a9d6f",
    "#c8508c",
    "#8a63d2",
    "#b58900",
    "#17a2b8",
    "#d1495b",
    "#7a8794",
    "#5f8f3e",
)
_KNOWN = {
    "tensorflow-cpu-fp32": "#7a8794", "tensorflow-gpu-fp32": "#b58900", "tf-trt-fp32": "#17a2b8", "tf-trt-int8":
    "#8a63d2",
    "tensorrt-int8": "#2a9d6f", "tensorrt-fp16": "#5f8f3e", "onnxruntime-cpu-fp32": "#2f81d8",
    "onnxruntime-cpu-int8": "#e07b28",
}  # fmt: skip
_PHASES = {"optimize": "#8a63d2", "load": "#7a8794", "warm-up": "#b58900", "measure": "#2a9d6f"}
_PHASE_NAMES = {"optimize": "making engines", "load": "loading", "warm-up": "warming up", "measure": "measuring"}


@dataclass(frozen=True)
class Plot:
    """A figure: `name` is its file's stem, `svg` an element to inline (it uses the page's CSS variables), `alt` its
    text."""

    name: str
    title: str
    alt: str
    png: bytes
    svg: str


def color_of(mode: str, modes: Sequence[str]) -> str:
    """The colour of a mode, the same in every figure of a report."""
    if mode in _KNOWN:
        return _KNOWN[mode]
    free = [color for color in _PALETTE if color not in _KNOWN.values()] or list(_PALETTE)
    unknown = [name for name in modes if name not in _KNOWN]
    return free[unknown.index(mode) % len(free)] if mode in unknown else _PALETTE[0]


def batch_plot(name: str, model: str, scope: str, rows: Sequence[Row], modes: Sequence[str]) -> Plot:
    """Throughput (left axis, solid) and mean latency (right axis, dashed) of one model against batch size, a colour
    a mode."""
    figure, left = _figure(8, 4.6)
    right = left.twinx()
    lines: dict[tuple[str, str, int], list[Row]] = {}
    for row in rows:
        lines.setdefault((row.lane.mode, row.lane.device, row.lane.concurrency), []).append(row)
    several = len({key[2] for key in lines}) > 1
    for (mode, device, concurrency), found in lines.items():
        found.sort(key=lambda row: row.lane.batch)
        batches, color = [row.lane.batch for row in found], color_of(mode, modes)
        label = mode + (f" ({device})" if device not in ("cpu", "gpu", "gpu:0") else "")
        label += f", {concurrency} in flight" if several else ""
        rates = [row.inferences_per_second for row in found]
        lows, highs = [row.interval[0] for row in found], [row.interval[1] for row in found]
        left.plot(batches, rates, color=color, marker="o", markersize=4.5, linewidth=2, label=label)
        left.fill_between(batches, lows, highs, color=color, alpha=0.15, linewidth=0)
        latency = [row.latency_ms.mean for row in found]
        right.plot(
            batches, latency, color=color, marker="s", markersize=3, linewidth=1.2, linestyle=(0, (4, 2)), alpha=0.8
        )
    _batch_axis(left, sorted({row.lane.batch for row in rows}))
    left.set_xlabel("batch size")
    left.set_ylabel("throughput, images/s  (solid)")
    right.set_ylabel("mean latency of a batch, ms  (dashed)")
    for axis in (left, right):
        _log_if_wide(axis, [row.inferences_per_second if axis is left else row.latency_ms.mean for row in rows])
    _style(left, grid=True)
    _style(right)
    left.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=min(3, len(lines)), frameon=False, fontsize=9.5)
    title = f"{model}: throughput and latency against batch size ({scope})"
    return _finish(figure, name, title, f"{title}; the numbers are in the tables below")


def modes_plot(name: str, rows: Sequence[Row], modes: Sequence[str], scope: str) -> Plot:
    """The highest throughput of every mode, on a log scale, one group of bars for each model."""
    models = list(dict.fromkeys(row.lane.model for row in rows))
    best: dict[tuple[str, str], Row] = {}
    for row in rows:
        key = (row.lane.model, row.lane.mode)
        if key not in best or row.inferences_per_second > best[key].inferences_per_second:
            best[key] = row
    figure, axis = _figure(8, 1.3 + 0.34 * len(best) + 0.25 * len(models))
    position, ticks, labels = 0.0, [], []
    low = min(row.inferences_per_second for row in best.values())
    high = max(row.inferences_per_second for row in best.values())
    for model in models:
        for mode in (mode for mode in modes if (model, mode) in best):
            row = best[model, mode]
            rate = row.inferences_per_second
            axis.barh(position, rate, height=0.74, color=color_of(mode, modes))
            axis.errorbar(
                rate,
                position,
                xerr=[[rate - row.interval[0]], [row.interval[1] - rate]],
                color=_FOREGROUND,
                linewidth=1,
            )
            end = (max(row.interval[1], rate), position)
            note = f"{short(rate)} (batch {row.lane.batch})"
            axis.annotate(note, end, (6, 0), textcoords="offset points", va="center", fontsize=9, color=_MUTED)
            ticks.append(position)
            labels.append(mode if len(models) == 1 else f"{model}  {mode}")
            position += 1
        position += 0.6
    axis.set_yticks(ticks, labels, fontsize=9)
    _log(axis.xaxis, axis.set_xscale, high / low)
    axis.set_xlim(low / 2.5, high * (high / low) ** 0.35 * 2)
    axis.invert_yaxis()
    axis.set_xlabel("highest throughput of any batch size, images/s (log scale)")
    _style(axis, grid=True, grid_axis="x")
    return _finish(figure, name, f"All modes side by side ({scope})", "Bars of the highest throughput of every mode")


def time_plot(name: str, panels: Sequence[Panel], phases: Sequence[Phase]) -> Plot:
    """Utilization, memory, temperature and power over time, with the run's phases marked. Needs a panel with a
    series."""
    from matplotlib.patches import Patch

    shown = [panel for panel in panels if panel.series]
    figure, axes = _figures(8, 0.9 + 1.55 * len(shown), len(shown))
    end = max([phase.end for phase in phases] + [one.seconds[-1] for panel in shown for one in panel.series])
    scale, unit = (60.0, "minutes") if end > 300 else (1.0, "seconds")
    labels = list(dict.fromkeys(_device(one.label) for panel in shown for one in panel.series))
    kinds = [kind for kind in _PHASES if any(phase.kind == kind for phase in phases)]
    for axis, panel in zip(axes, shown, strict=True):
        for phase in phases:
            if phase.kind in _PHASES:
                color = _PHASES[phase.kind]
                axis.axvspan(phase.start / scale, phase.end / scale, color=color, alpha=0.13, linewidth=0)
        for one in panel.series:
            color = _PALETTE[labels.index(_device(one.label)) % len(_PALETTE)]
            axis.plot([at / scale for at in one.seconds], one.values, color=color, linewidth=1.3, label=one.label)
        axis.set_ylabel(f"{panel.title}, {panel.unit}", fontsize=9)
        axis.set_xlim(0, end / scale)
        axis.set_ylim(0, 105 if panel.unit == "%" else None)
        axis.legend(loc="upper left", fontsize=8, ncols=4, frameon=False)
        _style(axis, grid=True)
    axes[-1].set_xlabel(f"{unit} since the run began")
    if kinds:
        patches = [Patch(color=_PHASES[kind], alpha=0.35, linewidth=0, label=_PHASE_NAMES[kind]) for kind in kinds]
        figure.legend(handles=patches, loc="outside upper center", ncols=len(patches), frameon=False, fontsize=9)
    return _finish(figure, name, "The machine over time", "Curves of what the devices reported during the run")


def short(value: float) -> str:
    """A number to three or four digits, with thousands separators."""
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _figure(width: float, height: float) -> tuple[Any, Any]:
    figure, axes = _figures(width, height, 1)
    return figure, axes[0]


def _figures(width: float, height: float, count: int) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(count, 1, sharex=True, squeeze=False)[:, 0]


def _batch_axis(axis: Any, batches: Sequence[int]) -> None:
    axis.set_xscale("log", base=2)
    axis.set_xticks(batches, [str(batch) for batch in batches])
    axis.minorticks_off()


def _log_if_wide(axis: Any, values: Sequence[float]) -> None:
    """A log axis where a linear one would flatten the slow modes."""
    if min(values) > 0 and max(values) / min(values) > 12:
        _log(axis.yaxis, axis.set_yscale, max(values) / min(values))
    else:
        axis.set_ylim(bottom=0)


def _log(axis: Any, set_scale: Callable[[str], Any], span: float) -> None:
    """A log scale with plain numbers at 1, 2 and 5 of every decade, or only at 1 where there are many decades."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    set_scale("log")
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if span < 200 else (1,), numticks=30))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))


def _device(label: str) -> str:
    """The host's curves have one colour, whatever its quantity is called."""
    return "host" if label == "CPU" else label


def _style(axis: Any, *, grid: bool = False, grid_axis: str = "both") -> None:
    for side in ("top", "left", "right", "bottom"):
        axis.spines[side].set_visible(side == "bottom")
        axis.spines[side].set_color(_GRID)
    axis.tick_params(colors=_MUTED, which="both", length=0, labelsize=9.5)
    for label in axis.get_yticklabels():
        label.set_color(_MUTED)
    axis.xaxis.label.set_color(_MUTED)
    axis.yaxis.label.set_color(_MUTED)
    if grid:
        axis.grid(visible=True, axis=grid_axis, color=_GRID, linewidth=0.7)
        axis.set_axisbelow(True)
    legend = axis.get_legend()
    if legend is not None:
        for text in legend.get_texts():
            text.set_color(_FOREGROUND)


def _finish(figure: Any, name: str, title: str, alt: str) -> Plot:
    import matplotlib

    for legend in [*figure.legends, *(axis.get_legend() for axis in figure.axes)]:
        for text in legend.get_texts() if legend is not None else ():
            text.set_color(_FOREGROUND)
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        png, svg = io.BytesIO(), io.StringIO()
        figure.savefig(svg, format="svg", metadata={"Date": None})
        figure.patch.set_facecolor("white")
        figure.savefig(png, format="png", dpi=150, metadata={"Software": None, "Title": title})
    return Plot(name, title, alt, png.getvalue(), _inline(svg.getvalue(), name, alt))


def _inline(svg: str, name: str, alt: str) -> str:
    """An SVG document as an element of an HTML page: themed, no namespaces, ids that no other figure has."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    box = re.search(r'viewBox="([^"]+)"', body)
    label = alt.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    opening = f'<svg viewBox="{box.group(1) if box else ""}" role="img" aria-label="{label}">'
    body = opening + body[body.index(">") + 1 :]
    body = re.sub(r'<g id="patch_1">.*?</g>', "", body, count=1, flags=re.DOTALL)  # the figure's white background
    body = re.sub(r'(<g id="axes_\d+">\s*)<g id="patch_\d+">.*?</g>', r"\1", body, flags=re.DOTALL)  # the axes' as well
    body = re.sub(r'\bid="', f'id="{name}-', body)
    body = body.replace('xlink:href="#', f'href="#{name}-').replace("url(#", f"url(#{name}-")
    for color, variable in _VARIABLES.items():
        body = body.replace(color, variable)
    body = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", body)
    return re.sub(r"\n\s*", "\n", body)
