"""Train a denoiser: `python train.py [group=option ...] [key=value ...]`; `--help` lists the groups."""

import sys

import hydra
from omegaconf import DictConfig

from ddim.command.arguments import training_arguments
from ddim.command.deferring import load_lightning
from ddim.runs.ending import exit_with_sentence


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(cfg: DictConfig) -> float | None:
    load_lightning()
    from ddim.command.train import train

    return exit_with_sentence(lambda: train(cfg))


if __name__ == "__main__":
    sys.argv[1:] = exit_with_sentence(lambda: training_arguments(sys.argv[1:]))
    exit_with_sentence(main)
