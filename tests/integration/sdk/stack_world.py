"""A whole local stack on free ports, and a tiny Keras model to put through it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from keras_files import keras_file

from enginehouse.errors import EnginehouseError
from enginehouse.local.plan import StackOptions
from enginehouse.local.stack import down, up
from enginehouse.workers.environments import WorkerEnvironments

TINY = """
import sys, keras
keras.utils.set_random_seed(0)
layers = [keras.Input((8, 8, 1), name="images"), keras.layers.Conv2D(8, 3, padding="same", activation="relu"),
          keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(10, name="scores")]
keras.Sequential(layers).save(sys.argv[1])
"""


def need_environments() -> WorkerEnvironments:
    """Skip where a backend that we need is not installed."""
    try:
        environments = WorkerEnvironments.discover()
        environments.for_backend("onnxruntime")
        environments.for_backend("tensorflow")
    except EnginehouseError as error:
        pytest.skip(error.message)
    return environments


def tiny_model(config: pytest.Config) -> Path:
    """A .keras file: `images` FP32 [-1, 8, 8, 1] to `scores` FP32 [-1, 10]."""
    return keras_file(config, need_environments(), TINY, "tiny.keras")


@contextmanager
def running_stack(home: Path) -> Iterator[Path]:
    """A stack in a folder for the length of a block."""
    need_environments()
    variables = {"PYTHONPATH": os.pathsep.join(sys.path)}
    free = {"optimizer": 0, "inference": 0, "telemetry": 0}
    up(StackOptions(home, free, metrics_port=None, variables=variables))
    try:
        yield home
    finally:
        down(home, timeout=10)
