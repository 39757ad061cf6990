"""Trains the digit classifier behind the `digits-cnn` features and writes its weights into the package.

    python tools/train_digits_cnn.py [--output FILE] [--epochs N] [--seed N]

Sees the training split of the digits only; prints the accuracy on both splits and how well conditioned the features
are. The shipped weights were made with the defaults.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import safetensors.torch
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

from ddim.data import build_datamodule
from ddim.metrics import digits_cnn


def load_split() -> dict[str, tuple[Tensor, Tensor]]:
    """split -> uint8 images (N, 1, 8, 8), labels (N,), split as the `digits` data set is."""
    data = build_datamodule(
        {"name": "digits"}, batch_size=1, eval_batch_size=1, num_workers=0, seed=0, cache_dir=Path("unused")
    )
    data.prepare_data()
    data.setup()
    table = load_digits()
    labels = {tuple(row): label for row, label in zip(table.data.astype(int).tolist(), table.target, strict=True)}
    split = {}
    for name in ("train", "test"):
        images = torch.cat(list(data.images(name, 1000)))
        split[name] = images, torch.tensor([labels[tuple(row)] for row in to_levels(images)])
    return split


def to_levels(images: Tensor) -> list[list[int]]:
    """The 64 values of each image on scikit-learn's scale, 0 to 16, by which its label is found."""
    return (images.flatten(1).double() * 16 / 255).round().int().tolist()


def shifted(images: Tensor) -> Tensor:
    """Each image moved by -1, 0 or 1 pixel along each axis, black flowing in."""
    padded = functional.pad(images, (1, 1, 1, 1))
    patches = padded.unfold(2, 8, 1).unfold(3, 8, 1)
    offsets = torch.randint(0, 3, (2, len(images)))
    return patches[torch.arange(len(images)), :, offsets[0], offsets[1]]


def train(images: Tensor, labels: Tensor, epochs: int, seed: int) -> digits_cnn.DigitsCNN:
    torch.manual_seed(seed)
    network = digits_cnn.DigitsCNN()
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.05)
    batch_size = 64
    steps = epochs * (len(images) // batch_size)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps)
    loss_function = nn.CrossEntropyLoss(label_smoothing=0.1)
    for _ in range(epochs):
        for chosen in torch.randperm(len(images)).split(batch_size)[: len(images) // batch_size]:
            loss = loss_function(network(shifted(images[chosen]))[1], labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
    return network.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(digits_cnn.__file__).with_name(digits_cnn.WEIGHTS_FILE))
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    # One thread, so that sums have one order and the same seed gives the same file.
    torch.set_num_threads(1)

    split = load_split()
    network = train(*split["train"], epochs=options.epochs, seed=options.seed)
    with torch.no_grad():
        for name, (images, labels) in split.items():
            features, logits = network(images)
            correct = int((logits.argmax(dim=1) == labels).sum())
            print(f"{name}: {correct} of {len(labels)} correct ({correct / len(labels):.2%})")
            if name == "train":
                eigenvalues = torch.linalg.eigvalsh(features.double().T.cov())
                print(f"train: feature covariance has eigenvalues from {eigenvalues[0]:.2e} to {eigenvalues[-1]:.2e}")
    options.output.write_bytes(safetensors.torch.save(network.state_dict()))
    print(f"{options.output}: {options.output.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
