"""Data sets: where they come from, what a sample of them is, and in which order they are trained on."""

from ddim.data.absent import AbsentImages
from ddim.data.build import DATASETS, build_datamodule
from ddim.data.datamodule import SPLITS, ImageDataModule
from ddim.data.space import IMAGES, Pixels, Space, Standardised, to_model_space, to_uint8

__all__ = [
    "DATASETS",
    "IMAGES",
    "SPLITS",
    "AbsentImages",
    "ImageDataModule",
    "Pixels",
    "Space",
    "Standardised",
    "build_datamodule",
    "to_model_space",
    "to_uint8",
]
