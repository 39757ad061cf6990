"""The module that is evaluated: a network with the labels that samples have, and what guides it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ddim.command.config import EvaluateConfig, Evaluation
from ddim.data import ImageDataModule
from ddim.data.conditions import ConditionOf, in_turn
from ddim.denoisers.build import check_conditions, described, null_condition, takes_condition
from ddim.denoisers.pretrained import Pretrained, open_pretrained
from ddim.diffusion import GUIDANCE
from ddim.diffusion.selection import SEARCHED
from ddim.errors import UserError
from ddim.evaluation.kept.hashes import tensors_sha256
from ddim.evaluation.settings import STUDIES
from ddim.training.module import DenoisingModule


def guided_module(
    evaluation: Evaluation, opened: Pretrained, denoiser: nn.Module, images: ImageDataModule
) -> DenoisingModule:
    """The network as it is sampled, with its guide where one is asked for.

    Raises:
        UserError: the labels of the data set are not the network's, a label is not known, or the network cannot be
            guided in this way, or not by that checkpoint.
    """
    config = evaluation.config
    check_conditions(denoiser, images.meaning, images.name, required=False)
    conditional = takes_condition(denoiser)
    for name in evaluation.points:
        if STUDIES[name].of_captions and not conditional:
            raise UserError(
                f"evaluation={name} draws what captions ask for, and {opened.origin} reads none; evaluate a network "
                "that was trained by `python train.py dataset=captioned_digits`."
            )
    meaning = (images.meaning or opened.condition) if conditional else None
    guide, guide_predicts = _guide(config, opened, denoiser)
    module = DenoisingModule(
        denoiser,
        evaluation.schedule,
        optimizer={},
        predicts=opened.predicts,
        seed=config.seed,
        config={} if meaning is None else {"condition": meaning},
        condition_of=_condition_of(config, denoiser, images, meaning),
        guide=guide,
        guide_predicts=guide_predicts,
        # Before any precision plugin changes them.
        guide_hash=None if guide is None else tensors_sha256(guide.state_dict()),
        space=images.space,
    )
    if conditional and null_condition(denoiser) is None:
        _check_without_null(evaluation, opened)
    for part in evaluation.points.values():
        for name, options in dict.fromkeys((point.guidance[0], tuple(point.guidance[1].items())) for point in part):
            condition = None if module.condition_of is None else module.condition_of(torch.zeros(1, dtype=torch.long))
            try:
                GUIDANCE[name].bind(module.bound_to(condition), **dict(options))
            except ValueError as error:
                raise UserError(f"guidance={name} is not possible with checkpoint={opened.origin}: {error}.") from error
    return module


def _condition_of(
    config: EvaluateConfig, denoiser: nn.Module, images: ImageDataModule, meaning: Mapping[str, Any] | None
) -> ConditionOf | None:
    """The conditions that samples are drawn with; None of a network that takes none."""
    chosen = config.guidance.label_list
    count: Any = described(denoiser).config.get("num_classes")
    if chosen and count is None:
        raise UserError(f"guidance.labels={chosen} needs a network with classes; leave it out.")
    if chosen:
        names = list((meaning or {}).get("classes") or map(str, range(count)))
        return in_turn([_label(label, names) for label in chosen])
    if not takes_condition(denoiser):
        return None
    return images.condition_of or in_turn(count)


def _label(label: Any, names: Sequence[str]) -> int:
    """The number of a class that is given by its number or by its name."""
    if str(label) in names and not isinstance(label, bool):
        return names.index(str(label))
    if isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < len(names):
        raise UserError(
            f"guidance.labels={label} is no class; there are 0 to {len(names) - 1}, which are {', '.join(names)}."
        )
    return label


def _check_without_null(evaluation: Evaluation, opened: Pretrained) -> None:
    """A network that cannot go without a label answers no question about images whatever they are of."""
    for name, points in evaluation.points.items():
        searched = next((point.tau for point in points if point.tau in SEARCHED), None)
        if searched is not None or not STUDIES[name].guided:
            what = f"evaluation={name}" if searched is None else f"sampler.tau={searched}"
            raise UserError(
                f"{what} asks the network whatever an image is of, and {opened.origin} always needs a label; leave "
                "it out, or say denoiser.null_class=true with one class less where its last class stands for none."
            )


def _guide(config: EvaluateConfig, opened: Pretrained, denoiser: nn.Module) -> tuple[nn.Module | None, str]:
    """The network of `guidance.checkpoint`, and what it predicts."""
    source = config.guidance.checkpoint
    if source is None:
        return None, "eps"
    key = f"guidance.checkpoint={source}"
    try:
        other = open_pretrained(source, Path(config.cache_dir))
        other.select(config.evaluation.weights, "evaluation.weights")
        guide = other.build(config.evaluation.weights)
    except UserError as error:
        raise UserError(f"{key}: {error}") from error
    ours, theirs = described(denoiser), described(guide)
    if tuple(ours.sample_shape) != tuple(theirs.sample_shape):
        shapes = ["x".join(map(str, network.sample_shape)) for network in (theirs, ours)]
        raise UserError(f"{key} is a network for samples of {shapes[0]}, {opened.origin} of {shapes[1]}.")
    if None not in (opened.schedule, other.schedule) and opened.schedule != other.schedule:
        raise UserError(f"{key} was trained with another schedule than {opened.origin}: {other.schedule}.")
    classes = [
        network.config.get("num_classes") if takes_condition(part) else None
        for network, part in ((theirs, guide), (ours, denoiser))
    ]
    if classes[0] is not None and classes[0] != classes[1]:
        raise UserError(f"{key} has {classes[0]} classes, {opened.origin} {classes[1] or 'none'}.")
    stated = opened.condition, other.condition
    if takes_condition(guide) and all(stated) and stated[0] != stated[1]:
        raise UserError(
            f"{key} was trained with other classes or captions than {opened.origin}; give one of the same data set."
        )
    return guide, other.predicts
