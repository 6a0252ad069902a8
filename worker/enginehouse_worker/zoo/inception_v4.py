"""Inception-v4 (Szegedy, Ioffe, Vanhoucke and Alemi 2016, "Inception-v4, Inception-ResNet and the Impact of Residual
Connections on Learning", arXiv:1602.07261, figures 3 to 9), which keras.applications lacks.
"""

from __future__ import annotations

from typing import Any

_BATCH_NORM_EPSILON = 1e-3


class _Layers:
    """Makes layers with numbered names, as keras.applications does."""

    def __init__(self) -> None:
        self._count = 0

    def conv(self, x: Any, filters: int, size: int | tuple[int, int], *, stride: int = 1, padding: str = "same") -> Any:
        """Convolution without bias, batch norm, ReLU."""
        from keras import layers

        self._count += 1
        name = f"conv{self._count}"
        x = layers.Conv2D(filters, size, strides=stride, padding=padding, use_bias=False, name=name)(x)
        x = layers.BatchNormalization(epsilon=_BATCH_NORM_EPSILON, name=f"{name}_bn")(x)
        return layers.Activation("relu", name=f"{name}_relu")(x)

    def chain(self, x: Any, *steps: tuple[int, int | tuple[int, int]]) -> Any:
        """Convolutions (filters, size) one after another."""
        for filters, size in steps:
            x = self.conv(x, filters, size)
        return x


def inception_v4(input_shape: tuple[int, int, int], classes: int) -> Any:
    """The network as a `keras.Model` that outputs logits. Dropout, which does nothing at inference, is left out."""
    import keras
    from keras import layers

    make = _Layers()
    inputs = keras.Input(input_shape, name="input")
    x = _stem(make, inputs)
    for number in range(4):
        x = _inception_a(make, x, f"inception_a{number + 1}")
    x = _reduction_a(make, x)
    for number in range(7):
        x = _inception_b(make, x, f"inception_b{number + 1}")
    x = _reduction_b(make, x)
    for number in range(3):
        x = _inception_c(make, x, f"inception_c{number + 1}")
    x = layers.GlobalAveragePooling2D(name="avg_pool")(x)
    return keras.Model(inputs, layers.Dense(classes, name="predictions")(x), name="inception_v4")


def _concat(branches: list[Any], name: str) -> Any:
    from keras import layers

    return layers.Concatenate(name=name)(branches)


def _average(x: Any) -> Any:
    from keras import layers

    return layers.AveragePooling2D(3, strides=1, padding="same")(x)


def _max(x: Any) -> Any:
    from keras import layers

    return layers.MaxPooling2D(3, strides=2)(x)


def _stem(make: _Layers, x: Any) -> Any:
    x = make.conv(x, 32, 3, stride=2, padding="valid")
    x = make.conv(x, 32, 3, padding="valid")
    x = make.conv(x, 64, 3)
    x = _concat([_max(x), make.conv(x, 96, 3, stride=2, padding="valid")], "stem1")
    short = make.conv(make.chain(x, (64, 1)), 96, 3, padding="valid")
    long = make.conv(make.chain(x, (64, 1), (64, (1, 7)), (64, (7, 1))), 96, 3, padding="valid")
    x = _concat([short, long], "stem2")
    return _concat([make.conv(x, 192, 3, stride=2, padding="valid"), _max(x)], "stem3")


def _inception_a(make: _Layers, x: Any, name: str) -> Any:
    branches = [
        make.chain(x, (96, 1)),
        make.chain(x, (64, 1), (96, 3)),
        make.chain(x, (64, 1), (96, 3), (96, 3)),
        make.chain(_average(x), (96, 1)),
    ]
    return _concat(branches, name)


def _reduction_a(make: _Layers, x: Any) -> Any:
    branches = [
        make.conv(x, 384, 3, stride=2, padding="valid"),
        make.conv(make.chain(x, (192, 1), (224, 3)), 256, 3, stride=2, padding="valid"),
        _max(x),
    ]
    return _concat(branches, "reduction_a")


def _inception_b(make: _Layers, x: Any, name: str) -> Any:
    branches = [
        make.chain(x, (384, 1)),
        make.chain(x, (192, 1), (224, (1, 7)), (256, (7, 1))),
        make.chain(x, (192, 1), (192, (7, 1)), (224, (1, 7)), (224, (7, 1)), (256, (1, 7))),
        make.chain(_average(x), (128, 1)),
    ]
    return _concat(branches, name)


def _reduction_b(make: _Layers, x: Any) -> Any:
    branches = [
        make.conv(make.chain(x, (192, 1)), 192, 3, stride=2, padding="valid"),
        make.conv(make.chain(x, (256, 1), (256, (1, 7)), (320, (7, 1))), 320, 3, stride=2, padding="valid"),
        _max(x),
    ]
    return _concat(branches, "reduction_b")


def _inception_c(make: _Layers, x: Any, name: str) -> Any:
    split = make.chain(x, (384, 1))
    deep = make.chain(x, (384, 1), (448, (3, 1)), (512, (1, 3)))
    branches = [
        make.chain(x, (256, 1)),
        make.chain(split, (256, (1, 3))),
        make.chain(split, (256, (3, 1))),
        make.chain(deep, (256, (1, 3))),
        make.chain(deep, (256, (3, 1))),
        make.chain(_average(x), (256, 1)),
    ]
    return _concat(branches, name)
