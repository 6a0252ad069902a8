"""ResNet-50 of both frameworks: torchvision's with version 1's strides, and the zoo's Keras graph with its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

KERAS_GRAPH = Path(__file__).resolve().parents[1] / "graphs" / "resnet_v1_50.onnx"
KERAS, PYTORCH = "resnet_v1_50-keras", "resnet_v1_50-pytorch"


def resnet50_v1(classes: int = 1000) -> Any:
    """torchvision's ResNet-50 as in the paper of He et al.: a block's stride is in its first 1x1 convolution.

    torchvision's own has it in the 3x3 convolution ("version 1.5"). Weights are drawn from PyTorch's generator.
    """
    import torchvision

    network = torchvision.models.resnet50(weights=None, num_classes=classes)
    for module in network.modules():
        if isinstance(module, torchvision.models.resnet.Bottleneck) and module.conv2.stride != (1, 1):
            module.conv1.stride, module.conv2.stride = module.conv2.stride, (1, 1)
    return network


def settle(network: Any, size: int) -> None:
    """Give batch norms the statistics of some noise, so that a network without training keeps its activations sane."""
    import torch

    norms = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean of what is seen
    network.train()
    with torch.no_grad():
        for _ in range(2):
            network(torch.randn(8, 3, size, size))
    network.eval()
    for norm in norms:
        norm.momentum = 0.1


def export(network: Any, path: Path, size: int, *, output: str = "logits") -> None:
    """Write a PyTorch network as ONNX with a dynamic batch, channels first."""
    import torch

    path.parent.mkdir(parents=True, exist_ok=True)
    torch.onnx.export(
        network.eval(),
        (torch.zeros(2, 3, size, size),),
        str(path),
        input_names=["input"],
        output_names=[output],
        dynamic_axes={"input": {0: "batch"}, output: {0: "batch"}},
        opset_version=17,
        dynamo=False,
    )


def pytorch_model(folder: Path) -> Path:
    """PyTorch's ResNet-50 with weights of seed 0, as a file that is uploaded, in a folder of its own."""
    import torch

    torch.manual_seed(0)
    network = resnet50_v1()
    settle(network, 224)
    export(network, folder / "model.onnx", 224)
    return folder


def keras_model(imported: Path, folder: Path) -> Path:
    """The zoo's graph, as Keras's export wrote it, with the weights of PyTorch's imported model.

    So both compute the same, power included.

    Raises:
        ValueError: the two graphs are not the same network.
    """
    import onnx
    from weightless import fill

    from frameworks.topology import Graph, with_weights

    ours = Graph(fill(onnx.load(str(KERAS_GRAPH))))
    theirs = Graph(onnx.load(str(imported / "model.onnx")))
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(with_weights(ours, theirs), str(folder / "model.onnx"))
    return folder
