"""Sample a trained denoiser over a grid of τ and η and measure it: `python evaluate.py [key=value ...]`."""

import sys

import hydra
from omegaconf import DictConfig

from ddim.command.arguments import evaluation_arguments, sweep_arguments
from ddim.command.deferring import load_lightning
from ddim.command.hydra_callbacks import finish_broken_sweep
from ddim.runs.ending import exit_with_sentence


@hydra.main(version_base="1.3", config_path="conf", config_name="evaluate")
def main(cfg: DictConfig) -> None:
    load_lightning()
    from ddim.command.evaluate import evaluate

    exit_with_sentence(lambda: evaluate(cfg))


if __name__ == "__main__":
    sys.argv[1:] = exit_with_sentence(lambda: sweep_arguments(evaluation_arguments(sys.argv[1:])))
    try:
        exit_with_sentence(main)
    finally:
        finish_broken_sweep()
