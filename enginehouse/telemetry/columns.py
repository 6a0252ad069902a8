"""The columns: the fields of `nvidia-smi --query-gpu`, each with its unit, its other names and where its value is."""

from __future__ import annotations

from dataclasses import dataclass

from enginehouse.telemetry.values import (
    Reader,
    first,
    hundredths,
    integer,
    live,
    mask,
    mebibytes,
    pci,
    static,
    switch,
    text,
    throttled,
    timestamp,
)

PAPER_QUERY = (
    "timestamp,index,pstate,utilization.gpu,utilization.memory,memory.total,memory.free,memory.used,power.draw,"
    "temperature.gpu,pcie.link.gen.max,pcie.link.gen.current"
)

# Names of the bits of the clock event mask that nvidia-smi has columns for.
REASONS = (
    "gpu_idle",
    "applications_clocks_setting",
    "sw_power_cap",
    "hw_slowdown",
    "hw_thermal_slowdown",
    "hw_power_brake_slowdown",
    "sw_thermal_slowdown",
    "sync_boost",
)


@dataclass(frozen=True)
class Column:
    """A column.

    Attributes:
        name: as in the header.
        unit: as in the header's brackets and after each value; empty when it has none.
        read: its value without the unit, None when there is none.
        aliases: other names that a query may use.
        fixed: does not change while the GPU is present, and so is known of a lost one too.
    """

    name: str
    read: Reader
    unit: str = ""
    aliases: tuple[str, ...] = ()
    fixed: bool = False

    @property
    def title(self) -> str:
        """The header's text."""
        return f"{self.name} [{self.unit}]" if self.unit else self.name


def _fixed(name: str, read: Reader, unit: str = "", *aliases: str) -> Column:
    return Column(name, read, unit, aliases, fixed=True)


_IDENTITY = (
    _fixed("timestamp", timestamp),
    _fixed("driver_version", text("driver_version")),
    _fixed("count", lambda row: str(row.gpu_count)),
    _fixed("name", text("product"), "", "gpu_name"),
    _fixed("serial", text("serial"), "", "gpu_serial"),
    _fixed("uuid", lambda row: row.gpu.uuid or None, "", "gpu_uuid"),
    _fixed("index", lambda row: str(row.gpu.index)),
    _fixed("pci.bus_id", text("pci_bus_id"), "", "gpu_bus_id"),
    _fixed("pci.domain", pci(0, 4)),
    _fixed("pci.bus", pci(1, 2)),
    _fixed("pci.device", pci(2, 2)),
    _fixed("vbios_version", text("vbios_version")),
    _fixed("compute_cap", text("compute_capability")),
    _fixed("compute_mode", text("compute_mode")),
    _fixed("persistence_mode", switch("persistence_enabled")),
    _fixed("ecc.mode.current", switch("ecc_enabled")),
    _fixed("mig.mode.current", switch("mig_enabled")),
)

_ACTIVITY = (
    Column("pstate", live("pstate", lambda value: f"P{int(value)}")),
    Column("utilization.gpu", live("utilization_gpu_percent", integer), "%"),
    Column("utilization.memory", live("utilization_memory_percent", integer), "%"),
    Column("utilization.encoder", live("utilization_encoder_percent", integer), "%"),
    Column("utilization.decoder", live("utilization_decoder_percent", integer), "%"),
    Column("fan.speed", live("fan_speed_percent", integer), "%"),
    Column("temperature.gpu", live("temperature_gpu_celsius", integer)),
    Column("temperature.memory", live("temperature_memory_celsius", integer)),
)

_MEMORY = (
    Column("memory.total", live("memory_total_bytes", mebibytes), "MiB"),
    Column("memory.reserved", live("memory_reserved_bytes", mebibytes), "MiB"),
    Column("memory.used", live("memory_used_bytes", mebibytes), "MiB"),
    Column("memory.free", live("memory_free_bytes", mebibytes), "MiB"),
)

_POWER = (
    Column("power.draw", live("power_draw_watts", hundredths), "W"),
    Column("power.draw.average", live("power_draw_average_watts", hundredths), "W"),
    Column("power.draw.instant", live("power_draw_instant_watts", hundredths), "W"),
    Column("power.limit", live("power_limit_watts", hundredths), "W"),
    Column("enforced.power.limit", live("power_limit_enforced_watts", hundredths), "W"),
    _fixed("power.default_limit", static("power_limit_default_watts", hundredths), "W"),
    _fixed("power.min_limit", static("power_limit_min_watts", hundredths), "W"),
    _fixed("power.max_limit", static("power_limit_max_watts", hundredths), "W"),
)

_CLOCKS = (
    Column("clocks.current.graphics", live("clock_graphics_mhz", integer), "MHz", ("clocks.gr", "clocks.graphics")),
    Column("clocks.current.sm", live("clock_sm_mhz", integer), "MHz", ("clocks.sm",)),
    Column("clocks.current.memory", live("clock_memory_mhz", integer), "MHz", ("clocks.mem", "clocks.memory")),
    Column("clocks.current.video", live("clock_video_mhz", integer), "MHz", ("clocks.video",)),
    _fixed("clocks.max.graphics", static("clock_graphics_max_mhz", integer), "MHz", "clocks.max.gr"),
    _fixed("clocks.max.sm", static("clock_sm_max_mhz", integer), "MHz"),
    _fixed("clocks.max.memory", static("clock_memory_max_mhz", integer), "MHz", "clocks.max.mem"),
)

_LINK = (
    Column("pcie.link.gen.current", live("pcie_generation_current", integer)),
    Column("pcie.link.gen.gpucurrent", live("pcie_generation_current", integer)),
    Column(
        "pcie.link.gen.max",
        first(live("pcie_generation_max", integer), static("pcie_generation_max", integer)),
    ),
    Column("pcie.link.width.current", live("pcie_width_current", integer)),
    Column("pcie.link.width.max", first(live("pcie_width_max", integer), static("pcie_width_max", integer))),
)

_ERRORS = tuple(
    Column(f"ecc.errors.{kind}.{span}.total", live(f"ecc_{kind}_{span}", integer))
    for kind in ("corrected", "uncorrected")
    for span in ("volatile", "aggregate")
)

# Drivers before 535 know only "throttle"; later ones take both words. The header says what was asked.
_THROTTLE = tuple(
    column
    for family in ("clocks_event_reasons", "clocks_throttle_reasons")
    for column in (
        Column(f"{family}.active", live("throttle_reasons_mask", mask)),
        *(Column(f"{family}.{reason}", throttled(reason)) for reason in REASONS),
    )
)

COLUMNS: tuple[Column, ...] = (
    *_IDENTITY,
    *_ACTIVITY,
    *_MEMORY,
    *_POWER,
    *_CLOCKS,
    *_LINK,
    *_ERRORS,
    *_THROTTLE,
)

BY_NAME: dict[str, Column] = {name: column for column in COLUMNS for name in (column.name, *column.aliases)}
