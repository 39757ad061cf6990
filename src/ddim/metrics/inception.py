"""Features of the 2015 TensorFlow Inception network, on which FID is defined, and where its weights come from."""

from __future__ import annotations

import hashlib
import http.client
import logging
import os
import shutil
import tempfile
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ddim.errors import UserError
from ddim.metrics.features import FeatureExtractor, Features

if TYPE_CHECKING:
    from torch_fidelity import FeatureExtractorInceptionV3

logger = logging.getLogger(__name__)
# torch-fidelity's own address: importing it takes as long as the rest of a command's start.
WEIGHTS_URL = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
)
WEIGHTS_FILE = WEIGHTS_URL.rsplit("/", 1)[-1]
# torch.hub's convention: the file's name ends in the first digits of its SHA-256.
WEIGHTS_SHA256_PREFIX = Path(WEIGHTS_FILE).stem.rsplit("-", 1)[-1]
CONNECT_TIMEOUT_SECONDS = 10


class NoWeights(UserError):
    """The weights are neither there nor to be had, for a `reason`."""

    def __init__(self, reason: str, weights_dir: Path) -> None:
        super().__init__(
            f"the Inception weights could not be downloaded ({reason}): put the file {WEIGHTS_FILE} from {WEIGHTS_URL} "
            f"into {Path(weights_dir).absolute()}, or take features that need no download "
            "(evaluation.features=pixels, or cifar-cnn for colour images of 32x32; when training, "
            "callbacks.evaluation.features=pixels or cifar-cnn)"
        )
        self.reason = reason


class InceptionFeatures(FeatureExtractor):
    """torch-fidelity's `inception-v3-compat`: its own resize to 299x299 as TensorFlow 1 did it, its own network.

    Features: the pooled layer `2048`; logits: `logits_unbiased` (N, 1008). Greyscale is repeated to three channels.
    provenance["canonical_weights"] is False when the weights are not the published file: then the distance is no FID.
    """

    layers = ("2048", "logits_unbiased")

    def __init__(self, weights_dir: Path) -> None:
        import torch_fidelity

        path = find_weights(weights_dir)
        sha256 = file_sha256(path)
        super().__init__(
            "inception-v3-compat",
            2048,
            {
                "layer": self.layers[0],
                "resize": "TensorFlow 1 bilinear to 299x299",
                "weights_sha256": sha256,
                "canonical_weights": sha256.startswith(WEIGHTS_SHA256_PREFIX),
                "torch_fidelity": torch_fidelity.__version__,
            },
        )
        self.network = _load_network(path, self.layers)

    def extract(self, images: Tensor) -> Features:
        if images.shape[1] == 1:
            images = images.expand(-1, 3, -1, -1)
        features, logits = self.network(images)
        return Features(features, logits)


def _load_network(path: Path, layers: tuple[str, ...]) -> FeatureExtractorInceptionV3:
    from torch_fidelity import FeatureExtractorInceptionV3

    try:
        # torch-fidelity unpickles without restrictions; a file that passes here executes nothing there.
        torch.load(path, map_location="cpu", weights_only=True)
        # The constructor draws initial weights that the file replaces: the caller's random numbers stay untouched.
        with torch.random.fork_rng(devices=[]):
            return FeatureExtractorInceptionV3(
                "inception-v3-compat", list(layers), feature_extractor_weights_path=str(path)
            )
    except Exception as error:
        raise UserError(
            f"{path} does not hold the Inception weights (it may be truncated): remove it and let it be downloaded "
            f"again, or put {WEIGHTS_URL} there"
        ) from error


def find_weights(weights_dir: Path, may_download: bool = True) -> Path:
    """The weights file in `weights_dir`, downloaded from torch-fidelity's address when it is not there.

    Raises NoWeights when it is neither there nor to be had.
    """
    path = Path(weights_dir) / WEIGHTS_FILE
    if path.is_file():
        return path
    if not may_download:
        raise NoWeights("another process of this machine has tried", weights_dir)
    logger.info("downloading the Inception weights from %s to %s", WEIGHTS_URL, path)
    try:
        download(WEIGHTS_URL, path, WEIGHTS_SHA256_PREFIX)
    except (OSError, http.client.HTTPException) as error:
        raise NoWeights(str(getattr(error, "reason", None) or error), weights_dir) from error
    return path


def download(url: str, path: Path, sha256_prefix: str) -> None:
    """Fetches `url` to `path`, which appears only when complete and verified. Raises OSError or HTTPException."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(dir=path.parent, prefix=".download-") as folder,
        urllib.request.urlopen(url, timeout=CONNECT_TIMEOUT_SECONDS) as response,
    ):
        partial = Path(folder) / path.name
        with partial.open("wb") as file:
            shutil.copyfileobj(response, file)
        if not file_sha256(partial).startswith(sha256_prefix):
            raise urllib.error.URLError(f"the file from {url} is incomplete or not the expected one")
        os.replace(partial, path)


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
