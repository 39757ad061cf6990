"""Images: where they come from, how they become pixels, and in which order they are trained on."""

from ddim.data.build import DATASETS, build_datamodule
from ddim.data.datamodule import SPLITS, ImageDataModule
from ddim.data.space import Pixels, Space, to_model_space, to_uint8

__all__ = [
    "DATASETS",
    "SPLITS",
    "ImageDataModule",
    "Pixels",
    "Space",
    "build_datamodule",
    "to_model_space",
    "to_uint8",
]
