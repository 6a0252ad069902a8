"""Our errors as gRPC statuses with `google.rpc` details, and back."""

from __future__ import annotations

from typing import Any

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2

from enginehouse.errors import EnginehouseError, UnavailableError, error_for

DOMAIN = "enginehouse"
DETAILS_KEY = "grpc-status-details-bin"
# How gRPC says that no connection was made at all, as opposed to one that ended.
UNREACHABLE = ("failed to connect", "dns resolution")

# Statuses travel in trailing metadata, of which clients take 8 to 16 KiB: beyond it they would see another error.
MESSAGE_CHARACTERS = 1000
DETAIL_CHARACTERS = 200


def shortened(text: str, limit: int = MESSAGE_CHARACTERS) -> str:
    """The text, without its middle when it is longer: its front says what was wrong, its end what was expected."""
    if len(text) <= limit:
        return text
    left_out = f" ... ({len(text) - limit} characters) ... "
    return text[: limit * 2 // 3] + left_out + text[-(limit // 3) :]


def to_proto(error: EnginehouseError) -> status_pb2.Status:
    """The `google.rpc.Status` of an error: ErrorInfo always, RetryInfo when trying again makes sense."""
    status = status_pb2.Status(code=code_pb2.Code.Value(error.code.name), message=error.message)
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.details)
    status.details.add().Pack(info)
    if error.retry_after_seconds is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(int(error.retry_after_seconds * 1e9))
        status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    return status


def from_proto(status: status_pb2.Status) -> EnginehouseError:
    """The error that a `google.rpc.Status` stands for."""
    details: dict[str, str] = {}
    retry: float | None = None
    for item in status.details:
        detail: any_pb2.Any = item
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            info = error_details_pb2.ErrorInfo()
            detail.Unpack(info)
            details = dict(info.metadata)
        elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            hint = error_details_pb2.RetryInfo()
            detail.Unpack(hint)
            retry = hint.retry_delay.ToNanoseconds() / 1e9
    code = grpc.StatusCode.__members__.get(code_pb2.Code.Name(status.code), grpc.StatusCode.UNKNOWN)
    return error_for(code, status.message, details=details, retry_after_seconds=retry)


def trailing_metadata(error: EnginehouseError) -> tuple[tuple[str, bytes], ...]:
    """Metadata that carries the details of an error beside its code and message, as long as metadata may be."""
    details = {name: shortened(value, DETAIL_CHARACTERS) for name, value in error.details.items()}
    told = error_for(
        error.code, shortened(error.message), details=details, retry_after_seconds=error.retry_after_seconds
    )
    return ((DETAILS_KEY, to_proto(told).SerializeToString()),)


def from_rpc_error(error: Any, *, target: str = "") -> EnginehouseError:
    """The error behind a failed call (`grpc.aio.AioRpcError` or a sync `grpc.RpcError` that is a call).

    A connection that could not be made names `target` and says what to do.
    """
    for key, value in error.trailing_metadata() or ():
        if key == DETAILS_KEY:
            return from_proto(status_pb2.Status.FromString(value))
    code, message = error.code(), error.details() or ""
    unreachable = any(sign in message.lower() for sign in UNREACHABLE)
    if code is grpc.StatusCode.UNAVAILABLE and target and unreachable:
        return UnavailableError(
            f"no server answers at {target}: is it running, and is the address right? "
            f"(enginehouse up starts all three) [{message}]"
        )
    return error_for(code, message)
