"""Tracing as the settings say."""

from __future__ import annotations

from enginehouse.errors import FailedPreconditionError
from enginehouse_inference.tracing.trace import Tracing


def start_tracing(kind: str, rate: int) -> Tracing:
    """Tracing that sends to a collector ("otlp"), or that never traces ("off").

    Raises:
        FailedPreconditionError: the packages that it needs are not installed.
    """
    if kind == "off":
        return Tracing(rate=rate)
    try:
        from enginehouse_inference.tracing.otlp import OtlpExporter
    except ImportError as error:
        raise FailedPreconditionError(
            f"ENGINEHOUSE_TRACING={kind} needs OpenTelemetry: pip install 'enginehouse-inference[otel]', or set it to "
            f"off. [{error}]"
        ) from error
    return Tracing(OtlpExporter(), rate)
