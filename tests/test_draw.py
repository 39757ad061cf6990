"""A caption as a picture, and what is said where it cannot be one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from ddim.data import Pixels
from ddim.data.captions import Vocabulary
from ddim.denoisers import UNet
from ddim.denoisers.formats.own import describe
from ddim.denoisers.pretrained import open_pretrained
from ddim.denoisers.text_unet import TextUNet
from ddim.diffusion import SAMPLERS, NoiseSchedule, NoiseSource
from ddim.diffusion.grid import SamplerConfig
from ddim.draw import draw, main
from ddim.errors import UserError

WORDS = ["a", "one", "two", "of", "left"]
TEXT = {
    **{"num_words": 5, "caption_length": 6, "text_width": 8, "text_depth": 1, "resolution": 8, "base_channels": 8},
    **{"channel_mult": [1, 2], "attention_resolutions": [4], "norm_groups": 4},
}
SCHEDULE = {"name": "linear", "num_timesteps": 20, "beta_start": 1e-3, "beta_end": 0.2}
DATASET = {"name": "captioned_digits"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a network of random weights that are nowhere zero."""
    network = TextUNet(**TEXT)
    generator = torch.Generator().manual_seed(0)
    state = {
        f"denoiser.{name}": 0.2 * torch.randn(value.shape, generator=generator)
        for name, value in network.state_dict().items()
    }
    config = {
        **{"dataset": DATASET, "denoiser": {"name": "text_unet", **network.config}, "schedule": SCHEDULE},
        "condition": {"words": WORDS, "caption_length": 6},
    }
    path = tmp_path_factory.mktemp("draw") / "text.ckpt"
    torch.save({"ddim": describe(config), "state_dict": state}, path)
    return path


@pytest.fixture
def images(checkpoint: Path) -> Callable[..., Tensor]:
    pretrained = open_pretrained(checkpoint)

    def make(caption: str, steps: int = 4, **options: object) -> Tensor:
        return draw(pretrained, caption, SamplerConfig(steps, 0.0), **{"weights": "raw", **options})  # type: ignore[arg-type]

    return make


def test_an_image_depends_on_caption_seed_and_number_alone(images: Callable[..., Tensor]) -> None:
    four = images("a one left of a two", number=4)
    assert four.shape == (4, 1, 8, 8) and four.dtype == torch.uint8
    assert torch.equal(images("A  one left of a two", number=2), four[:2])
    for other in ({"caption": "a two left of a one"}, {"caption": "a one left of a two", "seed": 1}):
        assert not torch.equal(images(number=4, **other), four)


@pytest.mark.parametrize("predicts", ["eps", "v"])
def test_the_scale_is_that_of_classifier_free_guidance(
    images: Callable[..., Tensor], checkpoint: Path, predicts: str
) -> None:
    """One step of DDIM from the latent of sample 0 to x_0, written out, of a network whatever it predicts."""
    pretrained = replace(open_pretrained(checkpoint), predicts=predicts)
    network, alpha_bar = pretrained.build("raw"), NoiseSchedule.linear(20, 1e-3, 0.2).alpha_bar
    tokens = Vocabulary(WORDS, 6).encode(["a one"])
    x, t = NoiseSource(0).initial(torch.tensor([0]), (1, 8, 8)), torch.tensor([19])
    signal, noise = alpha_bar[19].sqrt().float(), (1 - alpha_bar[19]).sqrt().float()
    with torch.no_grad():
        said = [network(x, t, tokens), network(x, t)]
    own, null = said if predicts == "eps" else [signal * v + noise * x for v in said]
    for scale in (0.0, 1.0, 3.5):
        x_0 = (x - noise * (null + scale * (own - null))) / signal
        expected = Pixels((1, 8, 8)).to_stored(x_0)
        found = draw(pretrained, "a one", SamplerConfig(1, 0.0, "trailing"), number=1, scale=scale, weights="raw")
        assert 0 < expected.float().mean() < 255
        assert (found.int() - expected.int()).abs().max() <= 1
    assert torch.equal(images("a one", scale=0.0), images("a two", scale=0.0)), "0 is the empty caption"
    assert torch.equal(images("", scale=1.0), images("a one", scale=0.0))


def test_a_picture_is_written_and_its_place_said(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    common = [str(checkpoint), "--weights=raw", "--steps=2", "--number=9"]
    assert main(["a one left of a two", *common]) == 0
    assert capsys.readouterr().out == "Picture   a-one-left-of-a-two.png\n"
    with Image.open("a-one-left-of-a-two.png") as picture:
        assert picture.width > 8 * 96 and picture.height > 2 * 96, "nine images in two rows, and the caption"
    assert main(["", *common, "--output=new/folder/any.png", "--sampler=heun"]) == 0
    assert (tmp_path / "new/folder/any.png").is_file()


@pytest.mark.parametrize(
    ("caption", "options", "sentence"),
    [
        ("a dog", [], 'The word "dog" is not known; known are: a, left, of, one, two.'),
        ("a a a a a a a", [], 'The caption "a a a a a a a" has 7 words; at most 6 can be read.'),
        ("a one", ["--number=0"], "--number=0 must be a whole number of at least 1."),
        ("a one", ["--steps=0"], "--steps=0 must be a whole number of at least 1."),
        ("a one", ["--seed=-1"], "--seed=-1 must be a whole number from 0 to 2^63 - 1."),
        ("a one", ["--scale=nan"], "--scale=nan must be a number from 0 to 100."),
        ("a one", ["--scale=1e30"], "--scale=1e+30 must be a number from 0 to 100."),
        ("a one", ["--steps=21"], "--steps=21 must be a whole number from 1 to 20, the timesteps of the schedule."),
        ("a one", ["--eta=0.5", "--sampler=heun"], "--eta=0.5 is not possible with --sampler=heun; take 0."),
        ("a one", ["--eta=2"], "--eta=2.0 must be a number from 0 to 1."),
        ("a one", ["--output=picture.doc"], "--output=picture.doc must be the name of a .png file."),
        ("a one", ["--weights=ema"], "holds no EMA weights"),
    ],
)
def test_what_cannot_be_drawn_is_one_sentence(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], caption: str, options: list[str], sentence: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([caption, str(checkpoint), "--weights=raw", "--steps=2", *options])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and sentence in said and "Traceback" not in said


@pytest.mark.parametrize("output", ["file/picture.png", "file/new/picture.png"])
def test_where_nothing_can_be_written_is_said_before_drawing(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], output: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ddim.draw.draw", lambda *_, **__: pytest.fail("drawn"))
    Path("file").touch()
    with pytest.raises(SystemExit):
        main(["a one", str(checkpoint), "--weights=raw", f"--output={output}"])
    assert capsys.readouterr().err.startswith(
        f"error: --output={output} cannot be written (Not a directory); give another"
    )


def test_a_long_caption_has_a_name_that_a_disk_takes(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ddim.draw.draw", lambda *_, **__: torch.zeros(1, 1, 8, 8, dtype=torch.uint8))
    assert main(["\N{MATHEMATICAL BOLD SMALL A}" * 300, str(checkpoint)]) == 0
    assert len(list(tmp_path.glob("*.png"))) == 1


def test_without_a_run_it_is_said_how_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main(["a one"])
    assert capsys.readouterr().err == (
        "error: No checkpoint under outputs/train: train one with `python train.py dataset=captioned_digits`, or give "
        "it as second argument.\n"
    )


def test_samplers_of_a_users_own_are_among_the_choices(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DDIM_PLUGINS", "none.py")
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 2 and capsys.readouterr().err.startswith("error: DDIM_PLUGINS=none.py is not a file")
    # Registered by the plugin, and gone after the test.
    monkeypatch.setattr("ddim.draw.load_plugins", lambda: monkeypatch.setitem(SAMPLERS, "mine", SAMPLERS["ddim"]))
    assert main(["a one", str(checkpoint), "--weights=raw", "--steps=2", "--number=1", "--sampler=mine"]) == 0


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"condition": {"words": [*WORDS, "a"], "caption_length": 6}}, "a vocabulary needs different lower-case words"),
        ({"condition": {"words": [*WORDS, 3], "caption_length": 6}}, "a vocabulary needs different lower-case words"),
        ({"condition": {"words": "a one", "caption_length": 6}}, "words=a one is no list of words."),
        ({"condition": {"words": WORDS}}, "caption_length=None is no whole number from 1 to 100000."),
        ({"condition": {"words": WORDS, "caption_length": "six"}}, "caption_length=six is no whole number"),
        ({"condition": {"words": WORDS, "caption_length": 5}}, "denoiser.caption_length=6 does not fit dataset captio"),
        ({"condition": {"words": [*WORDS, "b"], "caption_length": 6}}, "denoiser.num_words=5 does not fit dataset cap"),
        ({"schedule": {"name": "none"}}, "schedule="),
    ],
)
def test_a_header_that_disagrees_is_one_sentence(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], changed: dict[str, object], sentence: str
) -> None:
    saved = torch.load(checkpoint, weights_only=True)
    saved["ddim"]["config"] |= changed
    damaged = tmp_path / "damaged.ckpt"
    torch.save(saved, damaged)
    with pytest.raises(SystemExit) as ended:
        main(["a one", str(damaged), "--weights=raw", "--steps=2", f"--output={tmp_path / 'never.png'}"])
    said = capsys.readouterr().err
    assert (
        ended.value.code == 2 and said.startswith(f"error: {damaged} is damaged: {sentence}") and said.count("\n") == 1
    )


def test_a_network_without_captions_is_refused(tmp_path: Path) -> None:
    unet = UNet(in_channels=1, resolution=8, base_channels=8, channel_mult=[1, 2], norm_groups=4)
    config = {"dataset": {"name": "digits"}, "denoiser": {"name": "unet", **unet.config}, "schedule": SCHEDULE}
    state = {f"denoiser.{name}": value for name, value in unet.state_dict().items()}
    torch.save({"ddim": describe(config), "state_dict": state}, tmp_path / "plain.ckpt")
    with pytest.raises(UserError, match=r"plain.ckpt reads no captions; one that does is trained by `python train.py"):
        draw(open_pretrained(tmp_path / "plain.ckpt"), "a one", SamplerConfig(2, 0.0), weights="raw")
