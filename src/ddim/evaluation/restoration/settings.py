"""What is asked of restoration: the group `restoration`, and the operators and measurements that it describes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddim.data.decoding import BadImage, Decoder
from ddim.diffusion.restoration.measurement import model_sigma
from ddim.diffusion.restoration.methods.table import METHODS
from ddim.diffusion.restoration.operators.averaging import SuperResolution
from ddim.diffusion.restoration.operators.base import Operator
from ddim.diffusion.restoration.operators.inpainting import MASKS
from ddim.diffusion.restoration.operators.table import OPERATORS, OperatorSettings, build_operator
from ddim.errors import UserError, at_least, some_of
from ddim.runs.paths import usable_path

# Of a picture of one's own, y is what these leave of it, or the picture itself.
OF_PICTURES = ("inpainting", "superresolution", "colourisation", "deblurring", "denoising")


@dataclass
class RestorationConfig:
    """Damaged images and how they are restored, for `evaluation=restoration`.

    Attributes:
        operator (name, or a list): what is measured of an image: inpainting, superresolution, colourisation,
            deblurring, compressed_sensing, denoising, matrix.
        method (name, or a list): ddrm, ddnm, ddnm_plus, diffpir, pigdm, dps, repaint, ilvr, sdedit.
        sigma_y: standard deviation of the measurement's noise on [0, 1]; of data that are no images in theirs.
        num_images: of the test split, evenly over it; null takes all.
        draws: restorations of each image, whose mean and spread are measured.
        shown: images in the picture.
        mask (random, box, half, a file, or names of columns): what is known in inpainting; white in a file and columns
            that are named are to be restored.
        keep: share of the pixels or values (random mask) or of the Walsh-Hadamard coefficients that is known.
        box: side of the missing box, as a share of the image's.
        factor: of superresolution.
        kernel (gaussian, uniform): of deblurring.
        radius: of the kernel in pixels.
        blur: standard deviation of the gaussian kernel in pixels.
        cut: singular values of the blur below this are 0.
        matrix: a .npy file (m, n), for the operator of that name.
        operator_seed: of random masks and rows; the measurement's own, so that `seed` changes no mask.
        image: a picture of your own that is restored instead of test images.
        noise_share (0 ... 1): of ddrm, ddnm and ddnm_plus, their papers' η; not the η of the sampler.
        measured_share (0 ... 1): of ddrm, its paper's η_b.
        trust: of diffpir, its paper's λ.
        step_size: of dps, its paper's ζ.
        jump_length: of repaint, steps.
        jump_samples: of repaint.
        until (0 ... 1): of ilvr, the share of the timesteps from which on it holds nothing.
        start (0 ... 1): of sdedit, the share of the timesteps at which it starts.
        gaussian: whether the posterior mean of a Gaussian fitted to training images is in the table.
    """

    operator: Any = "inpainting"
    method: Any = field(default_factory=lambda: ["ddrm", "ddnm"])
    sigma_y: float = 0.0
    num_images: int | None = 100
    draws: int = 4
    shown: int = 8
    mask: Any = "random"
    keep: float = 0.5
    box: float = 0.5
    factor: int = 2
    kernel: str = "gaussian"
    radius: int = 2
    blur: float = 1.0
    cut: float = 0.03
    matrix: str | None = None
    operator_seed: int = 0
    image: str | None = None
    noise_share: float = 0.85
    measured_share: float = 1.0
    trust: float = 7.0
    step_size: float = 0.5
    jump_length: int = 10
    jump_samples: int = 10
    until: float = 0.2
    start: float = 0.5
    gaussian: bool = True

    def check(self, key: str) -> None:
        self.operator = some_of(f"{key}.operator", self.operator, tuple(OPERATORS))
        self.method = some_of(f"{key}.method", self.method, tuple(METHODS))
        for name, values in (("operator", self.operator), ("method", self.method)):
            if len(set(values)) != len(values):
                raise UserError(f"{key}.{name}={values} names one twice.")
        if self.num_images is not None:
            at_least(f"{key}.num_images", self.num_images, 2)
        at_least(f"{key}.draws", self.draws, 1)
        at_least(f"{key}.shown", self.shown, 1)
        if not 0 <= self.operator_seed < 2**63:
            raise UserError(f"{key}.operator_seed={self.operator_seed} must be a whole number from 0 to 2^63 - 1.")
        try:
            model_sigma(self.sigma_y)
        except ValueError as error:
            raise UserError(f"{key}.sigma_y={self.sigma_y}: {error}.") from error
        self._check_pairs(key)
        self._check_files(key)

    def _check_pairs(self, key: str) -> None:
        """Each method is for at least one of the operators; of several it takes those that it is for."""
        for name in self.method:
            reasons = [METHODS[name].refuses(operator, self.sigma_y) for operator in self.operator]
            if all(reasons):
                stated = f" with {key}.sigma_y={self.sigma_y:g}" if self.sigma_y > 0 and not METHODS[name].noisy else ""
                operators = ",".join(self.operator)
                raise UserError(f"{key}.method={name} cannot restore {key}.operator={operators}{stated}: {reasons[0]}.")

    def _check_files(self, key: str) -> None:
        if isinstance(self.mask, list):
            self.mask = [str(name) for name in self.mask]
        elif not isinstance(self.mask, str):
            raise UserError(f"{key}.mask={self.mask} must be one of {', '.join(MASKS)}, a file, or names of columns.")
        given = {
            "matrix": self.matrix,
            "image": self.image,
            "mask": None if isinstance(self.mask, list) or self.mask in MASKS else self.mask,
        }
        for name, value in given.items():
            if value is not None and not usable_path(value, f"{key}.{name}").is_file():
                known = f"one of {', '.join(MASKS)}, [names of columns], or " if name == "mask" else ""
                raise UserError(f"{key}.{name}={value} is no file; give {known}a file that can be read.")
        if "matrix" in self.operator and self.matrix is None:
            raise UserError(f"{key}.operator=matrix needs {key}.matrix=FILE, a .npy file of shape (m, n).")
        if self.image is not None:
            for operator in self.operator:
                if operator not in OF_PICTURES:
                    raise UserError(
                        f"{key}.image={self.image} is no measurement of {key}.operator={operator}; take one of "
                        f"{', '.join(OF_PICTURES)}."
                    )

    def pairs(self) -> list[tuple[str, str]]:
        """(operator, method) of all that is restored."""
        return [
            (operator, method)
            for operator in self.operator
            for method in self.method
            if METHODS[method].refuses(operator, self.sigma_y) is None
        ]

    def options_of(self, method: str) -> dict[str, Any]:
        """The method's own options as they are set here."""
        return {name: getattr(self, name) for name in METHODS[method].options}


def operators_of(settings: RestorationConfig, shape: Sequence[int], columns: Sequence[str] = ()) -> dict[str, Operator]:
    """The operators for samples of this shape. Raises `UserError` for one that does not fit, or a file that is none.

    columns: names of those of a table.
    """
    if isinstance(settings.mask, list):
        known: str | Tensor = _but(settings.mask, columns, shape)
    elif settings.mask in MASKS:
        known = settings.mask
    elif len(shape) < 3:
        raise UserError(f"restoration.mask={settings.mask} is a picture; samples of shape {tuple(shape)} are none.")
    else:
        known = _mask(settings.mask, shape)
    matrix = None if settings.matrix is None or "matrix" not in settings.operator else _matrix(settings.matrix)
    described = OperatorSettings(
        known,
        settings.keep,
        settings.box,
        settings.factor,
        settings.kernel,
        settings.radius,
        settings.blur,
        settings.cut,
        matrix,
        settings.operator_seed,
    )
    found = {}
    for name in settings.operator:
        try:
            found[name] = build_operator(name, shape, described)
        except ValueError as error:
            raise UserError(f"restoration.operator={name} cannot be used: {error}.") from error
    return found


def _but(missing: Sequence[str], columns: Sequence[str], shape: Sequence[int]) -> Tensor:
    """bool (D,), true for all columns but the missing ones."""
    names = list(columns) or [str(number) for number in range(shape[0] if len(shape) == 1 else 0)]
    absent = [name for name in missing if name not in names]
    known = torch.tensor([name not in missing for name in names])
    if absent or not missing or not bool(known.any()):
        raise UserError(
            f"restoration.mask={list(missing)} must name some of the columns of a table, and not all: "
            f"{', '.join(names) or 'there are none'}."
        )
    return known


def picture_of(path: str, operator: Operator, shape: Sequence[int]) -> Tensor:
    """A file as uint8 (1, C, H, W) that an operator's measurement is read from: of super-resolution the small image.

    Its shorter side is resized to what is needed and its centre cut out. Raises `UserError` where it is no image.
    """
    channels, side = shape[0], operator.small[1] if isinstance(operator, SuperResolution) else shape[1]
    return _decoded("image", path, Decoder(channels, side, allow_upscale=True))


def measured_of(operator: Operator, picture: Tensor) -> Tensor:
    """y (1, m) of a picture (1, C, H, W) in model space: of super-resolution and deblurring it is y itself."""
    return (
        picture.flatten(1)
        if operator.identity["operator"] in ("superresolution", "deblurring")
        else operator.A(picture)
    )


def _mask(path: str, shape: Sequence[int]) -> Tensor:
    side = shape[-1]
    pixels = _decoded("mask", path, Decoder(1, side, allow_upscale=True, source_size=(side, side)))
    return pixels[0, 0] < 128


def _decoded(name: str, path: str, decoder: Decoder) -> Tensor:
    try:
        return torch.from_numpy(decoder(Path(path).expanduser().read_bytes()).copy())[None]
    except (BadImage, OSError) as error:
        raise UserError(f"restoration.{name}={path} cannot be used: {error}; give a picture such as a PNG.") from error


def _matrix(path: str) -> Tensor:
    try:
        return torch.from_numpy(np.load(Path(path).expanduser(), allow_pickle=False).astype(np.float64))
    except (OSError, ValueError, TypeError, EOFError, AttributeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"restoration.matrix={path} is no .npy file of numbers ({reason}); write it by numpy.save."
        ) from error
