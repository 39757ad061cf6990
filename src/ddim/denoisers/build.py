"""Networks by name: an untrained one from its configuration, and whether it fits the samples."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ddim.denoisers.mlp import ResidualMLP
from ddim.denoisers.text_unet import TextUNet
from ddim.denoisers.unet import UNet
from ddim.denoisers.unet1d import UNet1d
from ddim.errors import UserError

MAX_BLOCKS = 100
UNET, TEXT_UNET = "unet", "text_unet"
# Arguments of a network that reads captions that go with the data set.
VOCABULARY = ("num_words", "caption_length")
# One line per network. What is registered later is here as well, with its version in VERSIONS.
DENOISERS: dict[str, type[nn.Module]] = {
    UNET: UNet,
    TEXT_UNET: TextUNet,
    "mlp": ResidualMLP,
    "unet_1d": UNet1d,
}
# Of a user's own: changes when the network does, which its weights need not show.
VERSIONS: dict[str, str] = {}
# Parameters of the constructor of a user's own that are the data set's, as its option states them.
OF_THE_DATASET = {
    "channels": "${dataset.channels}",
    "in_channels": "${dataset.channels}",
    "resolution": "${dataset.resolution}",
}
# Arguments that the UNet has got since its weights were first kept, with the defaults that change nothing.
ADDED_LATER: dict[str, Any] = {"num_classes": None, "null_class": True, "patch": 1}


class Described(Protocol):
    """What a denoiser, an `nn.Module` of (x (N, ...), t (N,)) -> eps, says of itself.

    A conditional one takes a third argument, see `takes_condition`.

    Attributes:
        config: plain values that rebuild it, one for every parameter of its constructor.
        sample_shape: of one x.
    """

    @property
    def config(self) -> dict[str, Any]: ...

    @property
    def sample_shape(self) -> tuple[int, ...]: ...


def new_denoiser(
    config: Mapping[str, Any], sample_shape: Sequence[int], dataset: str, meaning: Mapping[str, Any] | None = None
) -> nn.Module:
    """An untrained network for samples of this shape, of this data set, whose conditions mean this.

    Raises:
        UserError: it cannot be built, or does not fit.
    """
    config = with_vocabulary(shaped(config, sample_shape), meaning or {}, dataset)
    try:
        _check_size(config)
        denoiser = build_denoiser(config)
    except (ValueError, TypeError, OverflowError) as error:
        raise UserError(f"denoiser cannot be built: {error}") from error
    check_shape(denoiser, sample_shape, dataset)
    return denoiser


def shaped(config: Mapping[str, Any], sample_shape: Sequence[int]) -> dict[str, Any]:
    """The configuration with the data's own shape where a network has the parameter `shape` and it is null."""
    network = DENOISERS.get(str(config.get("name")))
    open_ = network is not None and "shape" in inspect.signature(network).parameters and config.get("shape") is None
    return {**config, "shape": list(sample_shape)} if open_ else dict(config)


def with_vocabulary(config: Mapping[str, Any], meaning: Mapping[str, Any], dataset: str) -> dict[str, Any]:
    """The configuration with the data's own vocabulary where a network reads captions and leaves that open (null).

    Raises `UserError` where the data set has no captions.
    """
    left_open = [key for key in VOCABULARY if key in config and config[key] is None]
    if left_open and "caption_length" not in meaning:
        raise UserError(
            f"denoiser.{left_open[0]}=null takes the captions of the data set, and dataset {dataset} has none; add "
            "dataset.captions=classes, or take dataset=captioned_digits."
        )
    return {**config, **{key: _has(meaning, key)[0] for key in left_open}}


def _check_size(config: Mapping[str, Any]) -> None:
    own = config.get("name") in (UNET, TEXT_UNET)
    blocks = config.get("num_res_blocks", 1)
    if own and isinstance(blocks, int) and blocks > MAX_BLOCKS:
        raise ValueError(f"num_res_blocks must be at most {MAX_BLOCKS}, got {blocks}")
    try:
        with torch.device("meta"):
            weights = sum(weight.numel() for weight in build_denoiser(config).parameters())
    except (RuntimeError, NotImplementedError) as error:
        if not own:
            return  # its constructor computes with values, which tensors without storage do not have
        # more than can be counted
        raise ValueError(f"denoiser.base_channels={config.get('base_channels')} is too large: {error}") from error
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if 4 * weights > memory:
        advice = "lower denoiser.base_channels or denoiser.channel_mult" if own else "make it smaller"
        raise ValueError(
            f"its {weights:,} parameters need {4 * weights / 1e9:,.0f} GB, this machine has {memory / 1e9:,.0f} GB; "
            f"{advice}"
        )


def described(denoiser: nn.Module) -> Described:
    """What the network says of itself. Raises ValueError where that is not all that is asked for."""
    missing = [name for name in ("config", "sample_shape") if not hasattr(denoiser, name)]
    if missing:
        raise ValueError(f"{type(denoiser).__name__} has no {' and no '.join(missing)}")
    says: Any = denoiser
    lacks = [name for name in inspect.signature(type(denoiser)).parameters if name not in says.config]
    if lacks:
        raise ValueError(f"{type(denoiser).__name__}.config does not say its {', '.join(lacks)}")
    return says


def takes_condition(denoiser: nn.Module) -> bool:
    """Whether the network is called as (x (N, ...), t (N,), condition (N, ...)).

    A conditional network says so by `conditional`, or by a `null_condition`: one condition that stands for none.
    """
    return bool(getattr(denoiser, "conditional", null_condition(denoiser) is not None))


def null_condition(denoiser: nn.Module) -> Tensor | None:
    """The condition that stands for none, without the batch's dimension; None where the network has no such."""
    return getattr(denoiser, "null_condition", None)


def identifying_config(denoiser: nn.Module) -> dict[str, Any]:
    """`config` of the network, which what was measured of it depends on.

    Arguments that are newer than such measurements are in it where they are not their defaults.
    """
    config = described(denoiser).config
    if isinstance(denoiser, TextUNet):
        return {key: value for key, value in config.items() if key != "encoder" or value is not None}
    if not isinstance(denoiser, UNet):
        return config
    return {key: value for key, value in config.items() if key not in ADDED_LATER or value != ADDED_LATER[key]}


def check_conditions(
    denoiser: nn.Module, meaning: Mapping[str, Any] | None, dataset: str, *, required: bool = True
) -> None:
    """Refuse (`UserError`) a conditional denoiser for a data set whose conditions mean something else.

    meaning: of the data set's conditions, such as {"classes": [names]}; None where it has none, which is refused where
        they are `required` or the denoiser has no condition that stands for none.
    """
    if not takes_condition(denoiser):
        return
    config = described(denoiser).config
    sizes = {key: config[key] for key in ("num_classes", *VOCABULARY) if config.get(key) is not None}
    if meaning is None:
        if not required and null_condition(denoiser) is not None:
            return
        first = next(iter(sizes), None)
        needs = "is a conditional network" if first is None else f"with denoiser.{first}={sizes[first]}"
        what = "captions" if "num_words" in sizes else "labels"
        raise UserError(f"denoiser {needs} needs images with {what}, dataset {dataset} has none.")
    if isinstance(denoiser, TextUNet) and config.get("encoder") != meaning.get("encoder"):
        raise UserError(
            f"denoiser.encoder={config.get('encoder')} does not read the captions of dataset {dataset}, which are in "
            f"the tokens of {meaning.get('encoder') or 'its own words'}."
        )
    for key, size in sizes.items():
        has, what = _has(meaning, key)
        if size != has:
            advice = f"; take {has}." if has else "."
            raise UserError(f"denoiser.{key}={size} does not fit dataset {dataset} with {has} {what}{advice}")


def _has(meaning: Mapping[str, Any], key: str) -> tuple[int, str]:
    """What `denoiser.<key>` has to be with conditions of this meaning, and of what that is the number."""
    if key == "caption_length":
        return int(meaning.get(key, 0)), "tokens a caption" if "encoder" in meaning else "words a caption"
    if key in meaning:
        return int(meaning[key]), "tokens"
    name = key.removeprefix("num_")
    return len(meaning.get(name, ())), name


def check_shape(denoiser: nn.Module, sample_shape: Sequence[int], dataset: str) -> None:
    """Refuse (`UserError`) a denoiser of another `sample_shape` than that of this data set."""
    network = described(denoiser)
    if tuple(network.sample_shape) == tuple(sample_shape):
        return
    if isinstance(denoiser, UNet) and len(sample_shape) == 3:
        channels, _, resolution = sample_shape
        for key, name, wanted in (("in_channels", "channels", channels), ("resolution", "resolution", resolution)):
            if network.config[key] != wanted:
                raise UserError(
                    f"denoiser.{key}={network.config[key]} does not fit dataset {dataset} with "
                    f"dataset.{name}={wanted}; they must be the same."
                )
    takes, has = ("x".join(map(str, shape)) or "one number" for shape in (network.sample_shape, sample_shape))
    raise UserError(f"denoiser takes samples of {takes}, dataset {dataset} has {has}; they must be the same.")


def with_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with the arguments that were added to its network after it was written."""
    network = DENOISERS.get(str(config.get("name")))
    parameters = {} if network is None else inspect.signature(network).parameters
    absent = {
        name: parameter.default
        for name, parameter in parameters.items()
        if name not in config and parameter.default not in (inspect.Parameter.empty, None)
    }
    return {**absent, **config}


def build_denoiser(config: Mapping[str, Any]) -> nn.Module:
    """Build a denoiser from its configuration: ``name``, one of DENOISERS, and that network's keyword arguments.

    Raises:
        ValueError: unknown name, unknown keys (the known ones are named), or values that the network refuses; or the
            network does not say of itself what it has to.
    """
    options = dict(config)
    name = options.pop("name", None)
    if not isinstance(name, str) or name not in DENOISERS:
        raise ValueError(f"denoiser.name is {name!r}; known denoisers: {', '.join(DENOISERS)}")
    known = list(inspect.signature(DENOISERS[name]).parameters)
    unknown = [str(key) for key in options if key not in known]
    if unknown:
        raise ValueError(f"unknown denoiser keys {', '.join(unknown)}; known keys: {', '.join(known)}")
    denoiser = DENOISERS[name](**options)
    described(denoiser)
    return denoiser
