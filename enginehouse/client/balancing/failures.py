"""What a failed call says of the request and of its server. Pure functions."""

from __future__ import annotations

from enum import Enum

from enginehouse.errors import (
    CancelledError,
    DataLossError,
    EnginehouseError,
    InternalError,
    NotFoundError,
    ResourceExhaustedError,
    UnavailableError,
)

# A server names the model's state where that is why it refuses.
MODEL_STATE = "model_state"


class Kind(Enum):
    """What may be done about a failed request."""

    FINAL = "the same everywhere: a wrong request, a deadline, a cancellation"
    FAULTY = "final, and a sign that the server is not well if it goes on"
    ABSENT = "this server does not have the model, or not what the request needs; another may"
    NOT_READY = "this server has the model and cannot compute it now, as while it loads; another may"
    BUSY = "refused before it was begun"
    UNREACHABLE = "no connection was made"
    LOST = "the server or its worker went away, maybe while it computed"


class Failure(Exception):
    """One try that failed.

    Args:
        error: for the caller, if there is no other try.
    """

    def __init__(self, error: EnginehouseError, kind: Kind) -> None:
        super().__init__(error.message)
        self.error = error
        self.kind = kind


def kind_of(error: EnginehouseError, *, connected: bool = True) -> Kind:
    """What a status means.

    A server that refuses before it begins says when to try again (RetryInfo). UNAVAILABLE without that comes from a
    worker or a connection that broke while the request was there.

    Args:
        connected: whether the request may have reached the server at all.
    """
    if isinstance(error, UnavailableError):
        if error.retry_after_seconds is not None:
            return Kind.NOT_READY if MODEL_STATE in error.details else Kind.BUSY
        return Kind.LOST if connected else Kind.UNREACHABLE
    if isinstance(error, CancelledError):
        # Our own cancellations are no statuses. gRPC's servers answer so what comes in the moment in which they stop.
        return Kind.LOST
    if isinstance(error, ResourceExhaustedError):
        # Without a time it is a limit that the next try meets too, such as a message's size.
        return Kind.FINAL if error.retry_after_seconds is None else Kind.BUSY
    if isinstance(error, NotFoundError):
        return Kind.ABSENT
    if isinstance(error, (InternalError, DataLossError)):
        return Kind.FAULTY
    return Kind.FINAL
