"""A machine to test on, and engines of a small network that the tests share. Everything is skipped without a GPU."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

# Test folders are no packages, so their helpers are imported by folder.
sys.path.insert(0, str(Path(__file__).parent))

from building import PREPROCESSING, Floats, Workshop, array_of
from machine import Machine, find_machine

from services import Services, running_services

PROFILE = (1, 16, 32)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.gpu)


@pytest.fixture(scope="session")
def machine() -> Machine:
    found = find_machine()
    if isinstance(found, str):
        pytest.skip(found)
    return found


@pytest.fixture(scope="session")
def gpu(machine: Machine) -> Machine:
    """For tests that mean nothing on a CPU."""
    if not machine.gpu:
        pytest.skip("needs TensorRT and a GPU")
    return machine


@dataclass
class Notes:
    """What was measured on the way, kept beside the tests' results."""

    found: dict[str, Any] = field(default_factory=dict)

    def add(self, name: str, value: Any) -> None:
        self.found[name] = value
        print(f"{name}: {value}", flush=True)


@pytest.fixture(scope="session")
def notes() -> Iterator[Notes]:
    """Written to ENGINEHOUSE_GPU_TEST_NOTES, a JSON file, at the end."""
    notes = Notes()
    yield notes
    if path := os.environ.get("ENGINEHOUSE_GPU_TEST_NOTES"):
        Path(path).write_text(json.dumps(notes.found, indent=1) + "\n")


@pytest.fixture(scope="session")
def workshop(machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """Folders of stages; ENGINEHOUSE_GPU_TEST_WORK keeps them from run to run."""
    kept = os.environ.get("ENGINEHOUSE_GPU_TEST_WORK")
    return Workshop(machine, Path(kept) if kept else tmp_path_factory.mktemp("workshop"))


@dataclass(frozen=True)
class Small:
    """The small network: its stages' folders, its images, and ONNX Runtime's FP32 answers to them."""

    model: Path
    int8: Path
    bytes_model: Path
    bytes_int8: Path
    name: str
    images: Floats
    expected: Floats
    byte_images: Floats
    byte_expected: Floats


@pytest.fixture(scope="session")
def small(machine: Machine, workshop: Workshop) -> Small:
    async def make() -> Small:
        model = await workshop.imported("small", "small")
        images = await workshop.images("small", model)
        int8 = await workshop.quantized("small", model, images)
        taken = await workshop.stage(
            "small/bytes", "preprocess", {"model": model}, machine.onnx, preprocessing=PREPROCESSING
        )
        byte_images = await workshop.images("small-bytes", taken)
        byte_int8 = await workshop.quantized("small-bytes", taken, byte_images)
        name, array = array_of(images)
        return Small(
            model,
            int8,
            taken,
            byte_int8,
            name,
            array,
            await workshop.reference("small", model, images),
            array_of(byte_images)[1],
            await workshop.reference("small-bytes", taken, byte_images),
        )

    return asyncio.run(make())


@pytest.fixture(scope="session")
def engine(machine: Machine, workshop: Workshop, small: Small) -> Path:
    """The small network, not quantized, for batches of 1 to 32."""
    return asyncio.run(workshop.built(f"small-{machine.half}", small.model, machine.half, PROFILE))


@pytest.fixture(scope="session")
def int8_engine(workshop: Workshop, small: Small) -> Path:
    """The small network, quantized, for batches of 1 to 32."""
    return asyncio.run(workshop.built("small-INT8", small.int8, "INT8", PROFILE))


@pytest.fixture(scope="session")
def large_model(workshop: Workshop) -> Path:
    """A model with 256 MiB of weights (the GPU's), or 16 MiB."""
    size = (256 << 20) if workshop.machine.gpu else (16 << 20)
    return asyncio.run(workshop.imported("large", "large", size))


@pytest.fixture(scope="module")
def services(machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    with running_services(machine, tmp_path_factory.mktemp("services")) as running:
        yield running


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(3)
