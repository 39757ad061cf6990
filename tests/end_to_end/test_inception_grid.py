"""The grid on Inception features, against torch-fidelity's own entry point on the same images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch_fidelity
from PIL import Image
from torch.utils.data import Dataset

from ddim.data import Pixels, build_datamodule
from ddim.denoisers.pretrained import load_denoiser
from ddim.diffusion import NoiseSchedule, NoiseSource
from ddim.diffusion.grid import grid_points
from ddim.evaluation.subject import Sampling, Subject
from ddim.findings.files import read_results
from ddim.metrics.inception import WEIGHTS_FILE


class Images(Dataset):
    def __init__(self, images: torch.Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.images[index]


def test_the_tables_distance_is_torch_fidelitys(
    run_script, workplace, tiny_training, random_inception_weights, monkeypatch
):
    generator = np.random.default_rng(0)
    for split, count in (("train", 20), ("test", 12)):
        (workplace / "images" / split).mkdir(parents=True)
        for number in range(count):
            coarse = Image.fromarray(generator.integers(0, 256, (3, 3, 3), dtype=np.uint8))
            coarse.resize((16, 16), Image.Resampling.BICUBIC).save(workplace / "images" / split / f"{number}.png")
    cache = workplace / "cache"
    monkeypatch.setenv("DDIM_CACHE_DIR", str(cache))
    cache.mkdir()
    (cache / "weights").symlink_to(random_inception_weights)
    folder = ("dataset=image_folder", f"dataset.root={workplace / 'images'}", "dataset.resolution=16")
    trained = run_script(
        "train.py", *tiny_training, *folder, "callbacks=minimal", "logger=none", f"hydra.run.dir={workplace / 'run'}"
    )
    assert trained.status == 0, trained.errors
    evaluated = run_script(
        "evaluate.py",
        f"checkpoint={workplace / 'run'}",
        "sampler.eta=0",
        "sampler.steps=2",
        "evaluation.num_samples=14",
        "evaluation.batch_size=5",
        "evaluation.features=inception-v3-compat",
        "logger=none",
        f"hydra.run.dir={workplace / 'evaluation'}",
    )
    assert evaluated.status == 0, evaluated.errors
    results = read_results(workplace / "evaluation")
    (row,) = results.rows
    # A distance on any other weights than the published ones must not be called FID.
    assert row.features.startswith("inception-v3-compat (other weights") and "FID" not in evaluated.output
    assert row.inception_score_mean is not None and results.floor.num_images == 12

    schedule = NoiseSchedule.linear()
    sampling = Sampling(NoiseSource(0), Pixels((3, 16, 16)), 14)
    (point,) = grid_points(schedule, steps=2, etas=0, tau="linear")
    samples = Subject(load_denoiser(workplace / "run"), schedule, sampling).draw(point, torch.arange(14))
    datamodule = build_datamodule(
        {"name": "image_folder", "root": str(workplace / "images"), "resolution": 16},
        batch_size=1,
        eval_batch_size=1,
        num_workers=0,
        seed=0,
        cache_dir=cache / "data",
    )
    real = torch.cat(list(datamodule.images("train", 20)))
    expected = torch_fidelity.calculate_metrics(
        input1=Images(samples),
        input2=Images(real),
        fid=True,
        isc=True,
        cuda=False,
        verbose=False,
        batch_size=7,
        feature_extractor_weights_path=str(random_inception_weights / WEIGHTS_FILE),
        cache=False,
        save_cpu_ram=True,
    )
    assert row.frechet_distance == pytest.approx(expected["frechet_inception_distance"], rel=1e-3)
