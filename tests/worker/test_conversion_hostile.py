"""Damaged ONNX files are refused, whatever is wrong with them; `fuzz_onnx.py` tries thousands."""

from __future__ import annotations

import os
import signal
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from enginehouse_worker.conversion.isolation import isolated
from enginehouse_worker.errors import WorkerError
from fuzz_onnx import BLAME, mutated, originals, outcome

MUTATIONS = 150


def test_mutated_files_are_imported_or_refused(tmp_path: Path) -> None:
    random = np.random.default_rng(7)
    models = originals()
    counts: Counter[str] = Counter()
    for number in range(MUTATIONS):
        found = outcome(mutated(models[number % len(models)], random), tmp_path)
        counts[found] += 1
    print(dict(counts))
    assert {found.split(" ")[0] for found in counts} <= {"imported", *BLAME}
    # Not all the same: the mutations reach beyond the first check.
    assert counts["imported"] >= 5
    assert counts["INVALID_ARGUMENT"] >= 5
    assert counts.total() == MUTATIONS


def test_the_originals_are_fine(tmp_path: Path) -> None:
    assert [outcome(model, tmp_path) for model in originals()] == ["imported"] * 3


def die() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def take_memory() -> int:
    return len(bytearray(1 << 40))


def test_a_crash_of_native_code_is_an_error_about_the_model() -> None:
    with pytest.raises(WorkerError, match=r"trying it ended by SIGSEGV") as raised:
        isolated(die, "trying it")
    assert raised.value.code == "INVALID_ARGUMENT"
    with pytest.raises(WorkerError, match=r"trying it failed: MemoryError"):
        isolated(take_memory, "trying it")
    assert isolated(lambda: 7, "trying it") == 7
