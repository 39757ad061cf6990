"""Images per second of training, ours and the peers', by turns: `python -m benchmarks.training [key=value ...]`.

Ours is what `train.py` runs, built from the same configuration: Lightning's Trainer, the loader with random mirroring,
EMA, clipping, logging, checkpoints. Between two blocks of its steps the peers have theirs, with networks of their own
in the same process. Arguments of `train.py` may be appended. Printed are the rates, the part of our step that is not
the network's forward and backward pass, and how long the loader was waited for.

`--profile` shows which operations our step consists of instead. `--quick` is a look, not a measurement.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image
from torch.profiler import ProfilerActivity, profile

from benchmarks import training_peers as peers
from benchmarks.machine import ceilings, describe, without_bfloat16
from benchmarks.peers import diffusion_pytorch, forward_flops, parameters
from benchmarks.timing import BUDGET, Blocks, Summary, rate_rows, table
from benchmarks.training_profile import shares
from ddim.command.config import training_config
from ddim.training.build import Training, build_training
from ddim.training.precision import with_precision
from ddim.training.trainer import build_trainer

CONF = Path(__file__).resolve().parents[1] / "conf"
OURS = "ddim, train.py"
# A training step computes the network once forwards and, for the gradients of inputs and weights, twice backwards.
PASSES = 3
IMAGES = 512
TINY = ("denoiser.base_channels=8", "denoiser.norm_groups=4")


@dataclass
class Turns(pl.Callback):
    """Times blocks of the training's steps and lets the others run in between; the first round is not counted.

    A block lasts from the start of one batch to the start of another: it holds as many fetched batches as steps.
    Rounds end early where the next one would end later than `budget` seconds after the first.
    """

    blocks: Blocks
    steps: int
    rounds: int
    others: Mapping[str, Callable[[], object]]
    budget: float = BUDGET
    began: float = 0.0
    first: float = 0.0
    round: int = -1

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self.first = self.first or self.blocks.now()
        if trainer.global_step % self.steps or self.round > self.rounds:
            return
        if trainer.global_step:
            seconds = self.blocks.now() - self.began
            if self.round:
                self.blocks.add(OURS, seconds)
            self.others_turn()
            taken = self.blocks.now() - self.first
            if 0 < self.round < self.rounds and taken * (1 + 1 / (self.round + 1)) > self.budget:
                print(f"{self.round} of {self.rounds} rounds: they took {taken:.0f} s of {self.budget:.0f}")
                self.rounds = self.round
        self.round += 1
        self.began = self.blocks.now()

    def others_turn(self) -> None:
        for name, step in self.others.items():
            if self.round:
                self.blocks.run(name, lambda step=step: [step() for _ in range(self.steps)])  # type: ignore[misc]
            else:
                step()
        if self.round:
            took = ", ".join(f"{seconds[-1]:.2f}" for seconds in self.blocks.seconds.values())
            print(f"round {self.round} of {self.rounds}: {took} s", file=sys.stderr, flush=True)


@dataclass
class Parts(pl.Callback):
    """Seconds of each step from number `first` on: all of it, the network in both directions, waiting for a batch."""

    now: Callable[[], float]
    first: int
    whole: list[float] = field(default_factory=list)
    network: list[float] = field(default_factory=list)
    waited: list[float] = field(default_factory=list)
    began: float | None = None
    mark: float = 0.0
    inside: float = 0.0
    fetched: float = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        denoiser: Any = pl_module.denoiser
        denoiser.register_forward_pre_hook(lambda *_: self.start())
        denoiser.register_forward_hook(lambda *_: self.stop())

    def on_before_backward(self, *_: Any) -> None:
        self.start()

    def on_after_backward(self, *_: Any) -> None:
        self.stop()

    def start(self) -> None:
        if self.began is not None:
            self.mark = self.now()

    def stop(self) -> None:
        if self.began is not None:
            self.inside += self.now() - self.mark

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step < self.first:
            return
        now = self.now()
        if self.began is not None:
            self.whole.append(now - self.began)
            self.network.append(self.inside)
            self.waited.append(self._last_wait(trainer))
        self.began, self.inside = now, 0.0

    @staticmethod
    def _last_wait(trainer: pl.Trainer) -> float:
        recorded: dict[str, list[float]] = trainer.profiler.recorded_durations  # type: ignore[attr-defined]
        (name,) = (name for name in recorded if name.endswith("train_dataloader_next"))
        return recorded[name][-1]


@dataclass
class Profiled(pl.Callback):
    """torch.profiler over the steps from number `first` on, `last` not included."""

    first: int
    last: int
    device: torch.device
    profiler: Any = None

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.first:
            activities = [ProfilerActivity.CPU]
            activities += [ProfilerActivity.CUDA] if self.device.type == "cuda" else []
            self.profiler = profile(activities=activities)
            self.profiler.start()
        elif trainer.global_step == self.last:
            self.profiler.stop()


def training(options: argparse.Namespace, directory: Path, steps: int, *callbacks: pl.Callback) -> Training:
    """train.py's objects for a folder of random images, to train for this many steps."""
    images = directory / "images"
    _draw_images(images, options.resolution)
    overrides = [
        "dataset=image_folder",
        f"dataset.root={images}",
        f"dataset.resolution={options.resolution}",
        "denoiser=unet_cifar10",
        "recipe=cifar10",
        "callbacks=minimal",
        "logger=csv",
        f"loader.batch_size={options.batch_size}",
        f"trainer.max_steps={steps}",
        f"trainer.accelerator={'gpu' if options.device == 'cuda' else 'cpu'}",
        "+trainer.profiler=simple",
        f"cache_dir={directory / 'cache'}",
        *(TINY if options.tiny else ()),
        *options.overrides,
    ]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", overrides=overrides)
    config = training_config(cfg)
    config.trainer = with_precision(config.trainer, config.denoiser)
    torch.manual_seed(config.seed)
    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    run = directory / "run"
    trainer = build_trainer(config.trainer, run)
    return build_training(config, trainer, run, hyperparameters=plain, callbacks=callbacks)


def _draw_images(folder: Path, resolution: int) -> None:
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(IMAGES):
        pixels = random.integers(0, 256, (resolution, resolution, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:04d}.png")


def measure(options: argparse.Namespace, directory: Path) -> None:
    blocks = Blocks(torch.device(options.device))
    others: dict[str, peers.Step] = {}
    turns = Turns(blocks, options.steps, options.rounds, others)
    first_apart = (options.rounds + 1) * options.steps
    parts = Parts(blocks.now, first_apart)
    # A last step more, because steps are timed from start to start.
    ours = training(options, directory, first_apart + options.steps + 1, turns, parts)
    network, schedule = ours.module.denoiser, ours.module.schedule
    settings = ours.module.optimizer_config
    if without_bfloat16(options.device):
        options.peers = [name for name in options.peers if name not in peers.IN_BFLOAT16]
    others.update(peers.build(options.peers, network, schedule, settings, options.batch_size, options.device))
    ours.fit()

    print(f"\n{describe(options.device)}")
    print(f"{parameters(network):,} parameters, {ours.trainer.precision}; batch {options.batch_size} on ", end="")
    print(f"{options.device}; {turns.rounds} rounds of {options.steps} steps each\n")
    rows = [row[:-1] for row in rate_rows(blocks, options.steps * options.batch_size, OURS)]
    print(table(["images/s", "min", "median", "max"], rows))
    rows = [[name, *_figures(blocks.speedup(OURS, over=name))] for name in others]
    if rows:
        print(f"\n{table(['ours is so many times as fast as', 'min', 'median', 'max'], rows)}")
    print(f"\n{_work(options, ours, blocks)}")
    whole = sum(parts.whole)
    print(f"outside the network {100 * (1 - sum(parts.network) / whole):.1f} % of a step;", end=" ")
    print(f"waiting for the loader {1000 * Summary.of(parts.waited).median:.2f} ms a step", end=" ")
    print(f"({100 * sum(parts.waited) / whole:.2f} %)")


def _work(options: argparse.Namespace, ours: Training, blocks: Blocks) -> str:
    """Operations per second of each side, beside what the machine can do."""
    network: Any = ours.module.denoiser
    image = (network.config["in_channels"], options.resolution, options.resolution)
    flops, note = {False: forward_flops(network, image)}, ""
    if any(name in blocks.seconds for name in (peers.OTHER, peers.OTHER_BFLOAT16)):
        other: Any = diffusion_pytorch(network)
        flops[True] = forward_flops(other.model, image)
        note = f"denoising-diffusion-pytorch's network is another one: {parameters(other):,} parameters\n"
    ceiling = ceilings(options.device, size=512 if options.quick else 4096)
    fastest = max(ceiling.values())
    rows = []
    for name in blocks.seconds:
        work = PASSES * flops[name in (peers.OTHER, peers.OTHER_BFLOAT16)] / 1e9
        speed = work * blocks.rates(name, options.steps * options.batch_size).median
        rows.append([name, f"{work:.1f}", f"{speed:,.0f}", f"{100 * speed / fastest:.0f} %"])
    known = ", ".join(f"{dtype} {speed:,.0f}" for dtype, speed in ceiling.items())
    text = table(["work", "GFLOP an image", "GFLOP/s", "of the ceiling"], rows)
    return f"{text}\n{note}\nceiling, a product of two matrices: {known} GFLOP/s"


def _figures(summary: Summary) -> list[str]:
    return [f"{value:.2f}" for value in (summary.low, summary.median, summary.high)]


def show_profile(options: argparse.Namespace, directory: Path) -> None:
    # A step more than is looked at: the last one saves a checkpoint.
    profiled = Profiled(2, 2 + options.steps, torch.device(options.device))
    ours = training(options, directory, profiled.last + 1, profiled)
    ours.fit()
    print(f"\n{describe(options.device)}; {ours.trainer.precision}, batch {options.batch_size}\n")
    on_device = options.device == "cuda"
    events = profiled.profiler.key_averages()
    key = "self_device_time_total" if on_device else "self_cpu_time_total"
    print(events.table(sort_by=key, row_limit=25, max_name_column_width=60))
    print(table(["share of a step", "%"], [[name, f"{100 * share:.1f}"] for name, share in shares(events, key)]))


def options_of(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="arguments of train.py")
    parser.add_argument("--batch-size", type=int, default=32, help="images of a step (default: 32)")
    parser.add_argument("--steps", type=int, default=2, help="steps of a block (default: 2)")
    parser.add_argument("--rounds", type=int, default=5, help="counted blocks of each side (default: 5)")
    parser.add_argument("--resolution", type=int, default=32, help="side of the images (default: 32)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="(default: cpu)")
    parser.add_argument("--quick", action="store_true", help="batch 8 and 2 rounds of 1 step: a look in a minute")
    parser.add_argument("--tiny", action="store_true", help="a network too small to say anything, to try the command")
    parser.add_argument("--profile", action="store_true", help="the operations of our step, by torch.profiler")
    every = (peers.FLOAT32, peers.BFLOAT16, peers.BEST, peers.OTHER, peers.OTHER_BFLOAT16)
    numbered = ", ".join(f"{number}: {name}" for number, name in enumerate(every, start=1))
    parser.add_argument("--peers", type=int, nargs="*", default=range(1, 6), metavar="N", help=f"which of {numbered}")
    options = parser.parse_intermixed_args(arguments)
    if not set(options.peers) <= set(range(1, 6)):
        parser.error(f"--peers takes numbers from 1 to 5, got {' '.join(map(str, options.peers))}")
    options.peers = [every[number - 1] for number in options.peers]
    if options.tiny:
        options.resolution = 8
    if options.quick:
        options.batch_size, options.rounds, options.steps = 8, 2, 1
    return options


def main(arguments: list[str] | None = None) -> None:
    options = options_of(arguments)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    with tempfile.TemporaryDirectory() as directory:
        (show_profile if options.profile else measure)(options, Path(directory))


if __name__ == "__main__":
    main()
