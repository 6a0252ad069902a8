"""The CSV is nvidia-smi's, to the letter."""

from __future__ import annotations

from datetime import timezone

import pytest
from enginehouse_telemetry.messages import device_message, sample_message

from enginehouse.errors import InvalidArgumentError
from enginehouse.telemetry.columns import BY_NAME, COLUMNS, PAPER_QUERY
from enginehouse.telemetry.smi import (
    CsvFormat,
    describe_fields,
    header_line,
    parse_format,
    parse_query,
    row_lines,
)


def lines(query: str, sample, devices, form: str = "csv") -> list[str]:  # type: ignore[no-untyped-def]
    return list(row_lines(parse_query(query), sample, devices, parse_format(form), tz=timezone.utc))


@pytest.fixture
def sample(make_reading):  # type: ignore[no-untyped-def]
    return sample_message(make_reading(0), "projects/default/nodes/n")


@pytest.fixture
def devices(gpus):  # type: ignore[no-untyped-def]
    return [device_message(status, "projects/default/nodes/n") for status in gpus.statuses]


def test_the_papers_query(sample, devices) -> None:  # type: ignore[no-untyped-def]
    assert header_line(parse_query(PAPER_QUERY)) == (
        "timestamp, index, pstate, utilization.gpu [%], utilization.memory [%], memory.total [MiB], memory.free [MiB], "
        "memory.used [MiB], power.draw [W], temperature.gpu, pcie.link.gen.max, pcie.link.gen.current"
    )
    busy, lost = lines(PAPER_QUERY, sample, devices)
    assert busy == "2026/11/23 16:47:12.345, 0, P0, 45 %, 0 %, 143771 MiB, 152576 MiB, 1024 MiB, 70.12 W, 34, 5, 5"
    assert lost == "2026/11/23 16:47:12.345, 1" + ", [GPU is lost]" * 10


def test_values_without_units_under_a_header_with_them(sample, devices) -> None:  # type: ignore[no-untyped-def]
    columns = parse_query("utilization.gpu,power.draw,clocks.sm")
    assert header_line(columns) == "utilization.gpu [%], power.draw [W], clocks.current.sm [MHz]"
    assert lines("utilization.gpu,power.draw,clocks.sm", sample, devices, "csv,nounits")[0] == "45, 70.12, 1980"


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ("name", "NVIDIA H200"),
        ("gpu_name", "NVIDIA H200"),
        ("uuid", "GPU-0"),
        ("count", "2"),
        ("pci.bus_id", "00000000:3B:00.0"),
        ("pci.domain", "0x0000"),
        ("pci.bus", "0x3B"),
        ("driver_version", "550.54.15"),
        ("compute_cap", "9.0"),
        ("ecc.mode.current", "Enabled"),
        ("mig.mode.current", "Disabled"),
        ("persistence_mode", "[N/A]"),
        ("power.default_limit", "700.00 W"),
        ("clocks.max.sm", "1980 MHz"),
        ("clocks_throttle_reasons.active", "0x0000000000000005"),
        ("clocks_event_reasons.sw_power_cap", "Active"),
        ("clocks_event_reasons.hw_slowdown", "Not Active"),
        ("temperature.memory", "[N/A]"),
        ("fan.speed", "[N/A]"),
        ("ecc.errors.uncorrected.volatile.total", "[N/A]"),
    ],
)
def test_fields(field, expected, sample, devices) -> None:  # type: ignore[no-untyped-def]
    assert lines(field, sample, devices)[0] == expected


def test_a_lost_gpu_still_has_what_does_not_change(sample, devices) -> None:  # type: ignore[no-untyped-def]
    assert lines("index,name,power.draw,serial", sample, devices)[1] == "1, NVIDIA H200, [GPU is lost], [N/A]"


def test_without_devices_the_fixed_fields_are_not_available(sample) -> None:  # type: ignore[no-untyped-def]
    assert lines("name,utilization.gpu", sample, [])[0] == "[N/A], 45 %"


def test_every_field_renders_whatever_is_absent(sample, devices) -> None:  # type: ignore[no-untyped-def]
    query = ",".join(BY_NAME)
    for given in (devices, []):
        assert all(len(line.split(", ")) == len(BY_NAME) for line in lines(query, sample, given))
    assert all(column.name in describe_fields() for column in COLUMNS)


def test_an_unknown_field_names_close_ones() -> None:
    with pytest.raises(InvalidArgumentError, match=r'"utilization.gpu"') as caught:
        parse_query("timestamp,utilisation.gpu")
    assert caught.value.details["field"] == "utilisation.gpu"
    with pytest.raises(InvalidArgumentError, match="help-query-gpu"):
        parse_query("zzzzzz")
    with pytest.raises(InvalidArgumentError, match="names no field"):
        parse_query("")


def test_formats() -> None:
    assert parse_format("csv") == CsvFormat(header=True, units=True)
    assert parse_format("csv, noheader,nounits") == CsvFormat(header=False, units=False)
    for wrong in ("xml", "noheader", "csv,nohead", ""):
        with pytest.raises(InvalidArgumentError, match="format"):
            parse_format(wrong)
