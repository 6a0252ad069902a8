"""The tables of a folder of results, in Markdown: `python benchmarks/tensorrt_speed/table.py results/h200/NAME`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "benchmarks")]

from tensorrt_speed import rows  # noqa: E402

Row = Mapping[str, Any]
BATCHES = (1, 8, 32, 128, 256)
OURS = 0.99  # of what implicit calibration and a minimal script reach
ENGINE_RATES = {128: 65_000, 256: 72_000}
LATENCY_MS, TAIL = 0.40, 1.2
HOST = 0.95
FP16_OVER_TORCH, INT8_OVER_TORCH = 1.3, 2.2
BUILD_AGAIN = 0.25
TORCHVISION = "resnet50-v1.5"


def select(found: Iterable[Row], **values: Any) -> list[Row]:
    """The rows with these values."""
    return [row for row in found if all(row.get(name) == value for name, value in values.items())]


def fastest(found: Sequence[Row]) -> Row | None:
    """The row with the most images a second, or None."""
    return max(found, key=lambda row: float(row["inferences_per_second"]), default=None)


def markdown(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table, or nothing where there are no lines."""
    if not lines:
        return ""
    rule = "|" + "---|" * len(heads)
    return (
        "\n".join(["| " + " | ".join(heads) + " |", rule, *("| " + " | ".join(line) + " |" for line in lines)]) + "\n"
    )


def _met(met: bool) -> str:
    return "met" if met else "**not met**"


def _ratios(found: Sequence[Row], batches: Sequence[int], over: str, under: str) -> Iterable[tuple[int, float]]:
    """Images a second of variant `over` over those of `under`, in the newest sitting that has both."""
    for batch in batches:
        above = select(found, variant=over, batch=batch, scope="engine", instances=1)
        below = select(found, variant=under, batch=batch, scope="engine", instances=1)
        pairs = [(a, b) for a in above for b in below if a["sitting"] == b["sitting"]]
        if pairs:
            a, b = max(pairs, key=lambda pair: str(pair[0]["sitting"]))
            yield batch, a["inferences_per_second"] / b["inferences_per_second"]


def _compared(found: Sequence[Row]) -> list[list[str]]:
    lines = []
    for name in ("int8", "int8-one"):
        for batch, ratio in _ratios(found, BATCHES, name, "implicit"):
            text = f"INT8 Q/DQ over TensorRT's own calibration, {name}, batch {batch}"
            lines.append([text, f"{OURS}", f"{ratio:.3f}", _met(ratio >= OURS)])
    for direct in sorted({str(row["variant"]) for row in select(found, runtime="direct")}):
        name = direct.removeprefix("direct-") if direct.startswith("direct-") else "int8"
        for batch, ratio in _ratios(found, BATCHES, name, direct):
            text = f"our runtime over TensorRT alone, {name}, batch {batch}"
            lines.append([text, f"{OURS}", f"{ratio:.3f}", _met(ratio >= OURS)])
    return lines


def _rates(found: Sequence[Row]) -> list[list[str]]:
    lines = []
    engine = [row for row in select(found, source="int8", scope="engine") if row["runtime"] == "engine"]
    for batch, bar in ENGINE_RATES.items():
        best = fastest(select(engine, batch=batch, instances=1))
        if best is not None:
            rate = best["inferences_per_second"]
            text = f"INT8 engine only, batch {batch}, one instance, images/s ({best['variant']})"
            lines.append([text, f"{bar:,}", f"{rate:,.0f}", _met(rate >= bar)])
    most = fastest([row for row in select(found, scope="engine", precision="INT8") if row["runtime"] == "engine"])
    if most is not None:
        text = f"INT8 maximum, images/s ({most['variant']}, batch {most['batch']}, {most['instances']} instances)"
        lines.append([text, "", f"{most['inferences_per_second']:,.0f}", ""])
    return lines


def _latency(found: Sequence[Row]) -> list[list[str]]:
    single = [row for row in found if row["batch"] == 1 and row["precision"] == "INT8" and "latency_ms" in row]
    single = [row for row in single if row["scope"] == "engine" and row["runtime"] == "engine"]
    if not single:
        return []
    best = min(single, key=lambda row: float(row["latency_ms"]["p50"]))
    median, tail = best["latency_ms"]["p50"], best["latency_ms"]["p99"] / best["latency_ms"]["p50"]
    return [
        [f"INT8 batch 1, median ms ({best['variant']})", f"< {LATENCY_MS}", f"{median:.4f}", _met(median < LATENCY_MS)],
        ["its p99 over its median", f"{TAIL}", f"{tail:.2f}", _met(tail <= TAIL)],
    ]


def _host(found: Sequence[Row]) -> list[list[str]]:
    lines = []
    for batch in ENGINE_RATES:
        for precision in ("INT8", "FP16"):
            here = [r for r in select(found, batch=batch, precision=precision) if r["source"].endswith("-uint8")]
            host, engine = fastest(select(here, scope="host")), fastest(select(here, scope="engine", instances=1))
            if host is None or engine is None:
                continue
            ratio = host["inferences_per_second"] / engine["inferences_per_second"]
            text = f"UINT8 host to host over engine only, {precision}, batch {batch} ({host['variant']}, "
            text += f"{host['instances']} instances: {host['inferences_per_second']:,.0f} of "
            lines.append(
                [f"{text}{engine['inferences_per_second']:,.0f})", f"{HOST}", f"{ratio:.3f}", _met(ratio >= HOST)]
            )
    return lines


def _torch(found: Sequence[Row]) -> list[list[str]]:
    lines = []
    for batch in (1, 32, 128):
        torch = fastest(select(found, runtime="torch", batch=batch))
        if torch is None:
            continue
        base = torch["inferences_per_second"]
        for precision, bar in (("FP16", FP16_OVER_TORCH), ("INT8", INT8_OVER_TORCH)):
            here = select(found, scope="engine", instances=1, batch=batch, precision=precision)
            here = select(here, sitting=torch["sitting"])
            best = fastest([row for row in here if row["runtime"] == "engine"])
            if best is not None:
                ratio, barred = best["inferences_per_second"] / base, batch == 128
                text = f"{precision} ({best['variant']}) over PyTorch FP16 ({base:,.0f}), batch {batch}"
                lines.append([text, f"> {bar}" if barred else "", f"{ratio:.2f}", _met(ratio > bar) if barred else ""])
    return lines


def _builds(found: Sequence[Row]) -> list[list[str]]:
    lines = {}
    for row in found:
        if "build_seconds_again" in row and row["runtime"] == "engine" and row["instances"] == 1:
            ratio = row["build_seconds_again"] / row["build_seconds"]
            text = f"second build with the timing cache, {row['variant']} ({row['build_seconds']:.0f} s, then "
            text += f"{row['build_seconds_again']:.0f} s"
            if "plan_seconds_again" in row:
                text += f"; TensorRT's part {row['plan_seconds']:.0f} s, then {row['plan_seconds_again']:.0f} s"
            lines[row["variant"]] = [text + ")", f"< {BUILD_AGAIN}", f"{ratio:.2f}", _met(ratio < BUILD_AGAIN)]
    return list(lines.values())


def bars(found: Sequence[Row]) -> str:
    """What ResNet-50 v1.5 had to show."""
    mine = select(found, model=TORCHVISION)
    parts = (_compared(mine), _rates(mine), _latency(mine), _host(mine), _torch(mine), _builds(mine))
    return markdown(["figure", "bar", "measured", ""], [line for part in parts for line in part])


def _value(row: Row | None, name: str, form: str) -> str:
    return "" if row is None or name not in row else format(row[name], form)


def every_row(found: Sequence[Row]) -> str:
    """All rows, engine and host scopes beside each other."""
    heads = ["model", "variant", "batch", "instances", "engine images/s", "p50 ms", "p99 ms", "W", "images/s/W"]
    heads += ["host images/s", "host p50 ms", "plan MB", "build s", "SQNR dB"]
    keys = dict.fromkeys((r["model"], r["variant"], r["batch"], r["instances"]) for r in found)
    lines = []
    for model, variant, batch, instances in keys:
        here = select(found, model=model, variant=variant, batch=batch, instances=instances)
        engine, host = (next(iter(reversed(select(here, scope=scope))), None) for scope in ("engine", "host"))
        any_ = engine or host
        times = {} if engine is None else engine.get("latency_ms", {})
        host_times = {} if host is None else host.get("latency_ms", {})
        size = any_.get("plan_bytes") if any_ is not None else None
        lines.append(
            [
                model,
                variant,
                str(batch),
                str(instances),
                _value(engine, "inferences_per_second", ",.0f"),
                _value(times, "p50", ".3f"),
                _value(times, "p99", ".3f"),
                _value(any_, "power_w", ".0f"),
                _value(engine, "images_per_second_per_watt", ".1f"),
                _value(host, "inferences_per_second", ",.0f"),
                _value(host_times, "p50", ".3f"),
                "" if size is None else f"{size / 1e6:.0f}",
                _value(any_, "build_seconds", ".0f"),
                _value(any_.get("accuracy", {}) if any_ is not None else None, "sqnr_db", ".1f"),
            ]
        )
    return markdown(heads, lines)


def tables(found: Sequence[Row]) -> str:
    """Both tables, the bars first where there are any."""
    return "\n".join(part for part in (bars(found), every_row(found)) if part)


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__)
    cli.add_argument("folder", type=Path)
    print(tables(rows.read(cli.parse_args().folder / "rows.jsonl")))


if __name__ == "__main__":
    main()
