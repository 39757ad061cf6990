"""Evaluations of a checkpoint that brings statistics of its training images, where the images are not named."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ddim.data import AbsentImages
from ddim.denoisers.pretrained import Pretrained
from ddim.errors import UserError
from ddim.evaluation.settings import STUDIES, GeneralSettings
from ddim.evaluation.study import HELD_OUT, IMAGES
from ddim.metrics.published import About, read_about
from ddim.runs.layout import STATISTICS_FILE

# What names images on the command line.
NAMES_IMAGES = {"dataset", "dataset.root"}


@dataclass(frozen=True)
class Statistics:
    """A file of reference statistics that lies beside a checkpoint."""

    path: Path
    origin: str
    about: About

    @property
    def features(self) -> str:
        return str(self.about.extractor["features"])

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of an image."""
        data = self.about.data
        return data["channels"], data["resolution"], data["resolution"]

    def images(self, eval_batch_size: int) -> AbsentImages:
        """The data set that the statistics are of, without its images."""
        missing = f"this needs images, and {self._instead()}"
        return AbsentImages(self.about.data, eval_batch_size=eval_batch_size, missing=missing)

    def take_the_place_of_images(self, evaluation: GeneralSettings, parts: Iterable[str]) -> None:
        """Measure against these statistics, without a floor.

        Raises:
            UserError: the statistics are of other features, or a part needs the images themselves.
        """
        for name in parts:
            if not STUDIES[name].needs.isdisjoint({HELD_OUT, IMAGES}):
                raise UserError(f"evaluation={name} needs images, and {self._instead()}")
        evaluation.floor = False
        if evaluation.reference is not None:
            return
        if evaluation.features != self.features:
            raise UserError(
                f"evaluation.features={evaluation.features} needs images to compare with, and {self._instead()}, or "
                f"take evaluation.features={self.features}"
            )
        evaluation.reference = str(self.path)

    def _instead(self) -> str:
        data = self.about.data
        return (
            f"{self.origin} brings only the {self.features} statistics of {data['count']:,} {data['split']} images of "
            f"{data['dataset']}; add dataset.root=DIR, the folder with the images"
        )

    def said(self) -> str:
        """What is done without images, and how to have more."""
        data = self.about.data
        return (
            f"No data set is opened: distances are to the {self.features} statistics of {data['count']:,} "
            f"{data['split']} images of {data['dataset']} that {self.origin} brings; loss, floor, KID, precision and "
            "recall need the images (dataset.root=DIR)."
        )


def statistics_beside(pretrained: Pretrained, features: str | None) -> Statistics | None:
    """The statistics that lie beside a checkpoint which does not state its data set; None where there are none.

    features: which are wanted; where there are none of these, or this is None, the first file is taken.

    Raises UserError where a file does not say what it is of.
    """
    if pretrained.dataset is not None or not pretrained.statistics:
        return None
    wanted = STATISTICS_FILE.format(features)
    path = next((path for path in pretrained.statistics if path.name == wanted), pretrained.statistics[0])
    about = read_about(path)
    if about is None:
        raise UserError(f"the reference statistics {path} do not say what they are of; add dataset.root=DIR")
    return Statistics(path, pretrained.origin, about)
