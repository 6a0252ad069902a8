import grpc
import grpc.aio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from enginehouse import errors
from enginehouse.rpc.status import from_proto, from_rpc_error, to_proto

KINDS = errors.EnginehouseError.__subclasses__()


@given(
    kind=st.sampled_from(KINDS),
    message=st.text(st.characters(exclude_categories=["Cs"])),
    details=st.dictionaries(st.text("abc", min_size=1), st.text("xyz")),
    retry=st.none() | st.floats(0, 1e6),
)
def test_an_error_survives_the_wire(
    kind: type[errors.EnginehouseError], message: str, details: dict[str, str], retry: float | None
) -> None:
    back = from_proto(to_proto(kind(message, details=details, retry_after_seconds=retry)))
    assert type(back) is kind
    assert (back.message, back.details) == (message, details)
    assert back.retry_after_seconds == (None if retry is None else pytest.approx(retry, abs=1e-6))


def test_each_status_has_at_most_one_class() -> None:
    codes = [kind.code for kind in KINDS]
    assert len(codes) == len(set(codes))


def test_an_unknown_status_name_is_internal() -> None:
    assert isinstance(errors.error_for_name("NO_SUCH", "x"), errors.InternalError)
    assert errors.error_for(grpc.StatusCode.UNKNOWN, "x").code is grpc.StatusCode.UNKNOWN


@pytest.mark.parametrize(
    ("message", "unreachable"),
    [
        ("failed to connect to all addresses; last error: UNKNOWN: Connection refused", True),
        ("DNS resolution failed for nowhere:1", True),
        ("max connection age", False),
        ("the worker died: what was in flight is lost", False),
    ],
)
def test_only_a_connection_that_was_never_made_blames_the_address(message: str, unreachable: bool) -> None:
    call = grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), details=message)
    error = from_rpc_error(call, target="host:1")
    assert isinstance(error, errors.UnavailableError)
    assert ("no server answers at host:1" in error.message) is unreachable
