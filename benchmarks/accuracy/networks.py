"""The two networks in PyTorch, with the layers and the names of Keras's, so that weights move from one to the other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from frameworks.networks import resnet50_v1
from torch import nn

Arrays = dict[str, npt.NDArray[np.float32]]
# Of batch norm: Keras's InceptionV3 and its ResNet50.
INCEPTION_EPSILON, RESNET_EPSILON = 1e-3, 1.001e-5
Size = int | tuple[int, int]


@dataclass(frozen=True)
class Network:
    """A network of the zoo: its name there, and the side of its input."""

    name: str
    size: int


NETWORKS = {network.name: network for network in (Network("resnet_v1_50", 224), Network("inception_v3", 299))}


def make(name: str, classes: int) -> nn.Module:
    """A network with random weights of PyTorch's generator: He's initialization, scale of each block's end as usual."""
    network = resnet50_v1(classes) if name == "resnet_v1_50" else InceptionV3(classes)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.BatchNorm2d) and name == "resnet_v1_50":
            module.eps = RESNET_EPSILON
    return network


class Unit(nn.Sequential):
    """Convolution, batch norm, ReLU. As in Keras's InceptionV3 the norm has an offset and no scale: it stays 1."""

    def __init__(self, inputs: int, filters: int, size: Size, stride: int = 1, *, padded: bool = True) -> None:
        height, width = (size, size) if isinstance(size, int) else size
        padding = (height // 2, width // 2) if padded else 0
        norm = nn.BatchNorm2d(filters, eps=INCEPTION_EPSILON)
        norm.weight.requires_grad_(False)
        super().__init__(
            nn.Conv2d(inputs, filters, (height, width), stride, padding, bias=False), norm, nn.ReLU(inplace=True)
        )
        self.filters = filters


class Branches(nn.Module):
    """Branches next to each other, channels concatenated."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


def chain(inputs: int, *steps: tuple[int, Size]) -> nn.Sequential:
    """Units one after the other, each given by filters and size."""
    units = []
    for filters, size in steps:
        units.append(Unit(inputs, filters, size))
        inputs = filters
    return nn.Sequential(*units)


def _pool(inputs: int, filters: int) -> nn.Sequential:
    # Keras's "same" average does not count the padding.
    return nn.Sequential(nn.AvgPool2d(3, 1, 1, count_include_pad=False), Unit(inputs, filters, 1))


def _small(inputs: int, pooled: int) -> Branches:
    return Branches(
        Unit(inputs, 64, 1),
        chain(inputs, (48, 1), (64, 5)),
        chain(inputs, (64, 1), (96, 3), (96, 3)),
        _pool(inputs, pooled),
    )


def _long(inputs: int, inner: int) -> Branches:
    wide, high = (1, 7), (7, 1)
    return Branches(
        Unit(inputs, 192, 1),
        chain(inputs, (inner, 1), (inner, wide), (192, high)),
        chain(inputs, (inner, 1), (inner, high), (inner, wide), (inner, high), (192, wide)),
        _pool(inputs, 192),
    )


def _split(inputs: int) -> Branches:
    def ends(channels: int) -> Branches:
        return Branches(Unit(channels, 384, (1, 3)), Unit(channels, 384, (3, 1)))

    return Branches(
        Unit(inputs, 320, 1),
        nn.Sequential(Unit(inputs, 384, 1), ends(384)),
        nn.Sequential(*chain(inputs, (448, 1), (384, 3)), ends(384)),
        _pool(inputs, 192),
    )


class InceptionV3(nn.Module):
    """Inception v3 (Szegedy et al., arXiv:1512.00567) without the auxiliary classifier, as Keras has it.

    Units are made in the order in which Keras makes its layers, which is how their weights are paired.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        shrink = nn.MaxPool2d(3, 2)
        self.features = nn.Sequential(
            Unit(3, 32, 3, 2, padded=False),
            Unit(32, 32, 3, padded=False),
            Unit(32, 64, 3),
            shrink,
            Unit(64, 80, 1, padded=False),
            Unit(80, 192, 3, padded=False),
            shrink,
            _small(192, 32),
            _small(256, 64),
            _small(288, 64),
            Branches(
                Unit(288, 384, 3, 2, padded=False),
                nn.Sequential(*chain(288, (64, 1), (96, 3)), Unit(96, 96, 3, 2, padded=False)),
                shrink,
            ),
            _long(768, 128),
            _long(768, 160),
            _long(768, 160),
            _long(768, 192),
            Branches(
                nn.Sequential(*chain(768, (192, 1)), Unit(192, 320, 3, 2, padded=False)),
                nn.Sequential(*chain(768, (192, 1), (192, (1, 7)), (192, (7, 1))), Unit(192, 192, 3, 2, padded=False)),
                shrink,
            ),
            _split(1280),
            _split(2048),
        )
        self.fc = nn.Linear(2048, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # The pool that exporters write as one GlobalAveragePool.
        pooled = nn.functional.adaptive_avg_pool2d(self.features(x), 1)
        return self.fc(torch.flatten(pooled, 1))  # type: ignore[no-any-return]


def keras_arrays(network: nn.Module, name: str) -> Arrays:
    """The weights by Keras's names, `LAYER/VARIABLE`, in Keras's layouts."""
    found: Arrays = {}
    for convolution, norm, layers in (_resnet if name == "resnet_v1_50" else _inception)(network):
        conv_name, norm_name = layers
        found[f"{conv_name}/kernel"] = _array(convolution.weight).transpose(2, 3, 1, 0)
        if name == "resnet_v1_50":
            # Keras's convolutions have a bias there; a batch norm follows, so it does nothing that the offset cannot.
            found[f"{conv_name}/bias"] = np.zeros(convolution.out_channels, np.float32)
            found[f"{norm_name}/gamma"] = _array(norm.weight)
        found[f"{norm_name}/beta"] = _array(norm.bias)
        found[f"{norm_name}/moving_mean"] = _array(norm.running_mean)
        found[f"{norm_name}/moving_variance"] = _array(norm.running_var)
    classifier: Any = network.fc
    found["predictions/kernel"] = _array(classifier.weight).T
    found["predictions/bias"] = _array(classifier.bias)
    return {key: np.ascontiguousarray(value) for key, value in found.items()}


@torch.no_grad()
def load_keras_arrays(network: nn.Module, name: str, arrays: Mapping[str, npt.NDArray[np.float32]]) -> None:
    """Give a network the weights that `keras_arrays` took from another one."""

    def put(parameter: Any, values: npt.NDArray[np.float32]) -> None:
        parameter.copy_(torch.from_numpy(np.ascontiguousarray(values)))

    for convolution, norm, (conv_name, norm_name) in (_resnet if name == "resnet_v1_50" else _inception)(network):
        put(convolution.weight, arrays[f"{conv_name}/kernel"].transpose(3, 2, 0, 1))
        if name == "resnet_v1_50":
            put(norm.weight, arrays[f"{norm_name}/gamma"])
        put(norm.bias, arrays[f"{norm_name}/beta"])
        put(norm.running_mean, arrays[f"{norm_name}/moving_mean"])
        put(norm.running_var, arrays[f"{norm_name}/moving_variance"])
    classifier: Any = network.fc
    put(classifier.weight, arrays["predictions/kernel"].T)
    put(classifier.bias, arrays["predictions/bias"])


def _array(tensor: Any) -> npt.NDArray[np.float32]:
    return np.asarray(tensor.detach().float().cpu().numpy())


def _resnet(network: Any) -> list[tuple[Any, Any, tuple[str, str]]]:
    found = [(network.conv1, network.bn1, ("conv1_conv", "conv1_bn"))]
    for stage in range(1, 5):
        for number, block in enumerate(getattr(network, f"layer{stage}"), 1):
            prefix = f"conv{stage + 1}_block{number}"
            parts = [(i, getattr(block, f"conv{i}"), getattr(block, f"bn{i}")) for i in (1, 2, 3)]
            if block.downsample is not None:
                parts.append((0, block.downsample[0], block.downsample[1]))
            found += [(conv, norm, (f"{prefix}_{i}_conv", f"{prefix}_{i}_bn")) for i, conv, norm in parts]
    return found


def _inception(network: Any) -> list[tuple[Any, Any, tuple[str, str]]]:
    units = [module for module in network.modules() if isinstance(module, Unit)]
    endings = ["", *(f"_{number}" for number in range(1, len(units)))]
    return [
        (unit[0], unit[1], (f"conv2d{end}", f"batch_normalization{end}"))
        for unit, end in zip(units, endings, strict=True)
    ]
