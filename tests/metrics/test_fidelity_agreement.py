"""The Frechet distance of the whole path against torch-fidelity's own number on the same images.

torch-fidelity extracts features itself: Inception with its own class, the others with extractors written here anew.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from importlib import resources

import numpy as np
import pytest
import safetensors.numpy
import torch
import torch_fidelity
from sklearn.datasets import load_digits
from torch.nn import functional
from torch.utils.data import Dataset

from ddim.metrics import Features, build_extractor, compute_metrics, extract_features, reference_statistics
from ddim.metrics.inception import WEIGHTS_FILE

FEATURES = ("inception-v3-compat", "digits-cnn", "pixels")


class Images(Dataset):
    def __init__(self, tensor):
        self.tensor = tensor

    def __len__(self):
        return len(self.tensor)

    def __getitem__(self, index):
        return self.tensor[index]


class Float64Extractor(torch_fidelity.FeatureExtractorBase):
    """What torch-fidelity asks of an extractor, but for the features."""

    def __init__(self, name, features_list, **kwargs):
        super().__init__(name, features_list)

    @staticmethod
    def get_provided_features_list():
        return ("features",)

    @staticmethod
    def get_default_feature_layer_for_metric(metric):
        return "features"

    @staticmethod
    def can_be_compiled():
        return False


class MeansOfBlocks(Float64Extractor):
    def forward(self, images):
        n, channels, side, _ = images.shape
        cells = min(side, 16)
        blocks = images.double().reshape(n, channels, cells, side // cells, cells, side // cells)
        return (blocks.sum(dim=(3, 5)).flatten(1) / (255 * (side // cells) ** 2),)


class DigitClassifier(Float64Extractor):
    """The last hidden layer: three 3x3 convolutions, the second halving the size, and a dense layer."""

    def forward(self, images):
        content = resources.files("ddim.metrics").joinpath("digits_cnn.safetensors").read_bytes()
        weights = {key: torch.from_numpy(value).double() for key, value in safetensors.numpy.load(content).items()}
        x = (images.double() - 127.5) / 127.5
        for layer, stride in ((0, 1), (2, 2), (4, 1)):
            name = f"convolutions.{layer}"
            x = functional.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], stride, padding=1)
            x = x * torch.sigmoid(x)
        return (torch.tanh(x.flatten(1) @ weights["feature.0.weight"].T + weights["feature.0.bias"]),)


THEIRS = {"digits-cnn": "float64-digit-classifier", "pixels": "float64-means-of-blocks"}
THEIR_CLASSES = {"digits-cnn": DigitClassifier, "pixels": MeansOfBlocks}
for ours, theirs in THEIRS.items():
    torch_fidelity.register_feature_extractor(theirs, THEIR_CLASSES[ours])


def patterns(count, seed, contrast):
    """Smooth colour patterns (N, 3, 32, 32)."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 4, 4, generator=generator) * contrast
    return (functional.interpolate(coarse, size=32, mode="bicubic") * 255).clamp(0, 255).round().to(torch.uint8)


def digits():
    """Handwritten digits (N, 1, 8, 8), unlike those of the data room in scale only."""
    return torch.from_numpy(np.minimum(load_digits().images * 16, 255).astype(np.uint8))[:, None]


@functools.cache
def image_sets(features):
    """Generated and real images; few for Inception, where each takes a tenth of a second."""
    if features == "digits-cnn":
        return digits()[:150].roll(1, dims=-1), digits()[150:330]
    count = 9 if features == "inception-v3-compat" else 130
    return patterns(count, 1, 0.9), patterns(count - 1, 2, 1.0)


def their_distance(features, weights_dir, generated, real):
    return torch_fidelity.calculate_metrics(
        input1=Images(generated),
        input2=Images(real),
        cuda=False,
        batch_size=50,
        fid=True,
        feature_extractor=THEIRS.get(features, features),
        feature_extractor_weights_path=str(weights_dir / WEIGHTS_FILE),
        cache=False,
        save_cpu_ram=True,
        verbose=False,
    )["frechet_inception_distance"]


@pytest.fixture(scope="module")
def extractor_of(random_inception_weights):
    @functools.cache
    def build(features, channels, resolution):
        return build_extractor(features, channels=channels, resolution=resolution, weights_dir=random_inception_weights)

    return build


@pytest.fixture(scope="module")
def expected_of(random_inception_weights):
    @functools.cache
    def compute(features):
        return their_distance(features, random_inception_weights, *image_sets(features))

    return compute


@pytest.mark.parametrize("batch_size", [1, 7, 64])
@pytest.mark.parametrize("features", FEATURES)
def test_frechet_distance_for_any_batch_size(features, batch_size, extractor_of, expected_of, tmp_path):
    generated, real = image_sets(features)
    extractor = extractor_of(features, *real.shape[1:3])
    statistics = reference_statistics(extractor, lambda: real.split(batch_size), {"count": len(real)}, tmp_path)
    found = compute_metrics(extract_features(extractor, generated.split(batch_size)), statistics, ["frechet_distance"])[
        "frechet_distance"
    ]
    # Distances of another order than rounding, so that a relative tolerance says something.
    assert expected_of(features) > 1e-3 * np.trace(statistics.sigma)
    assert found == pytest.approx(expected_of(features), rel=1e-3)


@pytest.mark.parametrize("features", THEIRS)
def test_features_equal_those_written_anew(features, extractor_of):
    """Closer than a distance can tell."""
    images = image_sets(features)[1][:50]
    (expected,) = THEIR_CLASSES[features]("any", ["features"])(images)
    found = extractor_of(features, *images.shape[1:3])(images).features
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


SCRIPT = """
import json
import sys
from pathlib import Path

import torch

from ddim.data import Pixels
from ddim.denoisers import UNet
from ddim.diffusion import NoiseSchedule, NoiseSource
from ddim.diffusion.grid import grid_points
from ddim.evaluation.sampling import generate
from ddim.evaluation.subject import Sampling, Subject
from ddim.metrics import build_extractor

FOLDER, WEIGHTS, COUNTS = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])


def work(rank, world_size):
    torch.set_num_threads(1)
    store = f"file://{FOLDER}/store{world_size}"
    torch.distributed.init_process_group("gloo", store, rank=rank, world_size=world_size)
    torch.manual_seed(0)
    denoiser = UNet(
        in_channels=1, resolution=8, base_channels=8, channel_mult=(1, 2), num_res_blocks=1,
        attention_resolutions=(4,), dropout=0.0, norm_groups=4,
    )
    schedule = NoiseSchedule.linear(1000)
    for parameter in denoiser.parameters():
        if parameter.dim() > 1:  # the last layer starts at zero, and samples would be the same whatever happens before
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    sampling = Sampling(NoiseSource(0), Pixels((1, 8, 8)), batch_size=5)
    subject = Subject(denoiser.eval(), schedule, sampling, rank=rank, world_size=world_size)
    point = grid_points(schedule, steps=3, etas=0.5, tau="linear")[0]
    for features, count in COUNTS.items():
        extractor = build_extractor(features, channels=1, resolution=8, weights_dir=WEIGHTS)
        generation = generate(subject, extractor, point, num_samples=count, keep_images=count)
        found = [generation.features.features, generation.first_images]
        if generation.features.logits is not None:
            found.append(generation.features.logits)
        torch.save(found, FOLDER / f"{features}-{world_size}-{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    for world_size in (1, 2, 3):
        # Forked, as importing takes longer than the work; nothing has computed here yet.
        torch.multiprocessing.start_processes(work, (world_size,), nprocs=world_size, start_method="fork")
"""
# Neither 2 nor 3 divides these.
COUNTS = {"inception-v3-compat": 7, "digits-cnn": 67, "pixels": 67}


@pytest.fixture(scope="module")
def gathered(tmp_path_factory, random_inception_weights):
    """(features, number of processes, rank) -> what `generate` returned there: features, images and logits, if any."""
    folder = tmp_path_factory.mktemp("processes")
    script = folder / "script.py"
    script.write_text(SCRIPT)
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "TORCHELASTIC_"))}
    environment |= {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script), str(folder), str(random_inception_weights), json.dumps(COUNTS)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    return lambda features, world_size, rank: torch.load(folder / f"{features}-{world_size}-{rank}.pt")


@pytest.mark.parametrize("features", FEATURES)
def test_features_from_processes_are_those_of_one_in_order(features, gathered, extractor_of):
    first, images, *logits = gathered(features, 1, 0)
    own = extractor_of(features, 1, 8)(images)
    assert len(images) == COUNTS[features]
    for world_size in (1, 2, 3):
        for rank in range(world_size):
            found, found_images, *found_logits = gathered(features, world_size, rank)
            # A pixel may move by one where convolutions of another batch round differently; features follow images.
            assert (found_images.int() - images.int()).abs().max() <= 1
            assert (found_images != images).double().mean() < 0.01
            unmoved = (found_images == images).flatten(1).all(dim=1)
            assert unmoved.sum() > len(images) / 2
            assert found.shape == first.shape
            torch.testing.assert_close(found[unmoved], own.features[unmoved], rtol=1e-4, atol=1e-4)
            for mine in found_logits:
                torch.testing.assert_close(mine[unmoved], own.logits[unmoved], rtol=1e-4, atol=1e-4)
            assert len(found_logits) == (own.logits is not None) == len(logits)
    # Otherwise another order would pass.
    assert torch.pdist(own.features).min() > 1e-2


@pytest.mark.parametrize(
    ("features", "world_size"),
    [("inception-v3-compat", 3), *((features, size) for features in list(FEATURES)[1:] for size in (1, 2, 3))],
)
def test_frechet_distance_for_any_number_of_processes(
    features, world_size, gathered, extractor_of, random_inception_weights, tmp_path
):
    real = digits()[: 6 if features == "inception-v3-compat" else 180]
    statistics = reference_statistics(
        extractor_of(features, 1, 8), lambda: real.split(50), {"count": len(real)}, tmp_path
    )
    found, images, *_ = gathered(features, world_size, world_size - 1)
    colours = 3 if features == "inception-v3-compat" else 1
    expected = their_distance(
        features, random_inception_weights, images.expand(-1, colours, -1, -1), real.expand(-1, colours, -1, -1)
    )
    distance = compute_metrics(Features(found), statistics, ["frechet_distance"])["frechet_distance"]
    assert expected > 1e-3 * np.trace(statistics.sigma)
    assert distance == pytest.approx(expected, rel=1e-3)
