"""Manifests, canonical JSON and engine keys."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enginehouse.artifacts import EngineManifest, Tree, TreeEntry, canonical_json, digest_bytes, digest_json
from enginehouse.artifacts.manifest import DeviceSpec, ProfileSpec, StageRecord, TensorSpec, engine_key
from enginehouse.errors import InvalidArgumentError

MANIFEST = EngineManifest(
    key=digest_bytes(b"key"),
    model="projects/p/models/m",
    model_digest=digest_bytes(b"model"),
    precision="INT8",
    backend="onnxruntime",
    backend_version="1.23.2",
    device=DeviceSpec("cpu", "Some CPU"),
    profile=ProfileSpec(1, 8, 64),
    inputs=(TensorSpec("x", "FP32", (-1, 3)),),
    outputs=(TensorSpec("y", "FP32", (-1, 10)),),
    batched=True,
    max_batch_size=64,
    files=Tree((TreeEntry("engine.json", digest_bytes(b"e"), 1),)),
    options={"intra_op_threads": "1"},
    calibration_digest=digest_bytes(b"c"),
    verification={"samples": 32, "sqnr_db": 31.5},
    stages=(StageRecord("build", "build", "onnxruntime", digest_bytes(b"k"), {"model": "x"}, {"a": 1}, {"s": 0.1}),),
    create_time="2026-01-01T00:00:00Z",
)

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


def test_a_manifest_comes_back() -> None:
    assert EngineManifest.from_json(MANIFEST.to_json()) == MANIFEST
    assert EngineManifest.from_json(MANIFEST.to_json().encode()).digest == MANIFEST.digest


def test_unknown_fields_are_ignored_and_later_schemas_refused() -> None:
    value = json.loads(MANIFEST.to_json())
    assert EngineManifest.from_json(json.dumps({**value, "new": 1})) == MANIFEST
    with pytest.raises(InvalidArgumentError, match="schema 2"):
        EngineManifest.from_json(json.dumps({**value, "schema": 2}))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 1}', "null"])
def test_what_is_no_manifest(text: str) -> None:
    with pytest.raises(InvalidArgumentError, match="not an engine manifest"):
        EngineManifest.from_json(text)


@given(VALUES)
def test_canonical_json_does_not_depend_on_order(value: object) -> None:
    text = canonical_json(value)
    again = json.loads(text)
    assert again == value
    assert canonical_json(again) == text
    if isinstance(value, dict):
        assert canonical_json(dict(reversed(value.items()))) == text


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}, object()])
def test_values_without_canonical_json(value: object) -> None:
    with pytest.raises(InvalidArgumentError):
        digest_json(value)


def test_every_determinant_changes_the_key() -> None:
    base = {"build": "a", "reference": "b"}
    assert engine_key(base) == engine_key(dict(reversed(base.items())))
    assert len({engine_key(base), engine_key({**base, "build": "c"}), engine_key({**base, "more": 1})}) == 3


def test_importing_artifacts_is_light() -> None:
    program = "import sys, enginehouse.artifacts; print(sorted(m for m in sys.modules if m.split('.')[0] in "
    program += "('numpy', 'sqlite3', 'structlog', 'pydantic', 'google', 'asyncio', 'tritonclient')))"
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    found = set(eval(out))
    assert not {m for m in found if m.split(".")[0] in ("numpy", "sqlite3", "structlog", "pydantic", "tritonclient")}
