"""Whatever the bytes of a file are, reading it ends in a denoiser or in one sentence, and runs nothing."""

from __future__ import annotations

import os
import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ddim.denoisers import UNet
from ddim.denoisers.formats.naming import file_name
from ddim.denoisers.pretrained import open_pretrained
from ddim.errors import UserError
from ddim.export import export

# As small as the official code's 32 groups allow, and with all kinds of layers.
CONFIG: dict[str, Any] = {
    "in_channels": 1,
    "resolution": 32,
    "base_channels": 32,
    "channel_mult": [1, 1],
    "num_res_blocks": 1,
    "attention_resolutions": [16],
}


@pytest.fixture(scope="module")
def intact(tmp_path_factory) -> dict[str, Path]:
    """One intact source of every kind, and for a directory the file in it that is to be damaged."""
    folder = tmp_path_factory.mktemp("intact")
    torch.manual_seed(0)
    unet = UNet(**CONFIG)
    config = {"denoiser": {"name": "unet", **unet.config}, "schedule": {"name": "sigmoid", "num_timesteps": 20}}
    own = {f"denoiser.{name}": value for name, value in unet.state_dict().items()}
    torch.save({"state_dict": own, "ddim": {"format": 1, "config": config}}, folder / "own.ckpt")
    official = {file_name("official", name, 2): value for name, value in unet.state_dict().items()}
    torch.save(official, folder / "official.pt")
    torch.save(official, folder / "legacy.pt", _use_new_zipfile_serialization=False)
    torch.save([official, {}, 1, 2, official], folder / "training.pth")
    export(open_pretrained(folder / "own.ckpt"), folder / "pipeline", weights="raw")
    theirs = {file_name("diffusers", name, 2): value for name, value in unet.state_dict().items()}
    (folder / "pickled").mkdir()
    (folder / "pickled" / "config.json").write_bytes((folder / "pipeline" / "unet" / "config.json").read_bytes())
    torch.save(theirs, folder / "pickled" / "diffusion_pytorch_model.bin", _use_new_zipfile_serialization=False)
    files = {name: folder / name for name in ("own.ckpt", "official.pt", "legacy.pt", "training.pth")}
    for name in ("model_index.json", "unet/config.json", "scheduler/scheduler_config.json"):
        files[f"pipeline/{name}"] = folder / "pipeline" / name
    files["safetensors"] = folder / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors"
    files["pickled"] = folder / "pickled" / "diffusion_pytorch_model.bin"
    return files


def source_of(file: Path) -> Path:
    return next((parent for parent in file.parents if parent.name in ("pipeline", "pickled")), file)


KINDS = (
    "own.ckpt",
    "official.pt",
    "legacy.pt",
    "training.pth",
    "pipeline/model_index.json",
    "pipeline/unet/config.json",
    "pipeline/scheduler/scheduler_config.json",
    "safetensors",
    "pickled",
)


@pytest.mark.parametrize("kind", KINDS)
def test_the_intact_ones_are_read(intact, kind):
    weights = "raw" if kind in ("own.ckpt", "safetensors") or "pipeline" in kind or kind == "pickled" else "ema"
    assert open_pretrained(source_of(intact[kind])).build(weights).config["channel_mult"] == [1, 1]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_flipped_and_missing_bytes_end_in_one_sentence_or_in_weights(intact, kind, data):
    file = intact[kind]
    original = file.read_bytes()
    damaged = bytearray(original)
    # The beginning and the end hold the structure, and most of the rest is weights.
    places = st.one_of(st.integers(0, min(3000, len(original) - 1)), st.integers(0, len(original) - 1))
    for place in data.draw(st.lists(places, max_size=4)):
        damaged[place] ^= data.draw(st.integers(1, 255))
    for place in data.draw(st.lists(st.integers(1, min(9000, len(original))), max_size=2)):
        damaged[-place] ^= data.draw(st.integers(1, 255))
    damaged = damaged[: data.draw(st.one_of(st.none(), places))]
    try:
        file.write_bytes(damaged)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = open_pretrained(source_of(file))
            found.build("raw" if "raw" in found.states else "ema")
    except UserError as error:
        assert str(error).isprintable() and len(str(error)) < 2000
    finally:
        file.write_bytes(original)


def test_what_a_message_quotes_from_a_file_stays_on_its_line(tmp_path, intact):
    official = torch.load(intact["official.pt"])
    torch.save({**official, "a\nb\x1b[31m" + "c" * 10_000: torch.zeros(1)}, tmp_path / "official.pt")
    torch.save({"a\nb" * 1000: 1}, tmp_path / "other.pt")
    own = torch.load(intact["own.ckpt"])
    torch.save({**own, "ddim": {**own["ddim"], "format": torch.zeros(20, 2)}}, tmp_path / "own.ckpt")
    for name in ("official.pt", "other.pt", "own.ckpt"):
        with pytest.raises(UserError) as caught:
            open_pretrained(tmp_path / name)
        assert str(caught.value).isprintable() and len(str(caught.value)) < 1000


class Payload:
    """Unpickled by an ordinary loader, this creates a directory."""

    def __init__(self, target: Path) -> None:
        self.target = str(target)

    def __reduce__(self):
        return os.mkdir, (self.target,)


@pytest.mark.parametrize("place", ["alone", "state dict", "training list", "own"])
@pytest.mark.parametrize("writing", ["zip", "legacy", "pickle"])
def test_nothing_in_a_file_is_executed(tmp_path, writing, place):
    payload = Payload(tmp_path / "executed")
    content = {
        "alone": payload,
        "state dict": {"temb.dense.0.weight": torch.zeros(2), "conv_in.weight": payload},
        "training list": [{"temb.dense.0.weight": torch.zeros(2)}, payload, 1, 2],
        "own": {"state_dict": {}, "ddim": {"format": 1, "config": payload}},
    }[place]
    path = tmp_path / "file.pt"
    if writing == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=writing == "zip")
    with pytest.raises(UserError, match=r"file\.pt is not a checkpoint.*nothing else is accepted"):
        open_pretrained(path)
    assert not (tmp_path / "executed").exists()
    if writing == "pickle":
        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)
    assert (tmp_path / "executed").exists(), "the payload is none"
