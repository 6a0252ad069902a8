"""The architectures of the zoo, as data. Their names are those of the benchmarks."""

from __future__ import annotations

from dataclasses import dataclass

from enginehouse_worker.errors import WorkerError
from enginehouse_worker.stages.params import close_matches


@dataclass(frozen=True)
class Entry:
    """`parameters`: the published number with 1,000 classes; `input_shape`: (height, width, channels)."""

    name: str
    parameters: int
    input_shape: tuple[int, int, int]
    classes: int
    keras_application: str | None
    """The function of `keras.applications`, or None when the architecture is written here."""
    source: str


ENTRIES = {
    entry.name: entry
    for entry in (
        Entry("vgg16", 138_357_544, (224, 224, 3), 1000, "VGG16", "Simonyan and Zisserman, arXiv:1409.1556"),
        Entry("vgg19", 143_667_240, (224, 224, 3), 1000, "VGG19", "Simonyan and Zisserman, arXiv:1409.1556"),
        Entry("inception_v3", 23_851_784, (299, 299, 3), 1000, "InceptionV3", "Szegedy et al., arXiv:1512.00567"),
        # Trainable parameters, batch norm's scale and offset included; moving statistics come on top.
        Entry("inception_v4", 42_679_816, (299, 299, 3), 1000, None, "Szegedy et al., arXiv:1602.07261"),
        Entry("resnet_v1_50", 25_636_712, (224, 224, 3), 1000, "ResNet50", "He et al., arXiv:1512.03385"),
        Entry("resnet_v2_50", 25_613_800, (224, 224, 3), 1000, "ResNet50V2", "He et al., arXiv:1603.05027"),
    )
}


def architecture(name: str) -> Entry:
    """An architecture by name.

    Raises:
        WorkerError: INVALID_ARGUMENT when the zoo does not have it.
    """
    if name not in ENTRIES:
        near = close_matches(name, ENTRIES)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise WorkerError("INVALID_ARGUMENT", f"the zoo has no {name!r} (it has {', '.join(ENTRIES)}){hint}")
    return ENTRIES[name]
