"""The report's charts: throughput and latency against batch size, all modes side by side, the machine over time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from enginehouse.bench.rows import Row
from enginehouse.report.figures import (
    FOREGROUND,
    MUTED,
    PALETTE,
    Plot,
    batch_axis,
    color_of,
    figures,
    finish,
    log,
    log_if_wide,
    short,
    single,
    style,
)
from enginehouse.report.series import Panel, Phase

_PHASES = {
    "optimize": "#8a63d2",
    "calibrate": "#c8508c",
    "build": "#2f81d8",
    "load": "#7a8794",
    "warm-up": "#b58900",
    "measure": "#2a9d6f",
}
_PHASE_NAMES = {
    "optimize": "making engines",
    "calibrate": "calibrating",
    "build": "building",
    "load": "loading",
    "warm-up": "warming up",
    "measure": "measuring",
}


@dataclass(frozen=True)
class Line:
    """One curve against batch size; its rows have one batch size each."""

    label: str
    rows: tuple[Row, ...]
    color: str
    dashes: tuple[float, ...] | None = None


def lines_plot(name: str, title: str, lines: Sequence[Line]) -> Plot:
    """Throughput (left axis, solid, with its interval) and mean latency (right axis, dashed, small squares) against
    batch size."""
    figure, left = single(8, 4.6)
    right = left.twinx()
    for line in lines:
        rows = sorted(line.rows, key=lambda row: row.lane.batch)
        batches = [row.lane.batch for row in rows]
        solid = "-" if line.dashes is None else (0, line.dashes)
        rates = [row.inferences_per_second for row in rows]
        lows, highs = [row.interval[0] for row in rows], [row.interval[1] for row in rows]
        left.plot(
            batches, rates, color=line.color, marker="o", markersize=4.5, linewidth=2, linestyle=solid, label=line.label
        )
        left.fill_between(batches, lows, highs, color=line.color, alpha=0.15, linewidth=0)
        latency = [row.latency_ms.mean for row in rows]
        right.plot(
            batches,
            latency,
            color=line.color,
            marker="s",
            markersize=3,
            linewidth=1.2,
            linestyle=(0, (4, 2)),
            alpha=0.8,
        )
    every = [row for line in lines for row in line.rows]
    batch_axis(left, sorted({row.lane.batch for row in every}))
    left.set_xlabel("batch size")
    left.set_ylabel("throughput, images/s  (solid)")
    right.set_ylabel("mean latency of a batch, ms  (dashed)")
    log_if_wide(left, [row.inferences_per_second for row in every])
    log_if_wide(right, [row.latency_ms.mean for row in every])
    style(left, grid=True)
    style(right)
    left.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=min(3, len(lines)), frameon=False, fontsize=9.5)
    return finish(figure, name, title, f"{title}; the numbers are in the tables")


def batch_plot(name: str, model: str, scope: str, rows: Sequence[Row], modes: Sequence[str]) -> Plot:
    """Throughput and mean latency of one model against batch size, a colour a mode."""
    found: dict[tuple[str, str, int], list[Row]] = {}
    for row in rows:
        found.setdefault((row.lane.mode, row.lane.device, row.lane.concurrency), []).append(row)
    several = len({key[2] for key in found}) > 1
    lines = []
    for (mode, device, concurrency), members in found.items():
        label = mode + (f" ({device})" if device not in ("cpu", "gpu", "gpu:0") else "")
        label += f", {concurrency} in flight" if several else ""
        lines.append(Line(label, tuple(members), color_of(mode, modes)))
    return lines_plot(name, f"{model}: throughput and latency against batch size ({scope})", lines)


def modes_plot(name: str, rows: Sequence[Row], modes: Sequence[str], scope: str) -> Plot:
    """The highest throughput of every mode, on a log scale, one group of bars for each model."""
    models = list(dict.fromkeys(row.lane.model for row in rows))
    best: dict[tuple[str, str], Row] = {}
    for row in rows:
        key = (row.lane.model, row.lane.mode)
        if key not in best or row.inferences_per_second > best[key].inferences_per_second:
            best[key] = row
    figure, axis = single(8, 1.3 + 0.34 * len(best) + 0.25 * len(models))
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
                color=FOREGROUND,
                linewidth=1,
            )
            end = (max(row.interval[1], rate), position)
            note = f"{short(rate)} (batch {row.lane.batch})"
            axis.annotate(note, end, (6, 0), textcoords="offset points", va="center", fontsize=9, color=MUTED)
            ticks.append(position)
            labels.append(mode if len(models) == 1 else f"{model}  {mode}")
            position += 1
        position += 0.6
    axis.set_yticks(ticks, labels, fontsize=9)
    log(axis.xaxis, axis.set_xscale, high / low)
    axis.set_xlim(low / 2.5, high * (high / low) ** 0.35 * 2)
    axis.invert_yaxis()
    axis.set_xlabel("highest throughput of any batch size, images/s (log scale)")
    style(axis, grid=True, grid_axis="x")
    return finish(figure, name, f"All modes side by side ({scope})", "Bars of the highest throughput of every mode")


def time_plot(name: str, panels: Sequence[Panel], phases: Sequence[Phase]) -> Plot:
    """Utilization, memory, temperature and power over time, with the run's phases marked. Needs a panel with a
    series."""
    from matplotlib.patches import Patch

    shown = [panel for panel in panels if panel.series]
    figure, axes = figures(8, 0.9 + 1.55 * len(shown), len(shown))
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
            color = PALETTE[labels.index(_device(one.label)) % len(PALETTE)]
            axis.plot([at / scale for at in one.seconds], one.values, color=color, linewidth=1.3, label=one.label)
        axis.set_ylabel(f"{panel.title}, {panel.unit}", fontsize=9)
        axis.set_xlim(0, end / scale)
        axis.set_ylim(0, 105 if panel.unit == "%" else None)
        axis.legend(loc="upper left", fontsize=8, ncols=4, frameon=False)
        style(axis, grid=True)
    axes[-1].set_xlabel(f"{unit} since the run began")
    if kinds:
        patches = [Patch(color=_PHASES[kind], alpha=0.35, linewidth=0, label=_PHASE_NAMES[kind]) for kind in kinds]
        figure.legend(handles=patches, loc="outside upper center", ncols=len(patches), frameon=False, fontsize=9)
    return finish(figure, name, "The machine over time", "Curves of what the devices reported during the run")


def _device(label: str) -> str:
    """The host's curves have one colour, whatever its quantity is called."""
    return "host" if label == "CPU" else label
