"""Train a small residual CNN on the digits and save it as a Keras file. Runs in the tensorflow worker environment.

    python train_digits.py digits.npz digits.keras

`digits.npz` holds `train_images` (N, 8, 8, 1) float32 in [0, 1] and `train_labels` (N,) integers.
"""

from __future__ import annotations

import sys

import keras
import numpy as np
from keras import layers

EPOCHS = 12
SEED = 7


def batch_norm(name: str) -> keras.Layer:
    """Few steps are trained, so the moving statistics must follow faster than Keras's default of 0.99 lets them."""
    return layers.BatchNormalization(momentum=0.9, name=name)


def residual_block(x: keras.KerasTensor, filters: int, stride: int, name: str) -> keras.KerasTensor:
    """Two 3x3 convolutions beside a shortcut, projected where the shape changes (He et al. 2016)."""
    shortcut = x
    x = layers.Conv2D(filters, 3, strides=stride, padding="same", use_bias=False, name=f"{name}_conv1")(x)
    x = batch_norm(f"{name}_bn1")(x)
    x = layers.ReLU(name=f"{name}_relu1")(x)
    x = layers.Conv2D(filters, 3, padding="same", use_bias=False, name=f"{name}_conv2")(x)
    x = batch_norm(f"{name}_bn2")(x)
    if stride != 1 or shortcut.shape[-1] != filters:
        shortcut = layers.Conv2D(filters, 1, strides=stride, use_bias=False, name=f"{name}_project")(shortcut)
        shortcut = batch_norm(f"{name}_project_bn")(shortcut)
    x = layers.Add(name=f"{name}_add")([x, shortcut])
    return layers.ReLU(name=f"{name}_relu2")(x)


def digits_model() -> keras.Model:
    """Images (batch, 8, 8, 1) float32 to logits (batch, 10) float32."""
    images = keras.Input((8, 8, 1), name="images")
    x = layers.Conv2D(16, 3, padding="same", use_bias=False, name="stem_conv")(images)
    x = batch_norm("stem_bn")(x)
    x = layers.ReLU(name="stem_relu")(x)
    x = residual_block(x, 16, 1, "block1")
    x = residual_block(x, 32, 2, "block2")
    x = residual_block(x, 64, 2, "block3")
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(images, layers.Dense(10, name="logits")(x), name="digits")


def main(data: str, out: str) -> None:
    keras.utils.set_random_seed(SEED)
    with np.load(data) as arrays:
        images, labels = arrays["train_images"], arrays["train_labels"]
    model = digits_model()
    steps = EPOCHS * -(-len(images) // 64)
    model.compile(
        optimizer=keras.optimizers.AdamW(keras.optimizers.schedules.CosineDecay(3e-3, steps), weight_decay=1e-3),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    for epoch in range(EPOCHS):
        history = model.fit(images, labels, batch_size=64, epochs=epoch + 1, initial_epoch=epoch, verbose=0).history
        print(
            f"epoch {epoch + 1}/{EPOCHS} loss {history['loss'][-1]:.4f} accuracy {history['accuracy'][-1]:.4f}",
            flush=True,
        )
    model.save(out)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
