"""Trains the photograph classifier behind the `cifar-cnn` features and writes its weights into the package.

    python tools/train_cifar_cnn.py DIR [--output FILE] [--seed N] [--threads N] [--state FILE]

DIR holds the CIFAR-10 images as files, `train/CLASS/*` and `test/CLASS/*`, 32x32 pixels. The training split alone is
learned from; the test split is only measured. `--state` keeps where the training stands after every epoch, and a
second start with the same file goes on from there. The same seed, thread count and kind of processor give the same
weights.
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ddim.data.decoding import Decoder
from ddim.data.image_folder import find_images
from ddim.metrics import cifar_cnn

MAX_SHIFT = 2
TEST_EVERY = 5


@dataclass(frozen=True)
class Stage:
    """A cycle of the learning rate, which rises to `peak` for the part `rising` of it."""

    epochs: int
    batch_size: int
    peak: float
    rising: float
    weight_decay: float
    label_smoothing: float


# The network is small for its task and gains from another cycle of more, smaller and less regularised steps.
STAGES = (Stage(30, 256, 0.2, 0.2, 5e-4, 0.05), Stage(15, 128, 0.08, 0.05, 2e-4, 0.0))


def load_split(root: Path, split: str) -> tuple[Tensor, Tensor]:
    """uint8 images (N, 3, 32, 32) and labels (N,): the position of a file's folder among the sorted class folders."""
    files = find_images(root / split)
    classes = sorted({file.parent.name for file in files})
    decoder = Decoder(channels=3, resolution=32)
    images = torch.from_numpy(np.stack([decoder(file.read_bytes()) for file in files]))
    return images, torch.tensor([classes.index(file.parent.name) for file in files])


def augmented(images: Tensor) -> Tensor:
    """Each image mirrored with probability 1/2 and moved by up to MAX_SHIFT pixels along each axis, edges reflected."""
    count, channels, height, width = images.shape
    padded = functional.pad(images.float(), (MAX_SHIFT,) * 4, mode="reflect")
    top, left = torch.randint(0, 2 * MAX_SHIFT + 1, (2, count, 1))
    rows, columns = top + torch.arange(height), left + torch.arange(width)
    columns = torch.where(torch.rand(count, 1) < 0.5, columns, columns.flip(1))
    return padded[
        torch.arange(count)[:, None, None, None],
        torch.arange(channels)[None, :, None, None],
        rows[:, None, :, None],
        columns[:, None, None, :],
    ]


def with_batch_norm(network: nn.Module) -> nn.Module:
    """The network with every convolution but the first followed by batch normalisation, for training.

    The first one's input is no activation, and its output is as large as all others together.
    """
    for name, module in network.named_children():
        if isinstance(module, nn.Conv2d) and module.in_channels > 3:
            without_bias = nn.Conv2d(
                module.in_channels, module.out_channels, 3, stride=module.stride, padding=1, bias=False
            )
            setattr(network, name, nn.Sequential(without_bias, nn.BatchNorm2d(module.out_channels)))
        else:
            with_batch_norm(module)
    return network


def folded(network: nn.Module) -> nn.Module:
    """The inverse of `with_batch_norm`: the running statistics become part of weights and biases."""
    for name, module in network.named_children():
        if isinstance(module, nn.Sequential) and len(module) == 2 and isinstance(module[1], nn.BatchNorm2d):
            setattr(network, name, fuse_conv_bn_eval(module[0].eval(), module[1].eval()))
        else:
            folded(module)
    return network


@torch.no_grad()
def predict(network: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Features (N, 88) and logits (N, 10) in float32."""
    network.eval()
    features, logits = zip(*[network(part) for part in images.split(500)], strict=True)
    return torch.cat(features), torch.cat(logits)


def train(images: Tensor, labels: Tensor, test: tuple[Tensor, Tensor], options: argparse.Namespace) -> nn.Module:
    """A trained network with batch normalisation. Prints the loss of every epoch and the test accuracy of some."""
    torch.manual_seed(options.seed)
    network = with_batch_norm(cifar_cnn.CifarCNN()).to(memory_format=torch.channels_last)
    state = torch.load(options.state, weights_only=True) if options.state and options.state.exists() else None
    for number, stage in enumerate(STAGES):
        optimizer = torch.optim.SGD(
            network.parameters(), lr=stage.peak, momentum=0.9, nesterov=True, weight_decay=stage.weight_decay
        )
        steps = len(images) // stage.batch_size
        # From a quarter of the peak to the peak, then linearly to (nearly) zero.
        scheduler = torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            max_lr=stage.peak,
            total_steps=stage.epochs * steps,
            pct_start=stage.rising,
            anneal_strategy="linear",
            cycle_momentum=False,
            div_factor=4,
        )
        parts = {"network": network, "optimizer": optimizer, "scheduler": scheduler}
        first_epoch = 0
        if state is not None:
            if state["stage"] > number:
                continue
            for name, part in parts.items():
                part.load_state_dict(state[name])
            torch.set_rng_state(state["random"])
            first_epoch, state = state["epoch"], None
        for epoch in range(first_epoch, stage.epochs):
            started = time.monotonic()
            loss = train_epoch(network, images, labels, stage, optimizer, scheduler)
            accuracy = ""
            if (epoch + 1) % TEST_EVERY == 0:
                right = predict(network, test[0])[1].argmax(dim=1) == test[1]
                accuracy = f", test {right.double().mean():.2%}"
            seconds = time.monotonic() - started
            print(f"stage {number + 1}, epoch {epoch + 1}: loss {loss:.4f}{accuracy}, {seconds:.0f} s", flush=True)
            if options.state:
                now = {name: part.state_dict() for name, part in parts.items()}
                partial = options.state.with_suffix(".partial")
                torch.save({**now, "random": torch.get_rng_state(), "stage": number, "epoch": epoch + 1}, partial)
                os.replace(partial, options.state)
    return network


def train_epoch(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    stage: Stage,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
) -> float:
    """The mean loss of one pass over the images, in bfloat16."""
    network.train()
    steps, total = len(images) // stage.batch_size, 0.0
    for chosen in torch.randperm(len(images)).split(stage.batch_size)[:steps]:
        batch = augmented(images[chosen])
        with torch.autocast("cpu", torch.bfloat16):
            logits = network(batch)[1]
        loss = functional.cross_entropy(logits.float(), labels[chosen], label_smoothing=stage.label_smoothing)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        total += loss.item()
    return total / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, metavar="DIR")
    parser.add_argument("--output", type=Path, default=Path(cifar_cnn.__file__).with_name(cifar_cnn.WEIGHTS_FILE))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--state", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    split = {name: load_split(options.root, name) for name in ("train", "test")}
    trained = train(*split["train"], test=split["test"], options=options)
    weights = {name: value.half() for name, value in folded(trained).state_dict().items()}
    options.output.write_bytes(safetensors.torch.save({name: value.contiguous() for name, value in weights.items()}))

    # What is reported is of the weights as they are shipped: folded and rounded.
    network = cifar_cnn.CifarCNN()
    network.load_state_dict(safetensors.torch.load(options.output.read_bytes()))
    for name, (images, labels) in split.items():
        features, logits = predict(network, images)
        correct = int((logits.argmax(dim=1) == labels).sum())
        print(f"{name}: {correct} of {len(labels)} correct ({correct / len(labels):.2%})")
        if name == "train":
            eigenvalues = torch.linalg.eigvalsh(features.double().T.cov())
            print(f"train: feature covariance has eigenvalues from {eigenvalues[0]:.2e} to {eigenvalues[-1]:.2e}")
    print(f"{options.output}: {options.output.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
