"""Figures and their style, drawn with matplotlib's Agg and SVG back ends: each as PNG (light) and as themed inline
SVG."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

# Drawn in these, then replaced in SVG by variables of the page's theme.
FOREGROUND, MUTED, GRID = "#1f2933", "#5b6773", "#d9dee4"
_VARIABLES = {FOREGROUND: "var(--fg)", MUTED: "var(--muted)", GRID: "var(--line)"}
# Distinguishable on white and on near black, and by most colour-blind readers.
PALETTE = (
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
    "tensorflow-cpu-fp32": "#7a8794", "tensorflow-gpu-fp32": "#b58900", "tensorflow-gpu-tf32": "#8c6d1f",
    "tf-trt-fp32": "#17a2b8", "tf-trt-fp16": "#c8508c", "tf-trt-int8": "#8a63d2",
    "tensorrt-fp32": "#d1495b", "tensorrt-fp16": "#5f8f3e", "tensorrt-int8": "#2a9d6f",
    "onnxruntime-cpu-fp32": "#2f81d8", "onnxruntime-cpu-int8": "#e07b28",
}  # fmt: skip


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
    free = [color for color in PALETTE if color not in _KNOWN.values()] or list(PALETTE)
    unknown = [name for name in modes if name not in _KNOWN]
    return free[unknown.index(mode) % len(free)] if mode in unknown else PALETTE[0]


def short(value: float) -> str:
    """A number to three or four digits, with thousands separators."""
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def single(width: float, height: float) -> tuple[Any, Any]:
    """A figure of one pair of axes; inches."""
    figure, axes = figures(width, height, 1)
    return figure, axes[0]


def figures(width: float, height: float, count: int) -> tuple[Any, Any]:
    """A figure of some pairs of axes below each other, with one x axis; inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(count, 1, sharex=True, squeeze=False)[:, 0]


def batch_axis(axis: Any, batches: Sequence[int]) -> None:
    """Batch sizes on a log axis, each with its number."""
    axis.set_xscale("log", base=2)
    axis.set_xticks(batches, [str(batch) for batch in batches])
    axis.minorticks_off()


def log_if_wide(axis: Any, values: Sequence[float]) -> None:
    """A log axis where a linear one would flatten the slow modes."""
    if min(values) > 0 and max(values) / min(values) > 12:
        log(axis.yaxis, axis.set_yscale, max(values) / min(values))
    else:
        axis.set_ylim(bottom=0)


def log(axis: Any, set_scale: Callable[[str], Any], span: float) -> None:
    """A log scale with plain numbers at 1, 2 and 5 of every decade, or only at 1 where there are many decades."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    set_scale("log")
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if span < 200 else (1,), numticks=30))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))


def style(axis: Any, *, grid: bool = False, grid_axis: str = "both") -> None:
    """The look of axes: no frame, quiet text, an even grid."""
    for side in ("top", "left", "right", "bottom"):
        axis.spines[side].set_visible(side == "bottom")
        axis.spines[side].set_color(GRID)
    axis.tick_params(colors=MUTED, which="both", length=0, labelsize=9.5)
    for label in axis.get_yticklabels():
        label.set_color(MUTED)
    axis.xaxis.label.set_color(MUTED)
    axis.yaxis.label.set_color(MUTED)
    if grid:
        axis.grid(visible=True, axis=grid_axis, color=GRID, linewidth=0.7)
        axis.set_axisbelow(True)
    legend = axis.get_legend()
    if legend is not None:
        for text in legend.get_texts():
            text.set_color(FOREGROUND)


def finish(figure: Any, name: str, title: str, alt: str) -> Plot:
    """The figure as PNG and SVG."""
    import matplotlib

    for legend in [*figure.legends, *(axis.get_legend() for axis in figure.axes)]:
        for text in legend.get_texts() if legend is not None else ():
            text.set_color(FOREGROUND)
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
