"""Samples as `nvidia-smi --query-gpu=FIELDS --format=csv[,noheader][,nounits]` writes them.

columns = parse_query("timestamp,index,utilization.gpu,power.draw")
form = parse_format("csv,nounits")
print(header_line(columns))
for line in row_lines(columns, sample, devices, form):
    print(line)
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import tzinfo

from enginehouse.errors import InvalidArgumentError
from enginehouse.telemetry.columns import BY_NAME, COLUMNS, Column
from enginehouse.telemetry.values import LOST, NOT_AVAILABLE, Row, known
from enginehouse.v1 import telemetry_pb2 as pb


@dataclass(frozen=True)
class CsvFormat:
    """What `--format` asks for."""

    header: bool = True
    units: bool = True


def parse_format(text: str) -> CsvFormat:
    """The format that `text`, such as "csv,noheader,nounits", asks for.

    Raises:
        InvalidArgumentError: it is not CSV or has a word that nvidia-smi does not know.
    """
    words = [word.strip() for word in text.split(",")]
    unknown = [word for word in words if word not in ("csv", "noheader", "nounits")]
    if unknown or "csv" not in words:
        raise InvalidArgumentError(
            f'format {text!r} is not valid: expected "csv", with ",noheader" or ",nounits" or both'
        )
    return CsvFormat(header="noheader" not in words, units="nounits" not in words)


def parse_query(text: str) -> tuple[Column, ...]:
    """The columns that a `--query-gpu` value such as "timestamp,power.draw" asks for, in its order.

    Raises:
        InvalidArgumentError: a field is not known (the message has the closest ones), or there is none.
    """
    names = [name.strip() for name in text.split(",")]
    if names == [""]:
        raise InvalidArgumentError('the query names no field: expected fields such as "timestamp,utilization.gpu"')
    return tuple(_column(name) for name in names)


def _column(name: str) -> Column:
    column = BY_NAME.get(name.lower())
    if column is not None:
        return column
    close = difflib.get_close_matches(name.lower(), BY_NAME, n=3, cutoff=0.6)
    hint = f"did you mean {known(close)}?" if close else "`--help-query-gpu` lists the fields that are."
    raise InvalidArgumentError(
        f"field {name!r} is not known: {hint}", details={"field": name, "close": ",".join(close)}
    )


def header_line(columns: Sequence[Column]) -> str:
    """The header. As with nvidia-smi it keeps its units under `nounits`."""
    return ", ".join(column.title for column in columns)


def row_lines(
    columns: Sequence[Column],
    sample: pb.Sample,
    devices: Iterable[pb.GpuDevice] = (),
    form: CsvFormat | None = None,
    *,
    tz: tzinfo | None = None,
) -> Iterator[str]:
    """One line for each GPU of `sample`.

    Args:
        devices: what ListDevices answered, for the fields that do not change; "[N/A]" stands in a GPU's line otherwise.
        tz: time zone of the timestamps; this machine's when None.
    """
    form = form or CsvFormat()
    by_uuid = {(device.uuid, device.index): device for device in devices}
    count = max(len(by_uuid), len(sample.gpus))
    for gpu in sample.gpus:
        device = by_uuid.get((gpu.uuid, gpu.index), pb.GpuDevice())
        row = Row(sample, gpu, device, count, tz)
        yield ", ".join(_cell(column, row, units=form.units) for column in columns)


def _cell(column: Column, row: Row, *, units: bool) -> str:
    value = column.read(row)
    if value is None:
        lost = row.gpu.state == pb.DEVICE_STATE_LOST and not column.fixed
        return LOST if lost else NOT_AVAILABLE
    return f"{value} {column.unit}" if units and column.unit else value


def describe_fields() -> str:
    """Every field with its other names, a line each: the text of `--help-query-gpu`."""
    return "\n".join(
        f"{column.title}" + (f"  (or {', '.join(column.aliases)})" if column.aliases else "") for column in COLUMNS
    )
