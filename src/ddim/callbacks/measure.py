"""What images are measured with and against."""

from __future__ import annotations

from dataclasses import dataclass

from ddim.metrics import FeatureExtractor, ReferenceStatistics, needs_features
from ddim.results import Floor


@dataclass(frozen=True)
class Measure:
    """Features, reference and metrics. Kept outside the LightningModule, whose weights are averaged.

    split: whose images the reference is of; None for published statistics.
    """

    extractor: FeatureExtractor
    reference: ReferenceStatistics
    metrics: tuple[str, ...]
    floor: Floor | None = None
    split: str | None = None

    @property
    def needs_features(self) -> bool:
        """Whether a metric looks at single images; else the moments of all features say enough."""
        return needs_features(self.metrics, self.reference)


def features_name(extractor: FeatureExtractor) -> str:
    """Only the published Inception weights make a FID; a distance on others must not carry its name."""
    if extractor.provenance.get("canonical_weights", True):
        return extractor.name
    return f"{extractor.name} (other weights {extractor.provenance['weights_sha256'][:8]})"
