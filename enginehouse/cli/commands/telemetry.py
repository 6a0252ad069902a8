"""telemetry: GPUs and host, live, as CSV in nvidia-smi's columns, or as JSON lines."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Annotated

import typer
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from enginehouse.cli.context import connected
from enginehouse.cli.output import Json, cell, out, print_json
from enginehouse.client import Client
from enginehouse.client.values import DeviceList, Sample
from enginehouse.telemetry.smi import describe_fields, header_line, parse_format, parse_query, row_lines

QUERY = "timestamp,index,name,utilization.gpu,utilization.memory,memory.used,memory.total,power.draw,temperature.gpu"
EPILOG = (
    "Examples: enginehouse telemetry; enginehouse telemetry --format csv,noheader --query "
    "timestamp,index,power.draw --count 10 --period 0.5; enginehouse telemetry --json"
)


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command("telemetry", epilog=EPILOG)(_telemetry)


def _telemetry(
    format: Annotated[  # noqa: A002 - nvidia-smi's name
        str | None, typer.Option(help="csv, with ,noheader or ,nounits or both.")
    ] = None,
    query: Annotated[str | None, typer.Option(help="Fields of --format csv, as nvidia-smi names them.")] = None,
    help_query: Annotated[bool, typer.Option("--help-query", help="List the fields of --query.")] = False,
    period: Annotated[float, typer.Option(min=0.1, max=60, help="Seconds between samples.")] = 1.0,
    count: Annotated[int | None, typer.Option(min=1, help="Stop after so many samples.")] = None,
    device: Annotated[list[str] | None, typer.Option(help="Only this GPU, by UUID or index; may be repeated.")] = None,
    json: Json = False,
) -> None:
    """Show what the GPUs and the host do, until Ctrl-C."""
    if help_query:
        print(describe_fields())
        return
    form = parse_format(format or "csv")
    columns = parse_query(query or QUERY)
    with connected() as client:
        samples = islice(_samples(client, period, device), count)
        if json:
            for sample in samples:
                print_json(sample, compact=True)
        elif format is not None or query is not None:
            devices = [known.to_proto() for known in client.telemetry.devices()]
            if form.header:
                print(header_line(columns), flush=True)
            for sample in samples:
                for line in row_lines(columns, sample.to_proto(), devices, form):
                    print(line, flush=True)
        else:
            _live(client.telemetry.devices(), samples)


def _samples(client: Client, period: float, devices: list[str] | None) -> Iterator[Sample]:
    return client.telemetry.stream(period=period, devices=devices or ())


def _live(devices: DeviceList, samples: Iterator[Sample]) -> None:
    console = out()
    if not console.is_terminal:
        for sample in samples:
            console.print(table(sample, devices))
        return
    with Live(console=console, auto_refresh=False) as live:
        for sample in samples:
            live.update(table(sample, devices), refresh=True)


def table(sample: Sample, devices: DeviceList) -> Group:
    """A sample for people."""
    products = {device.uuid: device.product for device in devices}
    grid = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("GPU", "PRODUCT", "UTIL %", "MEM %", "MEMORY MiB", "POWER W", "TEMP C", "SM MHz", "THROTTLED"):
        grid.add_column(column, no_wrap=True)
    for gpu in sample.gpus:
        used, total = (None if b is None else b >> 20 for b in (gpu.memory_used_bytes, gpu.memory_total_bytes))
        row = (
            gpu.index,
            products.get(gpu.uuid, gpu.uuid),
            gpu.utilization_gpu_percent,
            gpu.utilization_memory_percent,
            f"{cell(used)}/{cell(total)}",
            gpu.power_draw_watts,
            gpu.temperature_gpu_celsius,
            gpu.clock_sm_mhz,
            ", ".join(gpu.throttle_reasons) if gpu.state == "ok" else f"{gpu.state}: {gpu.state_message}",
        )
        grid.add_row(*(Text(cell(value)) for value in row))
    host = sample.host
    line = f"{cell(sample.time)}  {sample.node}"
    if host is not None:
        memory = "" if host.memory_used_bytes is None else f"  memory {host.memory_used_bytes / 2**30:.1f} GiB used"
        line += f"  CPU {cell(host.cpu_utilization_percent)} %  load {cell(host.load_average_1m)}{memory}"
    nothing = Text(devices.message or "no GPUs", style="dim")
    return Group(Text(line), grid if sample.gpus else nothing)
