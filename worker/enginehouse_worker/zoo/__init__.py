"""Well-known convolutional networks, with published or seeded random weights. They output logits."""

from __future__ import annotations

from typing import Any

from enginehouse_worker.errors import WorkerError
from enginehouse_worker.stages.context import Progress
from enginehouse_worker.zoo.entries import Entry


def make_model(entry: Entry, *, classes: int, weights: str, seed: int, progress: Progress) -> Any:
    """A `keras.Model` of an architecture; `weights` is "random" (seeded) or "imagenet" (downloaded by Keras).

    Raises:
        WorkerError: FAILED_PRECONDITION when there are no such weights; UNAVAILABLE when they cannot be downloaded.
    """
    import keras

    if weights == "random":
        keras.utils.set_random_seed(seed)
        model = _build(entry, classes, None)
        progress(0.2, f"{entry.name}: setting batch statistics")
        from enginehouse_worker.zoo.statistics import settle

        settle(model, seed)
        return model
    if entry.keras_application is None or classes != entry.classes:
        raise WorkerError(
            "FAILED_PRECONDITION",
            f"Keras publishes no ImageNet weights for {entry.name} with {classes} classes; use weights 'random', or "
            "upload a model",
        )
    try:
        return _build(entry, classes, "imagenet")
    except Exception as error:
        raise WorkerError(
            "UNAVAILABLE", f"the ImageNet weights of {entry.name} cannot be downloaded: {error}"
        ) from error


def _build(entry: Entry, classes: int, weights: str | None) -> Any:
    import keras

    if entry.keras_application is None:
        from enginehouse_worker.zoo.inception_v4 import inception_v4

        return inception_v4(entry.input_shape, classes)
    make = getattr(keras.applications, entry.keras_application)
    return make(
        weights=weights, classes=classes, classifier_activation=None, input_shape=entry.input_shape, name=entry.name
    )
