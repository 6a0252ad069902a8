"""What a failed command says and the status that it exits with."""

from __future__ import annotations

from collections.abc import Mapping

from enginehouse.errors import (
    AbortedError,
    AlreadyExistsError,
    CancelledError,
    DeadlineExceededError,
    EnginehouseError,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    OutOfRangeError,
    PermissionDeniedError,
    ResourceExhaustedError,
    UnauthenticatedError,
    UnavailableError,
)

FAILURE, USAGE, MISSING, UNREACHABLE, TIMEOUT, INTERRUPTED = 1, 2, 3, 4, 5, 130

EXIT_HELP = (
    "Exit status: 0 done; 1 failed; 2 wrong usage or an invalid argument; 3 not found; 4 no server answers, or it is "
    "busy; 5 too late; 130 interrupted."
)

_CODES: Mapping[type[EnginehouseError], int] = {
    InvalidArgumentError: USAGE,
    OutOfRangeError: USAGE,
    NotFoundError: MISSING,
    UnavailableError: UNREACHABLE,
    ResourceExhaustedError: UNREACHABLE,
    DeadlineExceededError: TIMEOUT,
    CancelledError: INTERRUPTED,
}

_HINTS: Mapping[type[EnginehouseError], str] = {
    NotFoundError: (
        "`enginehouse models list`, `datasets list`, `engines list`, `jobs list` and `serving` say what there is"
    ),
    ResourceExhaustedError: "the server is busy: try again in a while",
    DeadlineExceededError: "`enginehouse status` says how the services are",
    UnauthenticatedError: "--token-file or ENGINEHOUSE_CLIENT_TOKEN_FILE says which token to send",
    PermissionDeniedError: "whoever runs the services gives roles (docs/security.md)",
    AbortedError: "somebody else changed it meanwhile: try again",
    InternalError: "`enginehouse status` names the services' logs",
}


def exit_code(error: EnginehouseError) -> int:
    """The exit status of an error."""
    return _CODES.get(type(error), FAILURE)


def lines(error: EnginehouseError) -> list[str]:
    """What to print: what went wrong, and a hint where the message has none."""
    text = [f"enginehouse: {error.message}"]
    hint = _HINTS.get(type(error))
    if isinstance(error, NotFoundError) and "projects/" not in error.message:
        hint = None  # a file or a suite: no list of a server's helps
    if isinstance(error, AlreadyExistsError) and any(kind in error.message for kind in ("/models/", "/datasets/")):
        hint = "--replace replaces it, --name takes another id"
    if hint is not None:
        text.append(f"hint: {hint}")
    return text
