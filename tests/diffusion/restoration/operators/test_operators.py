"""Every operator against its definition written out, and the laws of its singular value decomposition."""

from __future__ import annotations

import math

import pytest
import scipy.linalg
import torch
import torch.nn.functional as F

from ddim.diffusion.restoration.operators.averaging import Colourisation, SuperResolution
from ddim.diffusion.restoration.operators.blur import Deblurring, kernel_of
from ddim.diffusion.restoration.operators.dense import Denoising, Dense, of_foreign
from ddim.diffusion.restoration.operators.hadamard import CompressedSensing, walsh_hadamard
from ddim.diffusion.restoration.operators.inpainting import Inpainting, chosen, mask_of
from ddim.diffusion.restoration.operators.table import OPERATORS, OperatorSettings, build_operator

GREY, COLOUR = (1, 8, 8), (3, 8, 4)
GENERATOR = torch.Generator().manual_seed(3)
TALL, WIDE = (torch.randn(rows, 64, dtype=torch.float64, generator=GENERATOR) / 8 for rows in (90, 20))
CASES = {
    "random mask": Inpainting(GREY, mask_of("random", 8, 8)),
    "random mask in colour": Inpainting(COLOUR, mask_of("random", 8, 4, keep=0.3)),
    "box": Inpainting(GREY, mask_of("box", 8, 8)),
    "half": Inpainting(COLOUR, mask_of("half", 8, 4)),
    "superresolution 2": SuperResolution(GREY, 2),
    "superresolution 4": SuperResolution(COLOUR, 4),
    "colourisation": Colourisation(COLOUR),
    "gaussian blur": Deblurring(GREY, kernel_of("gaussian", 2)),
    "uniform blur": Deblurring(COLOUR, kernel_of("uniform", 1), cut=0.0),
    "compressed sensing": CompressedSensing(GREY),
    "compressed sensing in colour": CompressedSensing(COLOUR, keep=0.25, seed=5),
    "denoising": Denoising(COLOUR),
    "tall matrix": Dense(GREY, TALL),
    "wide matrix": Dense(GREY, WIDE),
    "matrix of lower rank": Dense(GREY, WIDE.T[:, :5] @ WIDE[:5]),
}


@pytest.fixture(params=CASES)
def operator(request):
    return CASES[request.param]


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def matrix_of(operator):
    return operator.A(torch.eye(operator.size, dtype=torch.float64).reshape(-1, *operator.shape)).T


def close(a, b, tolerance=1e-12):
    torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


def test_the_adjoint_is_the_adjoint(operator):
    x, v = random(3, *operator.shape), random(3, operator.measured, seed=1)
    close((operator.A(x) * v).sum(dim=1), (x * operator.A_adjoint(v)).flatten(1).sum(dim=1))


def test_the_pseudo_inverse_is_moore_and_penroses(operator):
    x, y = random(3, *operator.shape), random(3, operator.measured, seed=1)
    close(operator.A(operator.A_dagger(operator.A(x))), operator.A(x), 1e-10)
    close(operator.A_dagger(operator.A(operator.A_dagger(y))), operator.A_dagger(y), 1e-10)
    # A A+ and A+ A are symmetric: projections at a right angle.
    others, w = random(3, *operator.shape, seed=2), random(3, operator.measured, seed=4)
    there, back = operator.A_dagger(operator.A(x)), operator.A_dagger(operator.A(others))
    close((there * others).flatten(1).sum(dim=1), (x * back).flatten(1).sum(dim=1), 1e-10)
    close((operator.A(operator.A_dagger(y)) * w).sum(1), (y * operator.A(operator.A_dagger(w))).sum(1), 1e-10)


def test_the_right_singular_vectors_are_orthonormal(operator):
    basis = operator.from_spectrum(torch.eye(operator.size, dtype=torch.float64)).flatten(1)
    close(basis @ basis.T, torch.eye(operator.size, dtype=torch.float64))
    x = random(2, *operator.shape)
    close(operator.from_spectrum(operator.to_spectrum(x)), x)
    close(operator.to_spectrum(x), x.flatten(1) @ basis.T)


def test_the_singular_values_are_those_of_the_matrix(operator):
    expected = torch.linalg.svdvals(matrix_of(operator))
    found = operator.singular_values.sort(descending=True).values
    close(found[: len(expected)], expected[: len(found)], 1e-10)
    assert not found[len(expected) :].any()


def test_single_precision_and_any_batch(operator):
    x = random(5, *operator.shape)
    y = operator.A(x.float())
    assert y.dtype == torch.float32 and y.shape == (5, operator.measured)
    close(y.double(), operator.A(x), 1e-5)
    close(torch.cat([operator.A(x[:2]), operator.A(x[2:])]), operator.A(x))
    assert operator.A_dagger(y).shape == operator.A_adjoint(y).shape == x.shape


def test_inpainting_keeps_the_known_pixels():
    known = mask_of("random", 8, 4, keep=0.3)
    x = random(2, *COLOUR)
    close(Inpainting(COLOUR, known).A(x), torch.cat([x[:, channel][:, known] for channel in range(3)], dim=1))
    restored = Inpainting(COLOUR, known).A_dagger(Inpainting(COLOUR, known).A(x))
    close(restored, x * known)


def test_a_mask_is_a_function_of_its_seed():
    one = mask_of("random", 8, 8, seed=7)
    assert torch.equal(one, mask_of("random", 8, 8, seed=7)) and one.sum() == 32
    assert not torch.equal(one, mask_of("random", 8, 8, seed=8))
    # Written down: another machine or version must not make other measurements of the same name.
    assert chosen(16, 4, 0).nonzero()[:, 0].tolist() == [0, 1, 8, 12]
    identities = [build_operator("inpainting", GREY, OperatorSettings(seed=seed)).identity for seed in (7, 8)]
    assert identities[0] != identities[1] and identities[0]["mask_sha256"] != identities[1]["mask_sha256"]


def test_box_and_half():
    box, half = mask_of("box", 8, 8), mask_of("half", 8, 4)
    assert not box[2:6, 2:6].any() and box.sum() == 64 - 16
    assert half[:4].all() and not half[4:].any()


def test_superresolution_averages_blocks():
    x = random(2, *COLOUR)
    for factor in (2, 4):
        operator = SuperResolution(COLOUR, factor)
        small = F.avg_pool2d(x, factor)
        close(operator.A(x), small.flatten(1))
        close(operator.A_dagger(operator.A(x)), small.repeat_interleave(factor, 2).repeat_interleave(factor, 3))
        assert operator.small == tuple(small.shape[1:])


def test_colourisation_averages_channels():
    x = random(2, *COLOUR)
    operator = Colourisation(COLOUR)
    close(operator.A(x), x.mean(dim=1).flatten(1))
    close(operator.A_dagger(operator.A(x)), x.mean(dim=1, keepdim=True).expand_as(x))


def test_blur_is_a_convolution_of_the_continued_image():
    x, kernel = random(2, *COLOUR), kernel_of("gaussian", 1, 0.7)
    padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
    expected = F.conv2d(padded.reshape(6, 1, 10, 6), torch.outer(kernel, kernel)[None, None]).reshape(x.shape)
    close(Deblurring(COLOUR, kernel, cut=0.0).A(x), expected.flatten(1))
    assert kernel.sum() == pytest.approx(1) and kernel_of("uniform", 2).tolist() == [0.2] * 5


def test_blur_is_cut_where_little_is_left():
    whole, cut = (Deblurring(GREY, kernel_of("gaussian", 2), cut=cut) for cut in (0.0, 0.03))
    kept = whole.singular_values >= 0.03
    assert 0 < kept.sum() < 64
    close(cut.singular_values, torch.where(kept, whole.singular_values, 0.0))


def test_compressed_sensing_takes_rows_of_hadamards_matrix():
    matrix = torch.from_numpy(scipy.linalg.hadamard(64)).double() / 8
    close(walsh_hadamard(torch.eye(64, dtype=torch.float64)), matrix)
    x = random(2, *GREY)
    close(CompressedSensing(GREY, 0.25, 3).A(x), (x.flatten(1) @ matrix)[:, chosen(64, 16, 3)])


def test_a_matrix_is_applied_as_it_is():
    x = random(2, *GREY)
    close(Dense(GREY, TALL).A(x), x.flatten(1) @ TALL.T, 1e-10)
    close(Dense(GREY, WIDE).A(x), x.flatten(1) @ WIDE.T, 1e-10)
    close(Dense(GREY, TALL).A_dagger(x.flatten(1) @ TALL.T), x, 1e-10)


class Shifted:
    """Rolls images by one pixel: an operator of somebody else's."""

    def A(self, x):
        return x.roll(1, dims=-1)

    def A_adjoint(self, y):
        return y.roll(-1, dims=-1)


class Wrong(Shifted):
    def A_adjoint(self, y):
        return y


class Squared:
    def A(self, x):
        return x.square()


def test_a_foreign_operator_is_known_by_its_matrix():
    x = random(2, *GREY)
    operator = of_foreign("shifted", Shifted(), GREY)
    close(operator.A(x), x.roll(1, dims=-1).flatten(1), 1e-6)
    close(operator.A_dagger(operator.A(x)), x, 1e-6)
    assert operator.identity["operator"] == "shifted"


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: of_foreign("wrong", Wrong(), GREY), "A_adjoint of wrong is not the adjoint"),
        (lambda: of_foreign("squared", Squared(), GREY), "squared is not linear"),
        (lambda: of_foreign("shifted", Shifted(), (1, 128, 128)), "4096 columns"),
        (lambda: Inpainting(GREY, torch.ones(4, 4, dtype=torch.bool)), "8x8 pixels, got torch.bool of 4x4"),
        (lambda: Inpainting(GREY, torch.zeros(8, 8, dtype=torch.bool)), "at least one pixel"),
        (lambda: mask_of("stripes", 8, 8), "mask must be one of random, box, half"),
        (lambda: mask_of("random", 8, 8, keep=0.0), "leaves no pixel"),
        (lambda: mask_of("box", 8, 8, box=0.0), "leaves every pixel"),
        (lambda: SuperResolution(GREY, 3), "factor=3 must divide the 8x8 pixels"),
        (lambda: SuperResolution((64,), 2), "of images"),
        (lambda: Colourisation(GREY), "several channels"),
        (lambda: CompressedSensing((1, 12, 12)), "power of two"),
        (lambda: CompressedSensing(GREY, keep=0.0), "leaves no row"),
        (lambda: kernel_of("box", 1), "kernel must be one of gaussian, uniform"),
        (lambda: kernel_of("gaussian", 0), "radius must be an integer >= 1"),
        (lambda: Deblurring(GREY, torch.ones(4)), "odd number of weights"),
        (lambda: Dense(GREY, torch.ones(3, 7)), r"must be \(m, 64\)"),
        (lambda: Dense(GREY, torch.full((3, 64), math.nan)), "finite numbers"),
        (lambda: build_operator("blur", GREY, OperatorSettings()), "operator must be one of inpainting"),
        (lambda: build_operator("matrix", GREY, OperatorSettings()), "needs a matrix"),
    ],
)
def test_what_does_not_fit_is_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_all_names_make_an_operator_with_an_identity():
    settings = OperatorSettings(matrix=WIDE)
    for name in OPERATORS:
        shape = (4, 4, 4) if name == "colourisation" else GREY
        operator = build_operator(name, shape, settings)
        assert operator.identity["operator"] == name and operator.shape == shape
    assert len(OPERATORS) == 7
