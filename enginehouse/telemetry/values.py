"""How nvidia-smi writes a value: its kinds of numbers, and what it writes where there is none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, tzinfo

from enginehouse.v1 import telemetry_pb2 as pb

NOT_AVAILABLE = "[N/A]"
LOST = "[GPU is lost]"

MEBIBYTE = 1 << 20


@dataclass(frozen=True)
class Row:
    """One GPU at one moment: what a column takes its value from."""

    sample: pb.Sample
    gpu: pb.GpuSample
    device: pb.GpuDevice
    gpu_count: int
    tz: tzinfo | None = None


Reader = Callable[[Row], "str | None"]


def live(field: str, render: Callable[[float], str]) -> Reader:
    """Reads an optional field of the sample's GPU."""

    def read(row: Row) -> str | None:
        return render(getattr(row.gpu, field)) if row.gpu.HasField(field) else None  # type: ignore[arg-type]

    return read


def static(field: str, render: Callable[[float], str]) -> Reader:
    """Reads an optional number of the device."""

    def read(row: Row) -> str | None:
        return render(getattr(row.device, field)) if row.device.HasField(field) else None  # type: ignore[arg-type]

    return read


def text(field: str) -> Reader:
    """Reads a string of the device."""

    def read(row: Row) -> str | None:
        return getattr(row.device, field) or None

    return read


def switch(field: str) -> Reader:
    """Reads an optional boolean of the device."""

    def read(row: Row) -> str | None:
        if not row.device.HasField(field):  # type: ignore[arg-type]
            return None
        return "Enabled" if getattr(row.device, field) else "Disabled"

    return read


def first(*readers: Reader) -> Reader:
    """What the first reader that has a value says."""

    def read(row: Row) -> str | None:
        return next((value for reader in readers if (value := reader(row)) is not None), None)

    return read


def throttled(reason: str) -> Reader:
    """Whether a clock event reason is active."""

    def read(row: Row) -> str | None:
        if not row.gpu.HasField("throttle_reasons_mask"):
            return None
        return "Active" if reason in row.gpu.throttle_reasons else "Not Active"

    return read


def pci(part: int, width: int) -> Reader:
    """A part of the PCI address `00000000:3B:00.0`: 0 domain, 1 bus, 2 device."""

    def read(row: Row) -> str | None:
        parts = row.device.pci_bus_id.replace(".", ":").split(":")
        return f"0x{int(parts[part], 16):0{width}X}" if len(parts) == 4 else None

    return read


def timestamp(row: Row) -> str:
    """The sample's time, such as "2026/11/23 16:47:12.345", in the row's time zone (this machine's when None)."""
    seconds, nanos = row.sample.time.seconds, row.sample.time.nanos
    moment = datetime.fromtimestamp(seconds, tz=row.tz)
    return f"{moment:%Y/%m/%d %H:%M:%S}.{nanos // 1_000_000:03d}"


def integer(value: float) -> str:
    return str(int(value))


def mebibytes(value: float) -> str:
    return str(int(value) // MEBIBYTE)


def hundredths(value: float) -> str:
    return f"{value:.2f}"


def mask(value: float) -> str:
    return f"0x{int(value):016X}"


def known(names: Sequence[str]) -> str:
    """Names for an error message."""
    return ", ".join(f'"{name}"' for name in names)
