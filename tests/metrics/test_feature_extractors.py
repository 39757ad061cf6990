"""Pixel and digit features: closed forms, batch-size invariance, the stated accuracy."""

from __future__ import annotations

import importlib.util
import urllib.error
import urllib.request
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from sklearn.datasets import load_digits
from torch.nn import functional

from ddim.errors import UserError
from ddim.metrics import FEATURES, Features, build_classifier, build_extractor, extract_features
from ddim.metrics.features import full_float32
from ddim.metrics.measure import features_name

SHIPPED = {"digits-cnn": (1, 8), "cifar-cnn": (3, 32)}
TOOL = Path(__file__).parents[2] / "tools" / "train_digits_cnn.py"


def build(name, channels=1, resolution=8):
    return build_extractor(name, channels=channels, resolution=resolution, weights_dir="unused")


def random_images(count, channels=1, resolution=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, channels, resolution, resolution), generator=generator, dtype=torch.uint8)


@pytest.fixture(scope="module")
def digits():
    """split -> images, labels, as the tool that trained the weights sees them."""
    spec = importlib.util.spec_from_file_location("train_digits_cnn", TOOL)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    return tool.load_split()


def test_the_tools_labels_belong_to_its_images(digits):
    table = load_digits()
    images, labels = (torch.cat(parts).numpy() for parts in zip(*digits.values(), strict=True))
    # Independent of how the tool finds labels: each image's nearest neighbour in the whole table.
    flat = images.reshape(len(images), 64) * (16 / 255)
    nearest = ((flat[:, None] - table.data[None]) ** 2).sum(axis=2).argmin(axis=1)
    assert sorted(nearest) == list(range(1797)) and len(digits["test"][0]) == 360
    assert np.array_equal(table.target[nearest], labels)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_pixels_of_32_are_means_of_2x2_blocks(channels):
    images = random_images(3, channels, 32)
    expected = images.double().reshape(3, channels, 16, 2, 16, 2).mean(dim=(3, 5)).flatten(1) / 255
    extractor = build("pixels", channels, 32)
    assert extractor.dim == channels * 256
    torch.testing.assert_close(extractor(images).features.double(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("resolution", [1, 8, 16])
def test_small_pixels_are_taken_as_they_are(resolution):
    images = random_images(2, 3, resolution)
    torch.testing.assert_close(build("pixels", 3, resolution)(images).features, images.flatten(1) / 255)


@pytest.mark.parametrize("resolution", [17, 28, 100])
def test_pixels_average_constant_images_to_their_value_at_any_size(resolution):
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).reshape(3, 1, 1, 1).expand(3, 1, resolution, resolution)
    found = build("pixels", 1, resolution)(images).features
    assert found.shape == (3, 256)
    torch.testing.assert_close(found, torch.tensor([0.0, 0.2, 1.0])[:, None].expand(3, 256))


@pytest.mark.parametrize("name", [*SHIPPED, "pixels"])
@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_batch_size_does_not_change_features(name, batch_size):
    shape = SHIPPED.get(name, (1, 8))
    images, extractor = random_images(100, *shape), build(name, *shape)
    whole = extractor(images)
    seen = []
    streamed = extract_features(extractor, images.split(batch_size), seen.append)
    assert len(streamed) == 100 and seen[-1] == 100 and whole.features.shape == (100, extractor.dim)
    torch.testing.assert_close(streamed.features, whole.features, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [*SHIPPED, "pixels"])
def test_features_are_float32_without_gradients_under_autocast(name):
    shape = SHIPPED.get(name, (1, 8))
    images, extractor = random_images(16, *shape), build(name, *shape)
    expected = extractor(images).features
    extractor.train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = extractor(images).features
    assert found.dtype == torch.float32 and not found.requires_grad and not extractor.training
    assert torch.equal(found, expected)


def test_autocast_would_change_the_digit_features():
    """Keeps the test above honest."""
    images, extractor = random_images(16), build("digits-cnn")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        reduced = extractor.network(images)[0]
    assert not torch.equal(reduced.float(), extractor(images).features)


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_full_float32_overrides_reduced_matrix_products_and_puts_them_back(precision):
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(256, 256, generator=generator) for _ in range(2))
    # Setting it makes the newer settings fit together, whatever tests before this one have left.
    torch.backends.cudnn.allow_tf32 = tf32 = True
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(precision)
        with full_float32("cpu"):
            product = a @ b
            inside = [
                backend.fp32_precision
                for backend in (torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.mkldnn.matmul)
            ]
        assert inside == ["ieee"] * 3
        # Getters of the older interface complain when settings no longer fit together.
        assert torch.get_float32_matmul_precision() == precision and torch.backends.cudnn.allow_tf32 == tf32
    finally:
        torch.set_float32_matmul_precision(before)
    torch.testing.assert_close(product.double(), a.double() @ b.double(), rtol=0, atol=1e-3)


def test_digits_cnn_has_the_stated_accuracy(digits):
    extractor = build("digits-cnn")
    accuracy = {split: float((extractor.classify(x) == y).double().mean()) for split, (x, y) in digits.items()}
    # One image may change sides with another machine's rounding.
    assert accuracy["train"] >= 1436 / 1437 - 1e-9
    assert accuracy["test"] == pytest.approx(357 / 360, abs=1.5 / 360)


def test_digits_cnn_is_small_well_conditioned_and_gives_no_logits(digits):
    weights = resources.files("ddim.metrics").joinpath("digits_cnn.safetensors").read_bytes()
    assert len(weights) < 300_000
    features = build("digits-cnn")(digits["train"][0])
    assert features.logits is None and features.features.shape == (1437, 64)
    assert features.features.abs().max() <= 1
    eigenvalues = torch.linalg.eigvalsh(features.features.double().T.cov())
    assert eigenvalues[0] > 5e-4 * eigenvalues[-1]


def test_classes_follow_from_features_that_are_already_known(digits):
    extractor, (images, labels) = build("digits-cnn"), digits["test"]
    logits = extractor.logits_of(extractor(images).features)
    assert logits.shape == (360, 10) and logits.dtype == torch.float32 and not logits.requires_grad
    torch.testing.assert_close(logits, extractor.network(images)[1], rtol=1e-5, atol=1e-4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(extractor.logits_of(extractor(images).features), logits)
    assert torch.equal(extractor.classify(images), logits.argmax(dim=1))
    assert [extractor.classes[k] for k in labels[:3]] == [str(int(k)) for k in labels[:3]]


def test_cifar_cnn_is_small_and_its_layers_are_those_of_its_file_in_float64():
    content = resources.files("ddim.metrics").joinpath("cifar_cnn.safetensors").read_bytes()
    assert len(content) < 600_000
    stored = safetensors.torch.load(content)
    assert {value.dtype for value in stored.values()} == {torch.float16}
    weights = {name: value.double() for name, value in stored.items()}

    def layer(x, name, stride=1):
        x = functional.conv2d(x, weights[f"{name}.0.weight"], weights[f"{name}.0.bias"], stride, padding=1)
        return x / (1 + torch.exp(-x))

    def pooled(x):
        x = layer(layer(x, "convolutions.0"), "convolutions.1", stride=2)
        x = x + layer(layer(x, "convolutions.2.0"), "convolutions.2.1")
        x = x.unfold(2, 2, 2).unfold(3, 2, 2).amax(dim=(4, 5))
        x = layer(x, "convolutions.4")
        x = x + layer(layer(x, "convolutions.5.0"), "convolutions.5.1")
        return x.sum(dim=(2, 3)) / 64

    images, extractor = random_images(5, 3, 32), build("cifar-cnn", 3, 32)
    x = (images.double() - 127.5) / 127.5
    features = (pooled(x) + pooled(x.flip(3))) / 2
    found = extractor(images)
    assert found.logits is None and found.features.shape == (5, 88) == (5, extractor.dim)
    torch.testing.assert_close(found.features.double(), features, rtol=1e-4, atol=1e-4)
    logits = features @ weights["classifier.weight"].T + weights["classifier.bias"]
    torch.testing.assert_close(extractor.logits_of(found.features).double(), logits, rtol=1e-4, atol=1e-3)
    assert torch.equal(extractor.classify(images), logits.argmax(dim=1))


def test_cifar_cnn_has_smooth_features_of_full_rank():
    """Coloured patterns suffice to see that no unit is dead and none dominates."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(600, 3, 5, 5, generator=generator) * 255
    images = functional.interpolate(coarse, size=32, mode="bicubic").clamp(0, 255).round().to(torch.uint8)
    features = build("cifar-cnn", 3, 32)(images).features.double()
    assert features.std(dim=0).min() > 0.02 * features.std(dim=0).max()
    assert torch.linalg.eigvalsh(features.T.cov())[0] > 0


@pytest.mark.parametrize(("channels", "resolution"), [(1, 8), (1, 32), (3, 64), (3, 16)])
def test_auto_is_pixels_of_other_images_and_asks_nobody(channels, resolution, monkeypatch):
    monkeypatch.setattr(urllib.request, "urlopen", None)
    assert build("auto", channels, resolution).name == "pixels"


def test_auto_is_cifar_cnn_where_inception_is_not_to_be_had_and_says_so_once(tmp_path, monkeypatch, caplog):
    def no_network(url, timeout):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    extractor = build_extractor("auto", channels=3, resolution=32, weights_dir=tmp_path)
    assert extractor.name == "cifar-cnn" == features_name(extractor)
    (said,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "cifar-cnn" in said and "no FID" in said and "no network" in said and "\n" not in said


def test_auto_is_inception_where_its_weights_lie(random_inception_weights, caplog):
    extractor = build_extractor("auto", channels=3, resolution=32, weights_dir=random_inception_weights)
    assert extractor.name == "inception-v3-compat"
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_only_the_first_process_of_a_machine_downloads(tmp_path, monkeypatch):
    for name, value in {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    asked = []

    def no_network(url, timeout):
        asked.append(url)
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    for rank, expected in (("1", 0), ("0", 1)):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("LOCAL_RANK", rank)
        assert build_extractor("auto", channels=3, resolution=32, weights_dir=tmp_path).name == "cifar-cnn"
        assert len(asked) == expected


def test_a_classifier_is_found_by_its_classes_and_its_images():
    digits = [str(digit) for digit in range(10)]
    assert build_classifier(digits, channels=1, resolution=8).name == "digits-cnn"
    assert not any(p.requires_grad for p in build_classifier(digits, channels=1, resolution=8).parameters())
    classes = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    assert build_classifier(classes, channels=3, resolution=32).name == "cifar-cnn"
    for classes, channels, resolution in ((digits[::-1], 1, 8), (digits, 3, 8), (digits, 1, 32), (["cat"], 1, 8)):
        assert build_classifier(classes, channels=channels, resolution=resolution) is None


def test_building_leaves_random_numbers_alone():
    torch.manual_seed(3)
    state = torch.get_rng_state()
    build("digits-cnn")
    assert torch.equal(torch.get_rng_state(), state)


def test_provenance_tells_extractors_apart():
    found = [build("pixels", 1, 8), build("pixels", 1, 16), build("pixels", 1, 32), build("digits-cnn")]
    assert len({str(extractor.provenance) for extractor in found}) == 3
    assert build("pixels", 1, 16).dim == build("pixels", 1, 32).dim


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(2, 1, 8, 8), "uint8"),
        (torch.zeros(1, 8, 8, dtype=torch.uint8), r"\(1, 8, 8\)"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), r"\(1, 8, 8\)"),
    ],
)
def test_wrong_images_are_refused(images, message):
    with pytest.raises(ValueError, match=message):
        build("pixels", 1, 8)(images)
    with pytest.raises(ValueError, match=message):
        build("digits-cnn")(images)


def test_wrong_requests_are_refused():
    with pytest.raises(ValueError, match=r"vgg.*" + ", ".join(FEATURES)):
        build("vgg")
    with pytest.raises(UserError, match="8x8 pixels, not 3 channels of 32x32"):
        build("digits-cnn", 3, 32)
    with pytest.raises(UserError, match="32x32 pixels, not 3 channels of 64x64"):
        build("cifar-cnn", 3, 64)
    with pytest.raises(ValueError, match=r"expected images of shape \(3, 32, 32\), got \(3, 64, 64\)"):
        build("cifar-cnn", 3, 32)(random_images(1, 3, 64))


def test_concatenation_keeps_logits_only_when_all_parts_have_them():
    with_logits, without = Features(torch.zeros(2, 3), torch.zeros(2, 5)), Features(torch.ones(1, 3))
    assert Features.cat([with_logits, without]).logits is None
    both = Features.cat([with_logits, with_logits])
    assert len(both) == 4 and both.logits is not None and both.logits.shape == (4, 5)
    with pytest.raises(ValueError, match="no images"):
        Features.cat([])
