"""`python -m ddim.draw "a three left of a seven" [CHECKPOINT]`: a caption as pictures, by a network that reads."""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ddim.data import Pixels
from ddim.data.captions import Vocabulary
from ddim.data.encoded_captions import EncoderVocabulary, vocabulary_from
from ddim.denoisers.build import described, null_condition
from ddim.denoisers.formats.contents import WEIGHTS, Pretrained
from ddim.denoisers.pretrained import open_pretrained
from ddim.diffusion import SAMPLERS, Conditional, NoiseSource
from ddim.diffusion.grid import SamplerConfig
from ddim.diffusion.guidance.settings import GuidanceConfig
from ddim.diffusion.guided_grid import GuidedSampler
from ddim.diffusion.schedule import build_schedule
from ddim.display.images import captioned
from ddim.errors import UserError, at_least
from ddim.evaluation.subject import Sampling, Subject
from ddim.runs.ending import exit_with_sentence
from ddim.runs.files import save_picture
from ddim.runs.locate import latest_checkpoint
from ddim.runs.paths import usable_path
from ddim.runs.plugins import load_plugins

AT_ONCE = 64
LARGEST_SEED = 2**63 - 1


def draw(
    pretrained: Pretrained,
    caption: str,
    sampler: SamplerConfig,
    *,
    number: int = 8,
    scale: float = 3.0,
    seed: int = 0,
    weights: str = "ema",
) -> Tensor:
    """Images of a caption, uint8 (number, C, H, W).

    Args:
        caption: words that the network was trained with; the empty one is any image.
        sampler: one point.
        scale: of classifier-free guidance: 0 is any image, 1 the network alone.
        seed: image i is a function of it and of i, however many there are.
        weights: "ema" or "raw".

    Raises:
        UserError: the network reads no captions, a word is not known, or a value is wrong.
    """
    at_least("--number", number, 1)
    if not 0 <= seed <= LARGEST_SEED:
        raise UserError(f"--seed={seed} must be a whole number from 0 to 2^63 - 1.")
    if not (math.isfinite(scale) and scale >= 0):
        raise UserError(f"--scale={scale} must be a number of at least 0.")
    at_least("--steps", sampler.steps, 1)
    tokens = vocabulary_of(pretrained).encode([caption])
    schedule = build_schedule(pretrained.schedule or {})
    (point,) = GuidedSampler.of(sampler, GuidanceConfig("classifier_free", scale)).points(schedule)
    built = pretrained.build(weights)
    network, null = pretrained.denoiser_of(built), null_condition(built)
    subject = Subject(
        denoiser=network,
        schedule=schedule,
        sampling=Sampling(NoiseSource(seed), Pixels(described(built).sample_shape), AT_ONCE),
        bound_to=lambda condition: Conditional(network, condition, null, schedule),
        condition_of=lambda numbers: tokens.expand(len(numbers), -1),
    )
    return torch.cat([subject.draw(point, indices) for indices in torch.arange(number).split(AT_ONCE)])


def vocabulary_of(pretrained: Pretrained) -> Vocabulary | EncoderVocabulary:
    """What the captions of a network are made of. Raises `UserError` where it reads none."""
    meaning = pretrained.condition or {}
    if "words" not in meaning:
        raise UserError(
            f"The network of {pretrained.origin} reads no captions; one that does is trained by "
            "`python train.py dataset=captioned_digits`."
        )
    return vocabulary_from(meaning)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns its exit status."""
    parser = argparse.ArgumentParser(
        "python -m ddim.draw", description="Draw a caption with a network that was trained with captions."
    )
    parser.add_argument("caption", metavar="CAPTION", help='such as "a three left of a seven"; "" is any image')
    parser.add_argument("checkpoint", nargs="?", help="a run directory or a .ckpt (default: the newest in outputs/)")
    parser.add_argument("--number", type=int, default=8, help="of images (default: 8)")
    parser.add_argument(
        "--scale", type=float, default=3.0, help="of classifier-free guidance: 1 is none, more obeys more (default: 3)"
    )
    parser.add_argument("--sampler", default="ddim", choices=list(SAMPLERS), help="the rule (default: ddim)")
    parser.add_argument("--steps", type=int, default=50, help="of the sampler (default: 50)")
    parser.add_argument("--eta", type=float, default=0.0, help="noise of the sampler, 0 to 1 (default: 0)")
    parser.add_argument("--seed", type=int, default=0, help="of the latents: another one, other images (default: 0)")
    parser.add_argument("--weights", choices=WEIGHTS, default="ema", help="which weights (default: ema)")
    parser.add_argument("--output", metavar="FILE", help="a .png (default: the caption in ./)")
    options = parser.parse_args(arguments)
    print(f"Picture   {exit_with_sentence(lambda: _run(options))}")
    return 0


def _run(options: argparse.Namespace) -> Path:
    load_plugins()
    file = _file(options.output, options.caption)
    checkpoint = latest_checkpoint(Path("outputs")) if options.checkpoint is None else options.checkpoint
    pretrained = open_pretrained(checkpoint)
    images = draw(
        pretrained,
        options.caption,
        SamplerConfig(options.steps, options.eta, name=options.sampler),
        number=options.number,
        scale=options.scale,
        seed=options.seed,
        weights=options.weights,
    )
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        save_picture(captioned(images, options.caption), file)
    except OSError as error:
        raise UserError(f"--output={file} cannot be written ({error.strerror}); give another file.") from error
    return file


def _file(output: str | None, caption: str) -> Path:
    if output is None:
        return Path("-".join(re.findall(r"\w+", caption.lower())) or "any").with_suffix(".png")
    file = usable_path(output, "--output")
    if file.is_dir() or file.suffix.lower() != ".png":
        raise UserError(f"--output={output} must be the name of a .png file.")
    return file


if __name__ == "__main__":
    sys.exit(main())
