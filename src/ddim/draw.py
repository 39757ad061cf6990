"""`python -m ddim.draw "a three left of a seven" [CHECKPOINT]`: a caption as pictures, by a network that reads."""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ddim.data import Pixels
from ddim.data.captions import Vocabulary
from ddim.data.encoded_captions import EncoderVocabulary, vocabulary_from
from ddim.denoisers.build import check_conditions, described, null_condition
from ddim.denoisers.formats.contents import WEIGHTS, Pretrained
from ddim.denoisers.pretrained import open_pretrained
from ddim.diffusion import SAMPLERS, Conditional, NoiseSchedule, NoiseSource
from ddim.diffusion.grid import GridPoint, SamplerConfig
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
# Far more than any picture gets better by; single precision still holds what comes of it.
LARGEST_SCALE = 100
# In characters; with four bytes each still a name that a disk takes.
LONGEST_NAME = 60
# What the keys of the configuration are called here.
OPTIONS = {"sampler.steps": "--steps", "sampler.eta": "--eta", "sampler.name": "--sampler"}


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
        scale: of classifier-free guidance, 0 to LARGEST_SCALE: 0 is any image, 1 the network alone.
        seed: image i is a function of it and of i, however many there are.
        weights: "ema" or "raw".

    Raises:
        UserError: the network reads no captions, a word is not known, a value is wrong, or what the checkpoint says of
            its captions is not what its network reads.
    """
    at_least("--number", number, 1)
    if not 0 <= seed <= LARGEST_SEED:
        raise UserError(f"--seed={seed} must be a whole number from 0 to 2^63 - 1.")
    if not 0 <= scale <= LARGEST_SCALE:
        raise UserError(f"--scale={scale} must be a number from 0 to {LARGEST_SCALE}.")
    at_least("--steps", sampler.steps, 1)
    vocabulary = vocabulary_of(pretrained)
    tokens = vocabulary.encode([caption])
    schedule = _schedule(pretrained)
    point = _point(sampler, scale, schedule)
    built = pretrained.build(weights)
    _check_captions(built, vocabulary, pretrained)
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
        raise _reads_none(pretrained)
    return vocabulary_from(meaning, pretrained.origin)


def _reads_none(pretrained: Pretrained) -> UserError:
    return UserError(
        f"The network of {pretrained.origin} reads no captions; one that does is trained by "
        "`python train.py dataset=captioned_digits`."
    )


def _check_captions(built: nn.Module, vocabulary: Vocabulary | EncoderVocabulary, pretrained: Pretrained) -> None:
    """Refuse (`UserError`) a network that does not read what the file says that captions are made of."""
    if null_condition(built) is None:
        raise _reads_none(pretrained)
    try:
        check_conditions(built, vocabulary.meaning, str((pretrained.dataset or {}).get("name", "unstated")))
    except UserError as error:
        either = ", or its encoder is another one now" if isinstance(vocabulary, EncoderVocabulary) else ""
        raise UserError(f"{pretrained.origin} is damaged{either}: {error}") from error


def _schedule(pretrained: Pretrained) -> NoiseSchedule:
    try:
        return build_schedule(pretrained.schedule or {})
    except UserError as error:
        raise UserError(f"{pretrained.origin} is damaged: {error}") from error


def _point(sampler: SamplerConfig, scale: float, schedule: NoiseSchedule) -> GridPoint:
    """The one point of the sampler; what is wrong is called as it is here."""
    eta = sampler.eta
    if isinstance(eta, int | float) and not 0 <= eta <= 1:
        raise UserError(f"--eta={eta} must be a number from 0 to 1.")
    try:
        (point,) = GuidedSampler.of(sampler, GuidanceConfig("classifier_free", scale)).points(schedule)
    except UserError as error:
        said = re.sub("|".join(map(re.escape, OPTIONS)), lambda found: OPTIONS[found.group()], str(error))
        raise UserError(said) from error
    return point


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns its exit status."""
    # First: samplers of a user's own are among the choices.
    exit_with_sentence(load_plugins)
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
    file = _file(options.output, options.caption)
    pretrained = open_pretrained(_newest() if options.checkpoint is None else options.checkpoint)
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
        raise _unwritable(file, error) from error
    return file


def _newest() -> Path:
    try:
        return latest_checkpoint(Path("outputs"))
    except UserError as error:
        raise UserError(
            "No checkpoint under outputs/train: train one with `python train.py dataset=captioned_digits`, or give it "
            "as second argument."
        ) from error


def _file(output: str | None, caption: str) -> Path:
    """Where the picture goes. Raises `UserError` where no file can be."""
    if output is None:
        name = "-".join(re.findall(r"\w+", caption.lower()))[:LONGEST_NAME].strip("-") or "any"
        output = f"{name}.png"
    file = usable_path(output, "--output")
    if file.is_dir() or file.suffix.lower() != ".png":
        raise UserError(f"--output={output} must be the name of a .png file.")
    # Folders that are not there yet are made when there is a picture.
    folder = next(place for place in file.absolute().parents if place.exists())
    try:
        with tempfile.TemporaryFile(dir=folder):
            return file
    except OSError as error:
        raise _unwritable(file, error) from error


def _unwritable(file: Path, error: OSError) -> UserError:
    return UserError(f"--output={file} cannot be written ({error.strerror}); give another file.")


if __name__ == "__main__":
    sys.exit(main())
