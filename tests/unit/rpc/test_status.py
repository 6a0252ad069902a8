import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from enginehouse import errors
from enginehouse.rpc.status import from_proto, to_proto

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
