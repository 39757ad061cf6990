"""Restoration of digits by a network that knows their mean and covariance exactly, and nothing else."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from ddim.data import Pixels, Standardised
from ddim.data.build import load_data
from ddim.diffusion import NoiseSchedule, NoiseSource
from ddim.diffusion.grid import SamplerConfig
from ddim.diffusion.restoration.gaussian import GaussianPrior
from ddim.diffusion.restoration.measurement import Measurement
from ddim.diffusion.restoration.methods.table import METHODS
from ddim.diffusion.restoration.operators.dense import Denoising
from ddim.diffusion.restoration.operators.inpainting import Inpainting
from ddim.errors import UserError
from ddim.evaluation.kept.finished import Kept
from ddim.evaluation.restoration.measures import completed_row, measured_row
from ddim.evaluation.restoration.settings import RestorationConfig, operators_of, picture_of
from ddim.evaluation.restoration.tasks import restore
from ddim.evaluation.studies.restoration import Restoration
from ddim.evaluation.study import Material
from ddim.evaluation.subject import Sampling, Subject
from ddim.findings.parts.restoration import PART, label_of, name_of
from ddim.findings.telling import Curves, Single, Strip
from ddim.metrics.features import PixelFeatures
from ddim.metrics.measure import Measure, statistics_of
from ddim.metrics.similarity import LARGEST_PSNR, peak_ratios, similarities, structural_similarity
from ddim.tracking.keys import EVALUATE, find
from ddim.training.module import DenoisingModule

SHAPE = (1, 8, 8)
SCHEDULE = NoiseSchedule.linear(60)
IDENTITY = {"dataset": "digits", "weights": "ema", "seed": 3}


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    digits = {"name": "digits", "channels": 1, "resolution": 8, "random_flip": False}
    images = load_data(
        digits, stage="test", seed=0, cache_dir=str(cache), batch_size=1, eval_batch_size=64, num_workers=0
    )
    extractor = PixelFeatures(1, 8)
    reference = statistics_of("train", extractor, images, cache, lambda batches, text, count: batches)
    measure = Measure(extractor, reference, ("frechet_distance",), None, "train")
    return Material(images, 10, 4, extractor=extractor, measure=measure)


class Exact(nn.Module):
    def __init__(self, images) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        x_0 = Pixels(SHAPE).to_model(torch.cat(list(images.images("train", 500))))
        self.eps = GaussianPrior.fitted(x_0, SHAPE).denoiser(SCHEDULE)
        self.samples = 0

    def forward(self, x, t):
        self.samples += len(x)
        return self.eps(x, t)


@pytest.fixture(scope="module")
def network(material):
    return Exact(material.images)


@pytest.fixture(scope="module")
def study_of(material):
    def make(sampler=None, **settings):
        asked = RestorationConfig(**{"num_images": 20, "draws": 2, "shown": 3, "operator": "inpainting"} | settings)
        asked.check("restoration")
        points = Restoration.grid(asked, sampler or SamplerConfig(steps=[3, 6], eta=0.0), SCHEDULE)
        return Restoration.of(asked, points, material)

    return make


@pytest.fixture(scope="module")
def run(ask, network):
    def run(study, directory, *, batch_size=64, **more):
        directory.mkdir(exist_ok=True, parents=True)
        module = DenoisingModule(network, SCHEDULE, optimizer={}).eval()
        return ask(study, module, Sampling(NoiseSource(3), Pixels(SHAPE), batch_size), directory, IDENTITY, **more)

    return run


NUMBERS = ("psnr", "psnr_of_mean", "ssim", "feature_distance", "frechet_distance", "spread")


def test_rows_say_how_good_varied_and_true_restorations_are(tmp_path, study_of, run):
    sampler = SamplerConfig(steps=[3, 6], eta=[0.0, 1.0])
    study = study_of(sampler, operator=["inpainting", "superresolution"], method=["ddrm", "diffpir", "repaint"])
    asked = run(study, tmp_path)
    restored = [row for row in asked.rows if row.get("calls")]
    named = [(row["operator"], name_of(row), row["steps"], row["nfe"]) for row in restored]
    diffpir = [(f"diffpir, ddim η = {eta}", steps, steps) for eta in (0, 1) for steps in (3, 6)]
    both = [("ddrm", 3, 3), ("ddrm", 6, 6), *diffpir]
    # RePaint is for inpainting alone; a method with steps of its own has one row for each S whatever the η.
    expected = [("inpainting", *row) for row in [*both, ("repaint", 3, 3), ("repaint", 6, 6)]]
    assert named == expected + [("superresolution", *row) for row in both]
    for row in restored:
        assert row["consistency"] < 1e-5 and row["num_images"] == 20 and row["draws"] == 2
        assert row["psnr_standard_error"] > 0 and row["ssim_window"] == "gaussian 7x7, sigma 0.9545"
        assert row["psnr_of_mean"] > row["psnr"] and row["spread"] > 0 and row["milliseconds_per_image"] > 0
        assert row["backward"] is False and (row["eta"] is None) == (row["sampler"] == row["method"])
    trivial = {(row["operator"], row["method"]): row for row in asked.rows if not row.get("calls")}
    assert set(trivial) == {
        ("inpainting", "pseudo_inverse"),
        ("inpainting", "nearest"),
        ("inpainting", "gaussian_posterior_mean"),
        ("superresolution", "pseudo_inverse"),
        ("superresolution", "bicubic"),
        ("superresolution", "gaussian_posterior_mean"),
    }
    for (operator, method), row in trivial.items():
        assert row["nfe"] == 0 and row["spread"] is None and math.isfinite(row["psnr"])
        if method != "gaussian_posterior_mean":
            assert row["psnr"] < trivial[operator, "gaussian_posterior_mean"]["psnr"]
    # Curves, pictures, keys and words of the part.
    assert [len(curves.panels) for curves in asked.pictures(Curves)] == [2, 2]
    assert len(asked.pictures(Strip)) == 2 and len(asked.pictures(Strip)[0].rows) == 1 + 3 + 8
    for row in restored:
        for key in PART.curves(row):
            assert find(key, EVALUATE) is not None
    for key in PART.summary(asked.rows, {}):
        assert find(key, EVALUATE) is not None
    words = asked.words()
    assert "Restoration of 20 test images, 2 draws each: inpainting, no noise" in words
    assert "Gaussian posterior mean" in words and "spread" in words
    document = json.loads((tmp_path / "restoration.json").read_text())
    assert document["extra"]["measurements"]["inpainting"]["mask_sha256"]
    assert label_of(restored[0], restored) == "inpainting, ddrm"


def test_batches_and_ranks_do_not_matter(tmp_path, study_of, run, run_on_ranks):
    def on(rank, world_size=2):
        study = study_of(SamplerConfig(steps=[3], eta=1.0), method=["ddrm", "pigdm"], sigma_y=0.1)
        folder = tmp_path / f"{rank}-of-{world_size}"
        return run(study, folder, batch_size=7, rank=rank, world_size=world_size)

    whole = run(study_of(SamplerConfig(steps=[3], eta=1.0), method=["ddrm", "pigdm"], sigma_y=0.1), tmp_path / "whole")
    expected = {row["method"]: row for row in whole.rows if row.get("calls")}
    for asked in run_on_ranks(2, on):
        for row in asked.rows:
            if row.get("calls"):
                known = expected[row["method"]]
                for name in (*NUMBERS, "consistency"):
                    assert row[name] == pytest.approx(known[name], rel=1e-4)


def test_an_image_is_restored_the_same_whatever_stands_beside_it(tmp_path, study_of, run):
    """Images are spread over the split: twice as many have those of before among them."""
    few, many = (
        run(study_of(SamplerConfig(steps=[3], eta=0.0), num_images=count, shown=count), tmp_path / str(count))
        for count in (9, 18)
    )
    pictures = [asked.pictures(Strip)[0].rows for asked in (few, many)]
    for (label, images), (_, others) in zip(*pictures, strict=True):
        assert torch.equal(torch.as_tensor(images), torch.as_tensor(others)[::2]), label


def test_what_is_finished_is_not_restored_again_but_for_another_measurement(tmp_path, study_of, run, network):
    kept = Kept(tmp_path, {"weights_sha256": "a"})
    one = SamplerConfig(steps=[3], eta=0.0)
    first = run(study_of(one), tmp_path, kept=kept)
    network.samples = 0
    again = run(study_of(one), tmp_path, kept=kept)
    assert network.samples == 0 and again.rows == first.rows
    other = run(study_of(one, operator_seed=1), tmp_path, kept=kept)
    assert network.samples > 0
    assert {row["measurement"] for row in other.rows}.isdisjoint(row["measurement"] for row in first.rows)
    network.samples = 0
    run(study_of(one, noise_share=0.5), tmp_path, kept=kept)
    assert network.samples > 0


def test_noise_of_the_measurement_is_stated_on_zero_to_one(study_of, subject_of, network):
    study = study_of(operator="denoising", method="ddrm", sigma_y=0.1, num_images=200)
    subject = subject_of(DenoisingModule(network, SCHEDULE, optimizer={}), Sampling(NoiseSource(3), Pixels(SHAPE), 64))
    damaged = study._damaged(subject)
    x_0 = Pixels(SHAPE).to_model(damaged.truth)
    assert damaged.measurements["denoising"].error(x_0).std().item() / 2 == pytest.approx(0.1, rel=0.03)


def test_a_picture_of_ones_own_is_restored_where_the_mask_is_white(tmp_path, study_of, run):
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8) * 3
    white = np.zeros((8, 8), np.uint8)
    white[2:5, 2:5] = 255
    Image.fromarray(pixels).save(tmp_path / "image.png")
    Image.fromarray(white).save(tmp_path / "mask.png")
    files = {"image": str(tmp_path / "image.png"), "mask": str(tmp_path / "mask.png")}
    asked = run(study_of(SamplerConfig(steps=[3], eta=0.0), method="ddnm", **files), tmp_path / "run")
    (row,) = (row for row in asked.rows if row.get("calls"))
    assert "psnr" not in row and row["num_images"] == 1 and row["consistency"] < 1e-5
    (single,) = asked.pictures(Single)
    assert torch.equal(torch.as_tensor(single.image)[0][white == 0], torch.from_numpy(pixels)[white == 0])
    restored = np.asarray(Image.open(tmp_path / "run" / "restoration-restored-inpainting-ddnm-steps0003.png"))
    assert restored.shape == (8, 8) and (restored[white == 0] == pixels[white == 0]).all()
    assert not (restored[white > 0] == pixels[white > 0]).all()
    assert "Restoration of a picture, 2 draws each" in asked.words()
    (small,) = operators_of(RestorationConfig(operator=["superresolution"]), SHAPE).values()
    assert picture_of(files["image"], small, SHAPE).shape == (1, 1, 4, 4)


@pytest.mark.parametrize(
    "operator, method",
    [
        (operator, method)
        for operator in ("superresolution", "deblurring")
        for method in ("ddrm", "ddnm_plus", "diffpir")
    ]
    + [("superresolution", "ilvr"), ("deblurring", "pigdm")],
)
def test_a_network_in_bfloat16_leaves_the_operator_exact(study_of, network, operator, method):
    """Autocast would round every A x to three digits."""
    study = study_of(SamplerConfig(steps=[6], eta=0.0), operator=operator, method=method)
    seen = []

    def eps(x, t):
        seen.append(torch.is_autocast_enabled("cpu"))
        return network(x, t).float()

    def arithmetic():
        return torch.autocast("cpu", dtype=torch.bfloat16)

    subject = Subject(eps, SCHEDULE, Sampling(NoiseSource(3), Pixels(SHAPE), 64), arithmetic=arithmetic)
    measured = Measurement.of(study.operators[operator], NoiseSource(5).initial(torch.arange(3), SHAPE), 0.0)
    x_T, noise = NoiseSource(3).initial(torch.arange(3), SHAPE), NoiseSource(3).bind(torch.arange(3))
    restored = restore(study.tasks[0], subject, measured, x_T, noise)
    assert all(seen) and restored.dtype == torch.float32
    with torch.autocast("cpu", enabled=False):
        expected = restore(study.tasks[0], replace(subject, arithmetic=torch.no_grad), measured, x_T, noise)
        error = measured.error(restored).abs().max(), measured.error(expected).abs().max()
    assert error[0] <= 2 * error[1] + 1e-5, "as near to y as it would be in float32"


@pytest.mark.parametrize(
    ("method", "words"), [("dps", " or a smaller restoration.step_size."), ("pigdm", "or take more steps.")]
)
def test_a_method_that_diverges_is_named_and_what_was_finished_is_kept(
    tmp_path, study_of, run, network, monkeypatch, method, words
):
    def driven_out(denoiser, measurement, schedule):
        return lambda x, t: denoiser(x, t) * 3e38

    def off(denoiser, x_T, *rest, **more):
        return x_T * 3e38 * 3e38

    function = driven_out if method == "pigdm" else off
    monkeypatch.setitem(METHODS, method, replace(METHODS[method], function=function))
    kept, one = Kept(tmp_path, {"weights_sha256": "a"}), SamplerConfig(steps=[12], eta=0.0)
    with pytest.raises(UserError) as refused:
        run(study_of(one, method=["ddrm", method]), tmp_path / "first", kept=kept)
    told = str(refused.value)
    assert told.startswith(f"restoration.method={method} has diverged with sampler.steps=12 on inpainting: ")
    assert told.endswith(words)
    network.samples = 0
    assert run(study_of(one, method="ddrm"), tmp_path / "again", kept=kept).rows and network.samples == 0


@pytest.mark.parametrize("method", ["ddrm", "diffpir", "sdedit"])
def test_a_network_that_gives_no_numbers_is_no_fault_of_the_method(study_of, method):
    study = study_of(SamplerConfig(steps=[3], eta=0.0), method=method)
    sampling = Sampling(NoiseSource(3), Pixels(SHAPE), 64)
    subject = Subject(lambda x, t: x * math.nan, SCHEDULE, sampling, trained_steps=5)
    x_T, noise = NoiseSource(3).initial(torch.arange(3), SHAPE), NoiseSource(3).bind(torch.arange(3))
    measured = Measurement.of(study.operators["inpainting"], x_T, 0.0)
    with pytest.raises(UserError, match="The samples at step 5 are not finite numbers: training has diverged"):
        restore(study.tasks[0], subject, measured, x_T, noise)


def test_only_inpainting_leaves_the_training_mean_and_values_missing():
    space, columns = Standardised((4,), "vectors", (0.0,) * 4, (1.0,) * 4), torch.randn(6, 4)
    known = torch.tensor([True, True, False, True])
    rows = []
    for operator in (Denoising((4,)), Inpainting((4,), known, {"mask": "given"})):
        measured = completed_row(columns[None] + 1, Measurement.of(operator, columns, 0.0), columns, space, None, None)
        about = {"operator": operator.identity["operator"], "split": "test", "num_images": 6, "draws": 1, "sigma_y": 0}
        rows.append({**about, "method": "pseudo_inverse", "nfe": 0, **measured})
        rows.append({**about, "method": "ddnm", "sampler": "ddnm", "steps": 3, "nfe": 3, "calls": 3, **measured})
    assert [row["missing"] for row in rows[::2]] == [0, 1] and rows[0]["rmse"] == pytest.approx(1)
    assert [name_of(row) for row in rows[::2]] == ["pseudo-inverse", "training mean"]
    assert "Missing values" not in _said(rows[:2])
    assert "Missing values of each sample: 1 (inpainting). RMSE" in _said(rows[2:])
    assert "Missing values of each sample: 1 (inpainting). RMSE" in _said(rows)


def _said(rows):
    words = Mock()
    PART.words(rows, {}, words)
    return "\n".join(call.args[0] for call in words.say.call_args_list)


def test_numbers_of_known_images():
    truth = torch.full((3, *SHAPE), 128, dtype=torch.uint8)
    space = Pixels(SHAPE)
    x_0 = space.to_model(truth)
    off = torch.tensor([10, 20, 40]).reshape(3, 1, 1, 1)
    images = (truth.int() + off).to(torch.uint8)
    expected = [10 * math.log10(255**2 / gap**2) for gap in (10, 20, 40)]
    torch.testing.assert_close(peak_ratios(images, truth).tolist(), expected)
    assert peak_ratios(truth, truth).tolist() == [LARGEST_PSNR] * 3
    assert similarities(images, truth).mean().item() == pytest.approx(structural_similarity(images, truth))
    measurement = Measurement(Denoising(SHAPE), x_0.flatten(1))
    restored = torch.stack([x_0 + 0.2, x_0 - 0.2])
    row = measured_row(restored, measurement, truth, space, None, None)
    assert row["consistency"] == pytest.approx(0.1) and row["spread"] == pytest.approx(0.1 * math.sqrt(2))
    assert row["psnr"] == pytest.approx(20, abs=0.2) and row["psnr_standard_error"] == pytest.approx(0, abs=1e-9)
    assert row["psnr_of_mean"] == LARGEST_PSNR


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"operator": "blurring"}, "restoration.operator=blurring is not known; choose one of inpainting"),
        ({"method": "magic"}, "restoration.method=magic is not known; choose one of ddrm"),
        ({"method": ["ddrm", "ddrm"]}, "names one twice"),
        ({"sigma_y": -0.1}, "restoration.sigma_y=-0.1: sigma_y must be a finite number >= 0, stated on [0, 1]"),
        ({"method": "ddnm", "sigma_y": 0.1}, "with noise take ddnm_plus"),
        ({"method": "repaint", "operator": "denoising"}, "restoration.method=repaint cannot restore"),
        ({"method": "ilvr", "operator": "inpainting"}, "is for superresolution alone"),
        ({"operator": "superresolution", "factor": 3}, "factor=3 must divide the 8x8 pixels"),
        ({"operator": "colourisation"}, "restoration.operator=colourisation cannot be used"),
        ({"keep": 0.0}, "leaves no pixel of 8x8"),
        (
            {"mask": "nowhere.png"},
            "restoration.mask=nowhere.png is no file; give one of random, box, half, [names of columns], or a file",
        ),
        ({"image": "nowhere.png"}, "restoration.image=nowhere.png is no file"),
        ({"operator": "matrix"}, "needs restoration.matrix=FILE"),
        ({"num_images": 100_000}, "is more than the 360 images of the test split"),
        ({"num_images": 1}, "restoration.num_images=1 must be a whole number of at least 2"),
        ({"draws": 0}, "restoration.draws=0 must be"),
        ({"noise_share": 2.0}, "restoration.noise_share=2.0"),
        ({"method": "dps", "step_size": -1.0}, "step_size must be a finite number >= 0"),
        (
            {"method": "dps", "step_size": 1e100},
            "restoration.method=dps has diverged with sampler.steps=3 on inpainting",
        ),
        ({"method": "repaint", "jump_length": 0}, "jump_length must be an integer >= 1"),
        ({"method": "sdedit", "start": 2.0}, "start must be in [0, 1]"),
        ({"operator_seed": -1}, "restoration.operator_seed=-1"),
    ],
)
def test_what_cannot_be_is_one_sentence(study_of, settings, words):
    with pytest.raises(UserError) as refused:
        study_of(**settings)
    assert words in str(refused.value) and "\n" not in str(refused.value)


def test_files_that_do_not_fit_are_refused(tmp_path, study_of):
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(tmp_path / "small.png")
    (tmp_path / "text.png").write_text("no picture")
    np.save(tmp_path / "wide.npy", np.ones((3, 7)))
    small, text, wide = (str(tmp_path / name) for name in ("small.png", "text.png", "wide.npy"))
    for settings, words in (
        ({"mask": small}, "it is 5x5 pixels, not 8x8"),
        ({"image": text}, "it is not an image in a known format"),
        ({"image": small, "operator": "compressed_sensing"}, "is no measurement of restoration.operator"),
        ({"matrix": wide, "operator": "matrix"}, "must be (m, 64)"),
        ({"matrix": text, "operator": "matrix"}, "is no .npy file of numbers"),
    ):
        with pytest.raises(UserError) as refused:
            study_of(**settings)
        assert words in str(refused.value)


def test_a_matrix_of_ones_own(tmp_path, study_of, run):
    np.save(tmp_path / "m.npy", np.eye(64)[::2])
    study = study_of(
        SamplerConfig(steps=[3], eta=0.0), operator="matrix", matrix=str(tmp_path / "m.npy"), method="ddnm"
    )
    rows = [row for row in run(study, tmp_path / "run").rows if row.get("calls")]
    assert len(rows) == 1 and rows[0]["consistency"] < 1e-5


def test_a_search_for_tau_makes_the_same_study_at_other_points(study_of, material):
    study = study_of()
    points = [replace(point, timesteps=(1, 2, *point.timesteps[2:])) for point in study.points]
    assert [task.point for task in Restoration.of(study.settings, points, material).tasks[:2]] == points
