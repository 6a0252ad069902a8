"""Trains a network on Fashion-MNIST at its real input size, in PyTorch, and writes it for every mode.

    python benchmarks/accuracy/train.py resnet_v1_50 --data FOLDER --work /tmp/accuracy

Needs PyTorch, torchvision and a GPU to be quick (bfloat16, channels last); `--samples` and `--epochs` make it small
enough to try on a CPU. The seed decides the weights, the order and the flips. Writes in `WORK/NAME`:
`uploaded/model.onnx` (what the import stage takes), `weights.npz` (by Keras's names: see `keras_weights.py` and
`frozen.py`), `samples.npz` (some images and PyTorch's logits) and `training.json`. `--limit` lowers the number of steps
when the first ones say that the time would not suffice. `--weights FOLDER` trains nothing: it takes `weights.npz` and
`training.json` of a folder that this command wrote elsewhere.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Before CUDA starts: cuBLAS repeats itself to the bit only with a workspace of its own.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "benchmarks")]

from frameworks.networks import export  # noqa: E402

from accuracy import data, networks  # noqa: E402

# Of SGD with Nesterov's momentum: rate for a batch of 256, raised for a tenth of the steps, then a cosine to 0.
RATE, MOMENTUM, DECAY = 0.1, 0.9, 1e-4
LARGEST_GRADIENT = 5.0
# The first steps choose kernels; those after them tell the speed.
WARM_STEPS, TIMED_STEPS = 10, 20
# Images kept with their logits, to compare other frameworks with.
SAMPLES = 4


class Images:
    """All images of a part on the device; batches of them upscaled and normalized."""

    def __init__(self, folder: Path, part: str, count: int, size: int, device: torch.device) -> None:
        images, labels = data.read(folder, part)
        self._pixels = torch.tensor(images[:count], device=device)
        self.labels = torch.tensor(labels[:count], device=device)
        self._matrix = torch.tensor(data.interpolation(size), device=device)

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, chosen: torch.Tensor, flipped: torch.Tensor | None = None) -> torch.Tensor:
        """(n, 3, size, size), channels last in memory."""
        images = self._pixels[chosen].float()
        if flipped is not None:
            images = torch.where(flipped[:, None, None], images.flip(2), images)
        grey = (self._matrix @ images @ self._matrix.T).round()
        normal = (grey - data.PREPROCESSING["mean"][0]) / data.PREPROCESSING["deviation"][0]
        return normal[:, None].expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)


def rate(step: int, steps: int, batch: int) -> float:
    """The learning rate of a step."""
    warm = max(1, steps // 10)
    most = RATE * batch / 256
    return (
        most * (step + 1) / warm
        if step < warm
        else most * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm))) / 2
    )


def batches(count: int, batch: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
    """Indices of whole batches in random order, again and again."""
    while True:
        order = torch.randperm(count, generator=generator)
        for begin in range(0, count - batch + 1, batch):
            yield order[begin : begin + batch]


def train(
    network: torch.nn.Module, images: Images, device: torch.device, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Train in place; returns what it took."""
    generator = torch.Generator().manual_seed(arguments.seed)
    batch = min(arguments.batch, len(images))
    steps = max(1, round(arguments.epochs * (len(images) // batch)))
    wanted = steps
    optimizer = torch.optim.SGD(
        [p for p in network.parameters() if p.requires_grad], RATE, MOMENTUM, weight_decay=DECAY, nesterov=True
    )
    order = batches(len(images), batch, generator)
    begin = timed = time.monotonic()
    step, losses = 0, []
    network.train()
    while step < steps:
        for group in optimizer.param_groups:
            group["lr"] = rate(step, steps, batch)
        chosen = next(order)
        flipped = (torch.rand(batch, generator=generator) < 0.5).to(device)
        chosen = chosen.to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = torch.nn.functional.cross_entropy(network(images.batch(chosen, flipped)), images.labels[chosen])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), LARGEST_GRADIENT)
        optimizer.step()
        step += 1
        if step == WARM_STEPS:
            losses.append(loss.item())  # waits for the device
            timed = time.monotonic()
        if step == WARM_STEPS + TIMED_STEPS:
            losses.append(loss.item())
            each = (time.monotonic() - timed) / TIMED_STEPS
            print(f"{batch / each:.0f} images/s; {steps} steps take {each * steps:.0f} s", flush=True)
            steps = min(steps, max(step + 1, int((arguments.limit - (time.monotonic() - begin)) / each)))
        if step % 100 == 0 or step == steps:
            losses.append(loss.item())
            print(f"step {step} of {steps}: loss {losses[-1]:.4f}, {time.monotonic() - begin:.0f} s", flush=True)
            if not math.isfinite(losses[-1]):
                raise SystemExit(f"the loss of step {step} is {losses[-1]}: training does not converge")
    network.eval()
    took = time.monotonic() - begin
    return {
        "images": len(images), "batch": batch, "steps": steps, "steps_wanted": wanted, "seconds": round(took, 1),
        "images_per_second": round(steps * batch / took, 1), "last_loss": round(losses[-1], 4),
    }  # fmt: skip


@torch.no_grad()
def top1(network: torch.nn.Module, images: Images, batch: int) -> float:
    """The share of images whose most likely class is theirs, in FP32."""
    hits = 0
    for begin in range(0, len(images), batch):
        chosen = torch.arange(begin, min(begin + batch, len(images)), device=images.labels.device)
        hits += int((network(images.batch(chosen)).argmax(1) == images.labels[chosen]).sum())
    return hits / len(images)


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("network", choices=tuple(networks.NETWORKS))
    cli.add_argument("--work", type=Path, required=True)
    cli.add_argument("--data", type=Path, default=data.DATA, help="folder of the four .gz files")
    cli.add_argument("--samples", type=int, default=60_000, help="training images, the first of the set")
    cli.add_argument("--test-samples", type=int, default=10_000)
    cli.add_argument("--epochs", type=float, default=5)
    cli.add_argument("--batch", type=int, default=256)
    cli.add_argument("--seed", type=int, default=0)
    cli.add_argument("--weights", type=Path, help="folder with weights.npz and training.json of an earlier run")
    cli.add_argument("--limit", type=float, default=300, help="seconds that training may take")
    arguments = cli.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(arguments.seed)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # costs time; nothing here reads such memory
    torch.backends.cudnn.benchmark = False
    chosen = networks.NETWORKS[arguments.network]
    network = networks.make(chosen.name, data.CLASSES).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if arguments.weights:
        found = json.loads((arguments.weights / "training.json").read_text())
        with np.load(arguments.weights / "weights.npz") as file:
            networks.load_keras_arrays(network, chosen.name, dict(file))
        network.eval()
    else:
        images = Images(arguments.data, "train", arguments.samples, chosen.size, device)
        found = train(network, images, device, arguments)
        test = Images(arguments.data, "t10k", arguments.test_samples, chosen.size, device)
        found |= {"top1": round(top1(network, test, arguments.batch), 4), "test_images": len(test)}
        found |= {
            "network": chosen.name, "epochs": arguments.epochs, "seed": arguments.seed,
            "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu", "torch": torch.__version__,
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }  # fmt: skip
    folder = arguments.work / chosen.name
    # What was made of other weights would stand beside these.
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    np.savez(folder / "weights.npz", **networks.keras_arrays(network, chosen.name))
    network = network.cpu().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    few = Images(arguments.data, "t10k", SAMPLES, chosen.size, torch.device("cpu")).batch(torch.arange(SAMPLES))
    with torch.no_grad():
        np.savez(folder / "samples.npz", images=few.contiguous().numpy(), logits=network(few).numpy())
    export(network, folder / "uploaded" / "model.onnx", chosen.size, output="predictions")
    (folder / "training.json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
