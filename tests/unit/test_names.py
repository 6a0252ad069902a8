import pytest
from hypothesis import given
from hypothesis import strategies as st

from enginehouse.errors import InvalidArgumentError
from enginehouse.names import ResourceName, check_id, parse, parse_project

IDS = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,62}", fullmatch=True)


@given(project=IDS, id=IDS)
def test_a_name_survives_being_written_and_parsed(project: str, id: str) -> None:
    name = ResourceName(project, "models", id)
    assert parse(str(name), "models") == name
    assert parse_project(name.parent) == project


@given(st.text())
def test_any_text_parses_or_is_refused_with_our_error(text: str) -> None:
    for attempt in (lambda: parse(text, "models"), lambda: parse_project(text), lambda: check_id(text, "model_id")):
        try:
            attempt()
        except InvalidArgumentError as error:
            assert repr(text) in error.message


@pytest.mark.parametrize(
    "name", ["", "models/x", "projects//models/x", "projects/p/engines/x", "projects/p/models/x/y"]
)
def test_a_name_of_another_form_says_what_was_expected(name: str) -> None:
    with pytest.raises(InvalidArgumentError, match=r"projects/\{project\}/models/\{id\}"):
        parse(name, "models")


@pytest.mark.parametrize("bad", ["", "Upper", "-dash-first", "a" * 64, "a/b", "a\n"])
def test_a_bad_id_is_refused(bad: str) -> None:
    with pytest.raises(InvalidArgumentError, match="model_id"):
        check_id(bad, "model_id")
