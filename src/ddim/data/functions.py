"""A data set from a function that makes its images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddim.data.datamodule import Source
from ddim.data.options import Options
from ddim.data.splits import ArraySplit
from ddim.errors import UserError

# What the option of such a data set says besides the arguments of its function.
DATASET_DEFAULTS: dict[str, Any] = {"random_flip": False, "label": None, "features": "pixels", "tau": "linear"}


def source_of(
    function: Callable[..., Any], channels: int, resolution: int, settings: Mapping[str, Any]
) -> Callable[[Options, Path], Source]:
    """What makes a `Source` of function(split, **settings) -> uint8 images (N, channels, resolution, resolution).

    settings: {parameter: default}; each may be given as `dataset.PARAMETER` of the default's kind.
    """

    class FunctionSource:
        def __init__(self, options: Options, cache_dir: Path) -> None:
            self.channels = options.choice("channels", channels, (channels,))
            self.resolution = options.choice("resolution", resolution, (resolution,))
            self.settings = {key: options.like(key, value) for key, value in settings.items()}

        def prepare(self) -> None:
            """The function makes its images when they are asked for."""

        def open(self, split: str) -> ArraySplit:
            images = _tensor(function(split, **self.settings))
            if images.dtype != torch.uint8 or images.shape[1:] != (self.channels, self.resolution, self.resolution):
                raise UserError(
                    f"{function.__name__} must give uint8 images of shape "
                    f"(N, {self.channels}, {self.resolution}, {self.resolution}), "
                    f"not {images.dtype} {tuple(images.shape)}."
                )
            return ArraySplit(images)

        def details(self) -> dict[str, Any]:
            return {"split_rule": function.__name__, "settings": self.settings}

    return FunctionSource


def _tensor(images: Any) -> Tensor:
    return images if isinstance(images, Tensor) else torch.as_tensor(np.asarray(images))
