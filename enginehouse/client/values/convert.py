"""Small conversions that all values share: times, durations, optional fields, enumerations by their short names."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from google.protobuf import duration_pb2, timestamp_pb2
from google.protobuf.message import Message

from enginehouse.errors import InvalidArgumentError


def id_of(name: str) -> str:
    """The last part of a resource name."""
    return name.rsplit("/", 1)[-1]


def time_or_none(message: Message, field: str) -> datetime | None:
    """A timestamp field as an aware UTC time; None when it is absent."""
    if not message.HasField(field):
        return None
    stamp: timestamp_pb2.Timestamp = getattr(message, field)
    return stamp.ToDatetime(tzinfo=timezone.utc)


def seconds_or_none(message: Message, field: str) -> float | None:
    """A duration field in seconds; None when it is absent."""
    if not message.HasField(field):
        return None
    duration: duration_pb2.Duration = getattr(message, field)
    return duration.ToNanoseconds() / 1e9


def duration(seconds: float) -> duration_pb2.Duration:
    """Seconds as a duration message."""
    message = duration_pb2.Duration()
    message.FromNanoseconds(round(seconds * 1e9))
    return message


def timestamp(time: datetime) -> timestamp_pb2.Timestamp:
    """A time (UTC when it is naive) as a timestamp message."""
    message = timestamp_pb2.Timestamp()
    message.FromDatetime(time)
    return message


def value_or_none(message: Message, field: str) -> Any:
    """An `optional` field's value; None when it is absent."""
    return getattr(message, field) if message.HasField(field) else None


def enum_name(enum: Any, value: int, prefix: str) -> str:
    """The short name of an enumeration's value: PRECISION_INT8 is "int8". An unknown one is its number."""
    try:
        name: str = enum.Name(value)
    except ValueError:
        return str(value)
    return name.removeprefix(prefix).lower()


def enum_value(enum: Any, name: str, prefix: str, what: str) -> Any:
    """The enumeration's value of a short name.

    Raises:
        InvalidArgumentError: there is no such value; the message lists those there are.
    """
    key = prefix + name.upper().replace("-", "_")
    if key not in enum.keys() or key.endswith("_UNSPECIFIED"):  # noqa: SIM118 - an enum wrapper is no mapping
        known = [k.removeprefix(prefix).lower() for k in enum.keys() if not k.endswith("_UNSPECIFIED")]  # noqa: SIM118
        raise InvalidArgumentError(f"unknown {what} {name!r}: expected one of {', '.join(known)}")
    return enum.Value(key)
