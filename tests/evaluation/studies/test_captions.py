"""Captions: the reader on images that were composed, and the study of networks that obey in a known way."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ddim.data import ImageDataModule, Pixels
from ddim.data.build import load_data
from ddim.data.captioned_digits import (
    CAPTIONS,
    NEW_COMBINATION,
    NEW_WORDING,
    SEEN,
    VOCABULARY,
    Caption,
    captions_of,
)
from ddim.diffusion import NoiseSchedule, NoiseSource
from ddim.diffusion.grid import SamplerConfig
from ddim.diffusion.guidance.settings import GuidanceConfig
from ddim.diffusion.guided_grid import GuidedSampler
from ddim.errors import UserError
from ddim.evaluation.kept.finished import Kept
from ddim.evaluation.reading import PairReader, asked, right, same_digits
from ddim.evaluation.sampling import Sampling
from ddim.evaluation.studies.captions import Captions, CaptionsConfig, in_turn
from ddim.findings.parts.captions import PART
from ddim.findings.telling import Captioned, Curves
from ddim.tracking.keys import EVALUATE, find, wandb_key
from ddim.training.module import DenoisingModule

SHAPE = (1, 16, 16)
SCHEDULE = NoiseSchedule.linear(100, 1e-3, 0.15)
IDENTITY = {"dataset": "captioned_digits", "weights": "ema", "seed": 0}
CONFIG = {"name": "captioned_digits", "count": 64, "test_count": 400}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ImageDataModule:
    folder = tmp_path_factory.mktemp("cache")
    return load_data(CONFIG, stage="fit", seed=0, cache_dir=folder, batch_size=8, eval_batch_size=100, num_workers=0)


@pytest.fixture(scope="module")
def legible(data: ImageDataModule) -> dict[Caption, Tensor]:
    """An image of every caption that the reader reads as it was composed, uint8 (1, 16, 16)."""
    images = torch.cat(list(data.images("test", 500)))
    by_text = {caption.text: caption for caption in CAPTIONS}
    captions = [by_text[text] for text in VOCABULARY.decode(data.conditions("test"))]
    read = PairReader()(images).features
    found = {tuple(row): image for row, image, good in zip(
        asked(captions).tolist(), images, right(read, asked(captions)).tolist(), strict=True) if good}  # fmt: skip
    return {caption: found[tuple(asked([caption])[0].tolist())] for caption in CAPTIONS if tuple(
        asked([caption])[0].tolist()) in found}  # fmt: skip


class Drawing(nn.Module):
    """The exact eps of one image for each caption, which `picture` chooses; of none without a caption."""

    def __init__(self, picture: Callable[[Caption], Tensor]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.null_condition = torch.zeros(VOCABULARY.length, dtype=torch.long)
        self.pictures = {caption.text: picture(caption) for caption in CAPTIONS}
        self.calls = 0

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        self.calls += len(x)
        texts = [""] * len(x) if condition is None else VOCABULARY.decode(condition)
        x_0 = torch.stack([self.pictures.get(text, torch.zeros(SHAPE)) / 127.5 - 1 for text in texts])
        level = SCHEDULE.alpha_bar[t].float().reshape(-1, 1, 1, 1)
        return (x - level.sqrt() * x_0) / (1 - level).sqrt()


def points(*scales: float, steps: int = 2):
    guidance = GuidanceConfig("classifier_free", list(scales)) if scales else GuidanceConfig()
    return GuidedSampler.of(SamplerConfig(steps, 0.0, "trailing"), guidance).points(SCHEDULE)


@pytest.fixture(scope="module")
def run(ask: Callable[..., Any], data: ImageDataModule) -> Callable[..., Any]:
    def run(directory: Path, denoiser: nn.Module, where=None, *, num_images=80, num_trained=0, shown=8, **more: Any):
        study = Captions(where or points(), images=data, num_images=num_images, num_trained=num_trained, shown=shown)
        module = DenoisingModule(denoiser, SCHEDULE, optimizer={}).eval()
        return ask(study, module, Sampling(NoiseSource(0), Pixels(SHAPE), 64), directory, IDENTITY, **more)

    return run


def swapped(caption: Caption) -> Caption:
    """The same digits in the other places."""
    return Caption(caption.second, caption.layout, caption.first, caption.wording)


class TestReader:
    def test_what_was_composed_is_read(self, data: ImageDataModule) -> None:
        by_text = {caption.text: caption for caption in CAPTIONS}
        captions = [by_text[text] for text in VOCABULARY.decode(data.conditions("test"))]
        read = PairReader()(torch.cat(list(data.images("test", 500)))).features
        assert torch.equal(read[:, 0], asked(captions)[:, 0]), "the layout is never in doubt"
        assert right(read, asked(captions)).float().mean() > 0.95

    def test_places_and_digits_are_told_apart(self, legible: dict[Caption, Tensor]) -> None:
        captions = [caption for caption in legible if caption.first != caption.second and swapped(caption) in legible]
        assert len(captions) > 300
        read = PairReader()(torch.stack([legible[swapped(caption)] for caption in captions])).features
        assert not right(read, asked(captions)).any() and same_digits(read, asked(captions)).all()
        other = [Caption((c.first + 1) % 10, c.layout, c.second, c.wording) for c in captions]
        assert not same_digits(read, asked(other)).any()

    def test_other_shapes_are_refused(self) -> None:
        with pytest.raises(ValueError, match="expected images of shape"):
            PairReader()(torch.zeros(2, 1, 8, 8, dtype=torch.uint8))


class TestStudy:
    def test_a_network_that_obeys_the_known_combinations_alone(self, tmp_path, run, legible) -> None:
        """New combinations have their digits in the wrong places, of trained captions those that begin with a nine."""

        def picture(caption: Caption) -> Tensor:
            wrong = caption.kind == NEW_COMBINATION or (caption.kind == SEEN and caption.first == 9)
            shown = swapped(caption) if wrong else caption
            return legible.get(shown, torch.zeros(SHAPE, dtype=torch.uint8))

        asked_ = run(tmp_path, Drawing(picture), num_images=80, num_trained=320)
        (row,) = asked_.rows
        expected = {kind: 0.0 if kind == NEW_COMBINATION else 1.0 for kind in (NEW_WORDING, NEW_COMBINATION)}
        missing = [c for c in captions_of(NEW_WORDING) if c not in legible]
        assert row["num_images"] == 80
        assert row["right_new_wording"] == pytest.approx(1 - len(missing) / 40)
        assert row["right_new_combination"] == expected[NEW_COMBINATION] and row["right_new_combination_error"] == 0
        assert row["right"] == pytest.approx((row["right_new_wording"] + row["right_new_combination"]) / 2)
        share = row["right"]
        assert row["right_error"] == pytest.approx(math.sqrt(share * (1 - share) / 80))
        assert row["digits"] > 0.95
        assert 0.88 < row["right_trained"] <= 1 - 28 / 320, "two nines are two nines in any places"
        assert 0.95 < row["ceiling"] <= 1 and row["scale"] == 1.0
        written = list(csv.DictReader((tmp_path / "captions.csv").open()))
        assert [float(line["right"]) for line in written] == [row["right"]]
        (sheet,) = asked_.pictures(Captioned)
        assert sheet.captions == [caption.text for caption in asked_.study.held_out[:8]]
        assert sheet.marked[1::2] == [True] * 4, "new combinations take turns with new wordings"
        assert "real images" in asked_.words() and "new combination" in asked_.words()

    def test_guidance_is_an_axis(self, tmp_path, run, legible) -> None:
        """Scale 0 draws whatever the caption says: nothing is right. W&B knows every key."""
        denoiser = Drawing(lambda caption: legible.get(caption, torch.zeros(SHAPE, dtype=torch.uint8)))
        summary: dict[str, float] = {}
        logger = SimpleNamespace(log_metrics=lambda values, step: summary.update(values))
        found = run(tmp_path, denoiser, points(0.0, 1.0, 2.0), loggers=[logger])
        shares = [row["right"] for row in found.rows]
        assert shares[0] <= 0.02 and min(shares[1:]) > 0.95
        assert [row["scale"] for row in found.rows] == [0.0, 1.0, 2.0]
        assert [row["nfe"] for row in found.rows] == [2, 2, 4]
        (curves,) = found.pictures(Curves)
        assert set(curves.panels[0].lines) == {f"{kind}: ddim, η = 0, S = 2" for kind in (NEW_WORDING, NEW_COMBINATION)}
        assert len(found.pictures(Captioned)) == 3, "one for each scale"
        for row in found.rows:
            assert PART.curves(row)
            for key in PART.curves(row):
                assert find(wandb_key(key), EVALUATE).name == "captions/<share>/<sampler>/<tau>"
        for key in PART.summary(found.rows, found.say.extra):
            assert find(wandb_key(key), EVALUATE, ["summary"]).name.startswith("captions/")

    def test_nothing_that_is_finished_is_drawn_again(self, tmp_path, run, legible) -> None:
        draws = [Drawing(lambda c: legible.get(c, torch.zeros(SHAPE, dtype=torch.uint8))) for _ in range(3)]
        network = {"weights_sha256": "a"}
        one = run(tmp_path, draws[0], kept=Kept(tmp_path, network), num_images=20)
        again = run(tmp_path, draws[1], kept=Kept(tmp_path, network), num_images=20)
        run(tmp_path, draws[2], kept=Kept(tmp_path, network), num_images=22)
        assert again.rows == one.rows and [draw.calls for draw in draws] == [40, 0, 44]

    def test_all_held_out_captions_have_their_turn(self) -> None:
        held_out = captions_of(NEW_WORDING, NEW_COMBINATION)
        assert set(in_turn(held_out, 80)) == set(held_out)
        kinds = [caption.kind for caption in in_turn(held_out, 500)]
        assert kinds == [NEW_WORDING, NEW_COMBINATION] * 250
        assert len({caption.first for caption in in_turn(held_out, 24)}) == 10, "the picture has all digits"
        assert set(in_turn(captions_of(SEEN), 320)) == set(captions_of(SEEN))


def test_data_without_pairs_of_digits_are_refused(tmp_path: Path) -> None:
    digits = load_data(
        {"name": "digits"}, stage="test", seed=0, cache_dir=tmp_path, batch_size=8, eval_batch_size=8, num_workers=0
    )
    with pytest.raises(UserError, match=r"evaluation=captions reads pairs of digits, which dataset digits does not"):
        Captions.of(CaptionsConfig(), points(), SimpleNamespace(images=digits))


@pytest.mark.parametrize(("key", "value", "least"), [("num_images", 1, 2), ("num_trained", -1, 0), ("shown", 0, 1)])
def test_what_cannot_be_asked_is_named(key: str, value: int, least: int) -> None:
    with pytest.raises(
        UserError, match=f"evaluation.captions.{key}={value} must be a whole number of at least {least}"
    ):
        CaptionsConfig(**{key: value}).check("evaluation.captions")
