"""What is reported against other implementations of the paper, each impossible here."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from PIL import Image

from ddim.command.arguments import evaluation_arguments
from ddim.command.config import evaluation_config
from ddim.data import build_datamodule, to_uint8
from ddim.denoisers import UNet
from ddim.denoisers.pretrained import open_pretrained
from ddim.diffusion import NoiseSchedule, encode, sample, select_timesteps
from ddim.diffusion.samplers.generalized import eta_coefficients, step_table
from ddim.errors import UserError
from ddim.evaluation.sampling import Generation
from ddim.evaluation.settings import plan
from ddim.evaluation.studies.grid import grid_result
from ddim.findings.files import read_results
from ddim.metrics import Features, build_extractor

CONF = Path(__file__).resolve().parents[2] / "conf"
SCHEDULE = NoiseSchedule.linear(1000)
CIFAR10 = ("dataset=cifar10", "denoiser=unet_cifar10", "schedule=linear")


def evaluation(*arguments: str):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return evaluation_config(compose("evaluate", overrides=evaluation_arguments([*CIFAR10, *arguments])))


@pytest.mark.parametrize("arguments", [(), ("evaluation=paper",), ("table=cifar10_table1",), ("sampler=ddim",)])
def test_linear_tau_for_cifar10(arguments):
    """Quadratic without anybody asking for it: the official rule, repeats dropped."""
    planned = evaluation(*arguments, "sampler.steps=100")
    assert planned.config.sampler.points(SCHEDULE)
    for point in [*planned.config.sampler.points(SCHEDULE), *planned.points["grid"]]:
        official = np.unique((np.linspace(0, math.sqrt(1000 * 0.8), 100) ** 2).astype(int))
        assert point.tau == "quadratic" and list(point.timesteps) == official.tolist() and point.nfe == 96


@pytest.mark.parametrize("count", [49_984, 50_001, 0])
def test_fewer_images_than_said(count):
    generation = Generation(Features(torch.zeros(count, 2)), torch.zeros(0, 1, 8, 8, dtype=torch.uint8), 1.0)
    with pytest.raises(RuntimeError, match="50000 were asked for"):
        grid_result({"seed": 0}, generation, SimpleNamespace(), torch.device("cpu"), num_samples=50_000)


def test_old_images_scored_again(run_script, workplace, trained_run):
    """Two settings after each other in one directory: the second is what it would have been alone."""

    def distances(directory: str, eta: str) -> list[float]:
        outcome = run_script(
            "evaluate.py",
            f"checkpoint={trained_run}",
            f"sampler.eta={eta}",
            "sampler.steps=2,3",
            "evaluation.num_samples=70",
            "logger=none",
            f"hydra.run.dir={directory}",
        )
        assert outcome.status == 0, outcome.errors
        return [row.frechet_distance for row in read_results(workplace / directory).rows]

    first, second, alone = distances("one", "0"), distances("one", "1"), distances("other", "1")
    assert second == alone and second != first


def test_statistics_of_another_crop(tmp_path):
    """Statistics are found by what made them: the folder's pixels cropped and resized in another way are others."""
    pixels = np.random.default_rng(0).integers(0, 256, (218, 178, 3), dtype=np.uint8)
    for number in range(30):
        path = tmp_path / "faces" / f"{number:06d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.roll(pixels, number, 0)).save(path)
    loader = {"batch_size": 1, "eval_batch_size": 5, "num_workers": 0, "seed": 0, "cache_dir": tmp_path}

    def provenance(config):
        datamodule = build_datamodule({"root": str(tmp_path / "faces"), "resolution": 64, **config}, **loader)
        datamodule.prepare_data()
        return datamodule.provenance("train"), next(datamodule.images("train", 5))

    official, faces = provenance({"name": "celeba"})
    centre, others = provenance({"name": "image_folder"})
    assert official != centre and not torch.equal(faces, others)
    crops = [np.roll(pixels, number, 0)[57:185, 25:153] for number in range(30)]
    expected = {Image.fromarray(crop).resize((64, 64), Image.Resampling.BILINEAR).tobytes() for crop in crops}
    assert all(face.permute(1, 2, 0).contiguous().numpy().tobytes() in expected for face in faces)


def test_raw_weights_taken_for_their_average(tmp_path):
    unet = UNet(in_channels=1, resolution=8, base_channels=8, channel_mult=(1,), num_res_blocks=1, norm_groups=4)
    groups = {
        "dataset": {"name": "digits"},
        "denoiser": {"name": "unet", **unet.config},
        "schedule": {"name": "linear"},
    }
    state = {f"denoiser.{key}": value for key, value in unet.state_dict().items()}
    torch.save({"state_dict": state, "ddim": {"format": 1, "config": groups}}, tmp_path / "raw.ckpt")
    with pytest.raises(UserError, match="holds no EMA weights"):
        open_pretrained(tmp_path / "raw.ckpt").select("ema")
    assert evaluation().config.evaluation.weights == "ema"


def test_the_larger_variance_forced():
    """η = 1 is the posterior variance (1 - ᾱ_prev)/(1 - ᾱ) β, not β; table 3 asks for it by η."""
    for table in ("lsun_church_table3", "lsun_bedroom_table3"):
        points = evaluation(f"table={table}").config.sampler.points(SCHEDULE)
        assert {(point.eta, point.variance) for point in points} == {(0.0, "eta"), (1.0, "eta")}
    alpha_bar, previous = SCHEDULE.alpha_bar[500].item(), SCHEDULE.alpha_bar[400].item()
    beta = 1 - alpha_bar / previous
    _, sigma = eta_coefficients(alpha_bar, previous, 1.0)
    assert sigma**2 == pytest.approx((1 - previous) / (1 - alpha_bar) * beta, rel=1e-12) and sigma**2 < beta


@pytest.mark.parametrize("steps", [3, 7, 30, 48, 999])
@pytest.mark.parametrize("spacing", ["linear", "quadratic"])
def test_the_previous_timestep_guessed(steps, spacing):
    tau = select_timesteps(1000, steps, spacing).tolist()
    assert [step.previous_timestep for step in step_table(SCHEDULE, tau)] == [*tau[-2::-1], -1]
    assert step_table(SCHEDULE, tau)[-1].alpha_bar_prev == 1.0


def test_inversion_that_fails_because_x_0_is_clipped():
    """Data wide enough to leave [-1, 1] come back; clipping alone would be an error of more than 1."""
    tau = select_timesteps(1000, 200, "linear")
    alpha_bar, variance = SCHEDULE.alpha_bar, 4.0

    def gaussian(x, t):
        """The optimal ε for data from N(0, 4)."""
        level = alpha_bar[t].view(-1, 1)
        return torch.sqrt(1 - level) * x / (level * variance + 1 - level)

    x_0 = torch.tensor([[3.0, -2.5]], dtype=torch.float64)
    again = sample(gaussian, encode(gaussian, x_0, SCHEDULE, tau), SCHEDULE, tau, eta=0.0)
    assert (again - x_0).abs().max() < 0.05
    planned = evaluation("evaluation=reconstruction", "sampler.clip_denoised=true")
    assert not any(p.clip_denoised for p in planned.points["reconstruction"])
    again = plan(planned.config.sampler, planned.config.evaluation, SCHEDULE)
    assert again["reconstruction"] == planned.points["reconstruction"]


@pytest.mark.parametrize("channels", [1, 3])
def test_inception_in_training_mode_or_fed_truncated_images(monkeypatch, random_inception_weights, channels):
    extractor = build_extractor(
        "inception-v3-compat", channels=channels, resolution=32, weights_dir=random_inception_weights
    )
    extractor.train()
    torch.nn.Sequential(extractor).train()
    assert not any(module.training for module in extractor.modules())
    with pytest.raises(ValueError, match="uint8"):
        extractor(torch.rand(1, channels, 32, 32))
    # 127.5 * (x + 1) is 0, 126.96, 127.37, 254.87: truncation would give 0, 126, 127, 254.
    assert to_uint8(torch.tensor([-1.0, -0.0042, -0.001, 0.999])).tolist() == [0, 127, 127, 255]
