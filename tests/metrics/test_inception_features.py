"""Inception features and the metrics on them, against torch-fidelity's and torchmetrics' own entry points."""

from __future__ import annotations

import hashlib
import io
import pickle
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import torch
import torch_fidelity
from torch.utils.data import Dataset
from torchmetrics.image.fid import FrechetInceptionDistance

from ddim.errors import UserError
from ddim.metrics import (
    RunningMoments,
    build_extractor,
    compute_metrics,
    extract_features,
    frechet_distance,
    inception,
    reference_statistics,
)
from ddim.metrics.inception import WEIGHTS_FILE

SEED = 7


@pytest.fixture(scope="module")
def extractor(random_inception_weights):
    return build_extractor("inception-v3-compat", channels=3, resolution=32, weights_dir=random_inception_weights)


def images(count: int, seed: int, contrast: float) -> torch.Tensor:
    """Smooth colour patterns: their features vary from image to image, as noise of equal statistics would not."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 4, 4, generator=generator) * contrast
    smooth = torch.nn.functional.interpolate(coarse, size=32, mode="bicubic")
    return (smooth * 255).clamp(0, 255).round().to(torch.uint8)


# Few, as each takes the network a tenth of a second; enough for ten splits of the Inception score.
GENERATED, REAL = images(12, 1, 0.9), images(10, 2, 1.0)


class Images(Dataset):
    def __init__(self, tensor):
        self.tensor = tensor

    def __len__(self):
        return len(self.tensor)

    def __getitem__(self, index):
        return self.tensor[index]


@pytest.fixture(scope="module")
def generated(extractor):
    return extract_features(extractor, GENERATED.split(5))


@pytest.fixture(scope="module")
def reference(extractor, tmp_path_factory):
    return reference_statistics(extractor, lambda: REAL.split(5), {"count": 10}, tmp_path_factory.mktemp("cache"))


def test_all_metrics_equal_torch_fidelity_on_the_same_images(random_inception_weights, generated, reference, capfd):
    expected = torch_fidelity.calculate_metrics(
        input1=Images(GENERATED),
        input2=Images(REAL),
        cuda=False,
        batch_size=8,
        fid=True,
        kid=True,
        isc=True,
        prc=True,
        kid_subset_size=10,
        feature_extractor="inception-v3-compat",
        feature_extractor_weights_path=str(random_inception_weights / WEIGHTS_FILE),
        rng_seed=SEED,
        cache=False,
        save_cpu_ram=True,
        verbose=False,
    )
    capfd.readouterr()
    ours = compute_metrics(generated, reference, seed=SEED)
    assert capfd.readouterr() == ("", "")
    assert expected["frechet_inception_distance"] > 1e-3
    assert 0 < expected["precision"] < 1 and 0 < expected["recall"] < 1
    assert expected["inception_score_std"] > 1e-3
    translation = {
        "frechet_distance": "frechet_inception_distance",
        "kid_mean": "kernel_inception_distance_mean",
        "kid_std": "kernel_inception_distance_std",
    }
    assert len(ours) == 7
    for name, value in ours.items():
        assert value == pytest.approx(expected[translation.get(name, name)], rel=1e-3), name


def test_frechet_distance_equals_torchmetrics_without_antialiasing(random_inception_weights, generated, reference):
    metric = FrechetInceptionDistance(
        feature=2048, antialias=False, feature_extractor_weights_path=str(random_inception_weights / WEIGHTS_FILE)
    )
    metric.update(GENERATED[:4], real=False)
    metric.update(REAL[:4], real=True)
    mine, real = RunningMoments(2048), RunningMoments(2048)
    mine.update(generated.features[:4])
    real.update(reference.features[:4])
    ours = frechet_distance(mine.mean, mine.covariance(), real.mean, real.covariance())
    assert ours == pytest.approx(float(metric.compute()), rel=1e-3)


def test_features_ignore_the_callers_precision_and_training_mode(extractor, generated):
    before = torch.get_float32_matmul_precision()
    extractor.train()
    try:
        torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = extractor(GENERATED[:2])
            reduced = extractor.network(GENERATED[:2])[0]
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert not extractor.training and found.features.dtype == torch.float32 and not found.features.requires_grad
    torch.testing.assert_close(found.features, generated.features[:2], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.logits, generated.logits[:2], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(reduced.float(), generated.features[:2], rtol=1e-4, atol=1e-5)


def in_a_parent(extractor):
    torch.nn.Sequential(extractor).train(True)


def directly(extractor):
    extractor.train(True)


def the_network_inside(extractor):
    extractor.network.train()


def every_module_by_hand(extractor):
    for module in extractor.modules():
        module.training = True


@pytest.mark.parametrize("switch", [in_a_parent, directly, the_network_inside, every_module_by_hand])
def test_inception_never_works_in_training_mode(extractor, generated, switch):
    """Batch statistics would change the features, and each batch the running statistics behind all later ones."""
    buffers = {name: buffer.clone() for name, buffer in extractor.network.named_buffers()}
    switch(extractor)
    found = extractor(GENERATED[:5])
    assert not any(module.training for module in extractor.modules())
    assert torch.equal(found.features, generated.features[:5]) and torch.equal(found.logits, generated.logits[:5])
    assert sum(name.endswith("running_mean") for name in buffers) == 94
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in extractor.network.named_buffers())


@pytest.mark.parametrize("switch", [in_a_parent, directly])
def test_training_a_parent_does_not_even_switch_inception(extractor, switch):
    switch(extractor)
    assert not any(module.training for module in extractor.modules())


def test_batch_statistics_would_change_the_features(random_inception_weights, generated):
    """Keeps the test above honest."""
    other = build_extractor("inception-v3-compat", channels=3, resolution=32, weights_dir=random_inception_weights)
    before = other.network.Conv2d_1a_3x3.bn.running_mean.clone()
    with torch.no_grad():
        features, _ = other.network.train()(GENERATED[:5])
    assert not torch.allclose(features, generated.features[:5], rtol=0.1)
    assert not torch.equal(other.network.Conv2d_1a_3x3.bn.running_mean, before)


@pytest.mark.parametrize(
    "unrounded",
    [GENERATED[:1] / 255, GENERATED[:1] / 127.5 - 1, GENERATED[:1] + 0.4, GENERATED[:1].to(torch.int64)],
)
def test_images_that_are_not_yet_bytes_are_refused(extractor, unrounded):
    """The network would cut off what is behind the point; rounding belongs to the one place that does it."""
    with pytest.raises(ValueError, match=f"take uint8 images .*, got {unrounded.dtype}"):
        extract_features(extractor, [unrounded])


def test_greyscale_is_repeated_to_three_channels(extractor):
    grey = GENERATED[:1, :1]
    torch.testing.assert_close(extractor(grey).features, extractor(grey.repeat(1, 3, 1, 1)).features)


def test_building_leaves_random_numbers_alone_and_names_the_weights(random_inception_weights):
    torch.manual_seed(3)
    state = torch.get_rng_state()
    extractor = build_extractor("inception-v3-compat", channels=1, resolution=8, weights_dir=random_inception_weights)
    assert torch.equal(torch.get_rng_state(), state)
    assert extractor.dim == 2048
    sha256 = hashlib.sha256((random_inception_weights / WEIGHTS_FILE).read_bytes()).hexdigest()
    assert extractor.provenance["weights_sha256"] == sha256
    assert extractor.provenance["canonical_weights"] is False


def no_network(url, timeout):
    raise urllib.error.URLError("no network")


def test_missing_weights_are_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    with pytest.raises(UserError) as error:
        build_extractor("inception-v3-compat", channels=3, resolution=32, weights_dir=tmp_path / "new")
    message = str(error.value)
    assert "no network" in message and WEIGHTS_FILE in message and str(tmp_path / "new") in message
    assert "evaluation.features=pixels" in message and "\n" not in message
    assert list((tmp_path / "new").iterdir()) == []


def test_download_appears_only_when_it_is_the_expected_file(tmp_path, monkeypatch):
    content = b"weights"
    monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: io.BytesIO(content))
    with pytest.raises(UserError, match="not the expected one"):
        inception.find_weights(tmp_path)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(inception, "WEIGHTS_SHA256_PREFIX", hashlib.sha256(content).hexdigest()[:8])
    assert inception.find_weights(tmp_path).read_bytes() == content
    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    assert inception.find_weights(tmp_path) == tmp_path / WEIGHTS_FILE
    assert [path.name for path in tmp_path.iterdir()] == [WEIGHTS_FILE]


def test_the_published_files_name_ends_in_its_digest():
    assert WEIGHTS_FILE == "weights-inception-2015-12-05-6726825d.pth"
    assert inception.WEIGHTS_SHA256_PREFIX == "6726825d"


def test_the_address_is_torch_fidelitys():
    assert inception.WEIGHTS_URL == torch_fidelity.feature_extractor_inceptionv3.URL_INCEPTION_V3


class Malicious:
    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


@pytest.mark.parametrize("kind", ["truncated", "foreign", "pickle with code"])
def test_bad_weights_files_are_one_sentence_and_run_nothing(kind, random_inception_weights, tmp_path):
    path = tmp_path / WEIGHTS_FILE
    if kind == "truncated":
        path.write_bytes((random_inception_weights / WEIGHTS_FILE).read_bytes()[:100_000])
    elif kind == "foreign":
        torch.save({"a": torch.zeros(1)}, path)
    else:
        path.write_bytes(pickle.dumps(Malicious(tmp_path / "ran"), protocol=2))
    with pytest.raises(UserError, match="does not hold the Inception weights"):
        build_extractor("inception-v3-compat", channels=3, resolution=32, weights_dir=tmp_path)
    assert not (tmp_path / "ran").exists()


def test_channels_that_inception_cannot_take(random_inception_weights):
    with pytest.raises(UserError, match="1 or 3 channels, not 4"):
        build_extractor("inception-v3-compat", channels=4, resolution=32, weights_dir=random_inception_weights)
