"""A training that starts from the weights of another one: its noise, data and learning rate are its own."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from torch import nn

from ddim.denoisers.formats.contents import Pretrained
from ddim.errors import UserError
from ddim.training.settings import TrainConfig

log = logging.getLogger(__name__)


def start_from(
    initial: Pretrained,
    denoiser: nn.Module,
    config: TrainConfig,
    network: Mapping[str, Any],
    meaning: Mapping[str, Any] | None = None,
) -> None:
    """Give a new denoiser the weights of `initial`, in place: the averaged ones, or raw ones where it has no others.

    Args:
        initial: whose weights; nothing else of it is taken over.
        denoiser: that `network` describes.
        config: of the training that begins.
        network: the configuration of the denoiser, with what only the data decide.
        meaning: of the conditions of the data, such as {"classes": [names]}; weights of an embedding are of a meaning.

    Raises:
        UserError: they are weights for another network, for another prediction, for another noise at the same timestep,
            or for other conditions.
    """
    key = f"checkpoint={config.checkpoint}"
    if initial.predicts != config.objective.predicts:
        raise UserError(
            f"objective.predicts={config.objective.predicts} is not what the network of {key} predicts; "
            f"start from it with objective.predicts={initial.predicts}."
        )
    if initial.schedule is not None and dict(initial.schedule) != dict(config.schedule):
        raise UserError(f"{key} was trained on schedule {initial.schedule}, not on {config.schedule}; take the same.")
    if initial.condition and meaning and dict(initial.condition) != dict(meaning):
        raise UserError(f"{key} was trained with other conditions than those of dataset={config.dataset['name']}.")
    try:
        weights = "raw" if [*initial.states] == ["raw"] else "ema"
        denoiser.load_state_dict(initial.build(weights, denoiser=network).state_dict())
    except UserError as error:
        raise UserError(f"{key}: {error}") from error
    log.info("Starts from %s (%s weights).", initial.origin, initial.select(weights))
