"""Well-known convolutional networks, with weights from a file or seeded random ones. They output logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from enginehouse_worker.stages.context import Progress
from enginehouse_worker.zoo.entries import Entry


def make_model(entry: Entry, *, classes: int, seed: int, weights: Path | None, progress: Progress) -> Any:
    """A `keras.Model` of an architecture, with the weights of a Keras file, or random ones from a seed.

    Raises:
        WorkerError: INVALID_ARGUMENT when the file's weights do not fit, naming layer and shapes.
    """
    import keras

    keras.utils.set_random_seed(seed)
    model = build(entry, classes)
    if weights is not None:
        from enginehouse_worker.zoo.weights import load_weights

        progress(0.2, f"{entry.name}: loading weights")
        load_weights(model, weights)
        return model
    progress(0.2, f"{entry.name}: setting batch statistics")
    from enginehouse_worker.zoo.statistics import settle

    settle(model, seed)
    return model


def build(entry: Entry, classes: int) -> Any:
    """The `keras.Model` of an architecture, as its layers initialize it."""
    import keras

    if entry.keras_application is None:
        from enginehouse_worker.zoo.inception_v4 import inception_v4

        return inception_v4(entry.input_shape, classes)
    make = getattr(keras.applications, entry.keras_application)
    return make(
        weights=None, classes=classes, classifier_activation=None, input_shape=entry.input_shape, name=entry.name
    )
