from __future__ import annotations

from pathlib import Path

import pytest

from enginehouse.errors import InvalidArgumentError
from enginehouse.paper import load_paper


def test_the_packaged_facts() -> None:
    paper = load_paper()
    assert [claim.id for claim in paper.claims] == [f"C{n}" for n in range(1, 11)]
    assert [value.id for value in paper.values] == [f"V{n}" for n in range(1, 8)]
    assert len(paper.models) == 6 and len(paper.modes) == 5
    mode = paper.mode("tensorrt-int8")
    assert mode is not None and mode.device == "gpu" and paper.mode("other") is None
    assert {value.mode for value in paper.values} <= {mode.name for mode in paper.modes}


def test_another_form_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "facts.yaml"
    path.write_text("source: {title: t}\n")
    with pytest.raises(InvalidArgumentError, match=r"facts.yaml: key '\w+' is missing"):
        load_paper(path)
