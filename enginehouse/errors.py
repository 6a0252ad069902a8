"""The errors of every part: one root, one subclass for each gRPC status that we answer.

A service raises them; one interceptor turns them into a status with `google.rpc` details; the SDK turns that status
into the same class again, so a caller catches `NotFoundError` whether the code ran here or behind a socket.
"""

from __future__ import annotations

from collections.abc import Mapping

import grpc


class EnginehouseError(Exception):
    """Root of all our errors.

    Args:
        message: what was wrong, what was expected and what to do.
        details: facts for programs, sent as `google.rpc.ErrorInfo` metadata.
        retry_after_seconds: when trying again makes sense, sent as `google.rpc.RetryInfo`.
    """

    code: grpc.StatusCode = grpc.StatusCode.UNKNOWN

    def __init__(
        self, message: str, *, details: Mapping[str, str] | None = None, retry_after_seconds: float | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.details: dict[str, str] = dict(details or {})
        self.retry_after_seconds = retry_after_seconds

    @property
    def reason(self) -> str:
        """The status name, such as "NOT_FOUND"."""
        return self.code.name


class InvalidArgumentError(EnginehouseError):
    code = grpc.StatusCode.INVALID_ARGUMENT


class NotFoundError(EnginehouseError):
    code = grpc.StatusCode.NOT_FOUND


class AlreadyExistsError(EnginehouseError):
    code = grpc.StatusCode.ALREADY_EXISTS


class FailedPreconditionError(EnginehouseError):
    code = grpc.StatusCode.FAILED_PRECONDITION


class OutOfRangeError(EnginehouseError):
    code = grpc.StatusCode.OUT_OF_RANGE


class AbortedError(EnginehouseError):
    code = grpc.StatusCode.ABORTED


class ResourceExhaustedError(EnginehouseError):
    code = grpc.StatusCode.RESOURCE_EXHAUSTED


class DeadlineExceededError(EnginehouseError):
    code = grpc.StatusCode.DEADLINE_EXCEEDED


class CancelledError(EnginehouseError):
    """The operation was cancelled. (Not `asyncio.CancelledError`, which cancels a task.)"""

    code = grpc.StatusCode.CANCELLED


class PermissionDeniedError(EnginehouseError):
    code = grpc.StatusCode.PERMISSION_DENIED


class UnauthenticatedError(EnginehouseError):
    code = grpc.StatusCode.UNAUTHENTICATED


class UnavailableError(EnginehouseError):
    code = grpc.StatusCode.UNAVAILABLE


class UnimplementedError(EnginehouseError):
    code = grpc.StatusCode.UNIMPLEMENTED


class DataLossError(EnginehouseError):
    """Stored or received bytes do not match their digest."""

    code = grpc.StatusCode.DATA_LOSS


class InternalError(EnginehouseError):
    code = grpc.StatusCode.INTERNAL


def _subclasses() -> dict[grpc.StatusCode, type[EnginehouseError]]:
    return {kind.code: kind for kind in EnginehouseError.__subclasses__()}


def error_for(
    code: grpc.StatusCode,
    message: str,
    *,
    details: Mapping[str, str] | None = None,
    retry_after_seconds: float | None = None,
) -> EnginehouseError:
    """The error of the class that stands for `code` (the root class for a status we have no class for)."""
    return _subclasses().get(code, EnginehouseError)(message, details=details, retry_after_seconds=retry_after_seconds)


def error_for_name(code: str, message: str, *, details: Mapping[str, str] | None = None) -> EnginehouseError:
    """The same from a status name, as workers send it; an unknown name is INTERNAL."""
    known = grpc.StatusCode.__members__.get(code, grpc.StatusCode.INTERNAL)
    return error_for(known, message, details=details)
