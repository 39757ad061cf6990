"""What `Pictures` writes: animations, frame by frame."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ddim.display import presenter
from ddim.display.presenter import Pictures, draw
from ddim.findings.parts import PARTS
from ddim.findings.telling import Animation, Findings, Sheet


@pytest.fixture
def written(tmp_path: Path) -> Callable[[Sequence[Tensor], Sequence[str]], Path]:
    """The file of an animation whose frames are shown for 60 milliseconds."""

    def write(frames: Sequence[Tensor], labels: Sequence[str]) -> Path:
        pictures = Pictures(tmp_path)
        pictures.picture(Findings(PARTS["trajectory"]), "a", Animation(frames, labels, 60), "")
        assert pictures.paths == [tmp_path / "trajectory-a.gif"]
        return pictures.paths[0]

    return write


class TestAnimation:
    def test_every_frame_its_time_and_its_pixels(self, written):
        generator = torch.Generator().manual_seed(0)
        frames = [torch.randint(0, 256, (6, 1, 8, 8), dtype=torch.uint8, generator=generator) for _ in range(7)]
        with Image.open(written(frames, [f"t = {number}" for number in range(7)])) as gif:
            assert gif.n_frames == 7 and gif.info["loop"] == 0
            durations = []
            for number, frame in enumerate(frames):
                gif.seek(number)
                durations.append(gif.info["duration"])
                pixels = np.asarray(gif.convert("L"))
                # The first image's upper left pixel, 12 times as large: grey values survive the palette.
                assert (pixels[32:44, 10:22] == frame[0, 0, 0, 0].item()).all()
        assert durations == [60] * 6 + [1500]

    def test_colours_stay_close(self, written):
        shades = torch.tensor([[255, 0, 0], [0, 200, 40], [10, 20, 250]], dtype=torch.uint8)
        frames = [shades.roll(number, 0)[:, :, None, None].expand(3, 3, 8, 8) for number in range(3)]
        with Image.open(written(frames, ["t = 2", "t = 1", "t = 0"])) as gif:
            for number in range(3):
                gif.seek(number)
                pixel = np.asarray(gif.convert("RGB"))[40, 20].astype(int)
                assert np.abs(pixel - frames[number][0, :, 0, 0].numpy()).max() <= 12


def test_a_sheet_is_drawn_with_the_name_of_its_columns(monkeypatch) -> None:
    heard = []
    monkeypatch.setattr(presenter, "sample_sheet", lambda *known: heard.append(known))
    draw(Sheet({}, "title", column="nfe"))
    draw(Sheet({}))
    assert heard == [({}, "title", "nfe"), ({}, None, "S")]
