"""telemetry: GPUs and host, live, as CSV in nvidia-smi's columns, or as JSON lines; telemetry top: a cluster."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from itertools import islice
from typing import Annotated

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from enginehouse.cli.context import connected
from enginehouse.cli.output import Json, cell, out, print_json
from enginehouse.cli.top import FIELDS, ORDERS, Cluster, of_agent, screen
from enginehouse.client import Client
from enginehouse.client.values import ClusterNode, DeviceList, Sample
from enginehouse.errors import InvalidArgumentError, UnimplementedError
from enginehouse.telemetry.smi import describe_fields, header_line, parse_format, parse_query, row_lines

QUERY = "timestamp,index,name,utilization.gpu,utilization.memory,memory.used,memory.total,power.draw,temperature.gpu"
EPILOG = (
    "Examples: enginehouse telemetry; enginehouse telemetry --format csv,noheader --query "
    "timestamp,index,power.draw --count 10 --period 0.5; enginehouse telemetry --json"
)


TOP_EPILOG = (
    "Examples: enginehouse --telemetry aggregator:8021 telemetry top --sort power; "
    'enginehouse telemetry top --pod "team-a/*" --once'
)
# A screen is drawn no more often, however many messages come.
DRAW_SECONDS = 0.25


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(context_settings={"help_option_names": ["-h", "--help"]})
    group.callback(invoke_without_command=True, epilog=EPILOG)(_telemetry)
    group.command("top", epilog=TOP_EPILOG)(_top)
    app.add_typer(group, name="telemetry")


def _telemetry(
    context: typer.Context,
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
    if context.invoked_subcommand is not None:
        return
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


def _top(
    node: Annotated[list[str] | None, typer.Option(help='Only this node, such as "gpu-*"; may be repeated.')] = None,
    pod: Annotated[
        list[str] | None, typer.Option(help='Only GPUs of this pod, such as "team-a/*"; may be repeated.')
    ] = None,
    product: Annotated[
        list[str] | None, typer.Option(help='Only GPUs of this product, such as "*H200*"; may be repeated.')
    ] = None,
    sort: Annotated[str, typer.Option(help="node, util, memory, power or temp: which GPUs come first.")] = "node",
    interval: Annotated[float, typer.Option(min=0.1, max=60, help="Seconds between a node's samples.")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Show what is now, every GPU, and end.")] = False,
    json: Json = False,
) -> None:
    """Show a cluster's GPUs live, by its telemetry aggregator; one node's where the address is an agent's.

    JSON is an object a line for each node that has news.
    """
    if sort not in ORDERS:
        raise InvalidArgumentError(f"--sort {sort!r} is not valid: expected {', '.join(ORDERS)}")
    wanted = _Wanted(node or (), pod or (), product or (), interval, () if json else FIELDS)
    console = out()
    with connected() as client:
        if once or not (json or console.is_terminal):
            nodes = wanted.now(client)
            if json:
                for found in nodes:
                    print_json(found, compact=True)
            else:
                console.print(screen(nodes, order=sort, lines=None, now=datetime.now(timezone.utc)))
        elif json:
            for news in wanted.stream(client):
                for found in news:
                    print_json(found, compact=True)
        else:
            _watch(console, wanted.stream(client), sort)


def _watch(console: Console, news: Iterator[Sequence[ClusterNode]], order: str) -> None:
    cluster, drawn = Cluster(), 0.0
    with Live(console=console, auto_refresh=False, screen=True) as live:
        for nodes in news:
            cluster.update(nodes)
            if time.monotonic() - drawn < DRAW_SECONDS:
                continue
            drawn = time.monotonic()
            now = datetime.now(timezone.utc)
            live.update(screen(cluster.nodes, order=order, lines=console.height, now=now), refresh=True)


@dataclass(frozen=True)
class _Wanted:
    """What `top` asks for."""

    nodes: Sequence[str]
    pods: Sequence[str]
    products: Sequence[str]
    interval: float
    fields: Sequence[str]

    def now(self, client: Client) -> list[ClusterNode]:
        try:
            return client.telemetry.cluster(
                nodes=self.nodes, pods=self.pods, products=self.products, fields=self.fields
            )
        except UnimplementedError:
            return [of_agent(client.telemetry.snapshot(fields=self.fields), self.pods, self.products)]

    def stream(self, client: Client) -> Iterator[Sequence[ClusterNode]]:
        try:
            yield from client.telemetry.stream_cluster(
                interval=self.interval,
                nodes=self.nodes,
                pods=self.pods,
                products=self.products,
                fields=self.fields,
            )
        except UnimplementedError:
            for sample in client.telemetry.stream(period=self.interval, fields=self.fields):
                yield (of_agent(sample, self.pods, self.products),)
