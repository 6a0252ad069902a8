"""Gives randomly weighted networks the statistics that training would: otherwise all inputs get nearly the same output,
and agreement between two engines says nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np

from enginehouse_worker.synthetic import random_image

_SAMPLES = 16
# Trained residual branches add a little to their shortcut; random ones of equal strength amplify any rounding error
# with depth (see Goyal et al., arXiv:1706.02677, who begin training with 0 here). Chosen so that INT8 agrees with FP32.
_RESIDUAL_SCALE = 0.3
# ReLUs that cut half of every channel make a random network chaotic; with this offset they cut a sixth.
_OFFSET = 1.0
# The deviation of the logits of a typical trained ImageNet classifier is of this order.
_LOGIT_DEVIATION = 2.0
_EPSILON = 1e-6


def settle(model: Any, seed: int) -> None:
    """Set batch norms' moving statistics (or, in networks without, each layer's scale and bias) and the classifier's
    scale from one batch of synthetic images, in place.
    """
    import keras

    height, width, channels = model.inputs[0].shape[1:]
    random = np.random.default_rng(seed)
    images = np.stack([random_image(height, width, channels, random) for _ in range(_SAMPLES)])
    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    if norms:
        _weaken_residual_branches(model)
        _raise_activations(model, norms)
        _settle_batch_norms(model, norms, images)
        _standardize(model.layers[-1], _features(model, images, training=False), per_output_scale=False)
    else:
        _settle_layers(model, images)


def _weaken_residual_branches(model: Any) -> None:
    """Scale what ends each residual branch: of two layers that meet in an Add, the one with more layers before it."""
    import keras

    order = {layer.name: number for number, layer in enumerate(model.layers)}
    for add in model.layers:
        if not isinstance(add, keras.layers.Add):
            continue
        ends = [tensor._keras_history.operation for tensor in add.input]
        scaled = [end for end in ends if isinstance(end, (keras.layers.BatchNormalization, keras.layers.Conv2D))]
        if not scaled:
            continue
        last = max(scaled, key=lambda layer: order[layer.name])
        weight = last.kernel if isinstance(last, keras.layers.Conv2D) else last.gamma
        weight.assign(weight * _RESIDUAL_SCALE)


def _raise_activations(model: Any, norms: list[Any]) -> None:
    """Offset the batch norms that feed a ReLU, so that it passes most of each channel as in trained networks."""
    import keras

    adds = [layer for layer in model.layers if isinstance(layer, keras.layers.Add)]
    added = {tensor._keras_history.operation.name for add in adds for tensor in add.input}
    for norm in norms:
        if norm.beta is not None and norm.name not in added:
            norm.beta.assign(np.full(norm.beta.shape, _OFFSET, np.float32))


def _settle_batch_norms(model: Any, norms: list[Any], images: Any) -> None:
    """One pass in training mode with momentum 0: each batch norm sees what the settled ones before it give."""
    momenta = [layer.momentum for layer in norms]
    for layer in norms:
        layer.momentum = 0.0
    _features(model, images, training=True)
    for layer, momentum in zip(norms, momenta, strict=True):
        layer.momentum = momentum


def _features(model: Any, images: Any, *, training: bool) -> Any:
    """What the last layer reads, computed layer by layer.

    Keras keeps the outputs of all layers until the last is done, 2 GB of them for ResNet-50. Here each is dropped when
    nothing else reads it.
    """
    last = model.layers[-1]
    reads = {layer.name: [id(tensor) for tensor in _tensors(layer.input)] for layer in model.layers}
    readers = Counter(key for layer in model.layers for key in reads[layer.name] if layer is not model.layers[0])
    values = {id(model.inputs[0]): images}
    for layer in model.layers[1:-1]:
        taken = [values[key] for key in reads[layer.name]]
        readers.subtract(reads[layer.name])
        for key in reads[layer.name]:
            if not readers[key]:
                values.pop(key, None)
        single = not isinstance(layer.input, (list, tuple))
        values[id(layer.output)] = layer(taken.pop() if single else taken, training=training)
    return values[id(last.input)]


def _tensors(given: Any) -> Iterable[Any]:
    return given if isinstance(given, (list, tuple)) else (given,)


def _settle_layers(model: Any, images: Any) -> None:
    """Layer-sequential unit-variance initialization (Mishkin and Matas, arXiv:1511.06422), means removed as well."""
    value = images
    for layer in model.layers[1:]:
        if getattr(layer, "kernel", None) is not None:
            _standardize(layer, value, per_output_scale=layer is not model.layers[-1])
        value = layer(value, training=False)


def _standardize(layer: Any, value: Any, *, per_output_scale: bool) -> None:
    """Scale a layer's kernel and set its bias so that, before its activation, outputs have mean 0 and a fixed
    deviation.
    """
    activation = layer.activation
    layer.activation = lambda x: x
    outputs = np.asarray(layer(value))
    layer.activation = activation
    axes = tuple(range(outputs.ndim - 2))
    # Sample by sample, so that what is copied stays small.
    mean = np.mean([sample.mean(axis=axes, dtype=np.float64) for sample in outputs], axis=0)
    offset = mean.astype(np.float32)
    squares = [np.square(sample - offset).mean(axis=axes, dtype=np.float64) for sample in outputs]
    variance = np.mean(squares, axis=0)
    del outputs
    if per_output_scale:
        scale, target = 1.0 / (np.sqrt(variance) + _EPSILON), _OFFSET
    else:
        scale, target = np.full_like(mean, _LOGIT_DEVIATION / (np.sqrt(variance.mean()) + _EPSILON)), 0.0
    # In place, in double precision: the largest kernel is 0.4 GB.
    kernel, bias = layer.get_weights()
    np.multiply(kernel, scale, out=kernel, dtype=np.float64, casting="same_kind")
    layer.set_weights([kernel, ((bias - mean) * scale + target).astype(np.float32)])
