"""Checkpoints of this project: what is found, what is loaded, what is refused, and that nothing in them runs."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from ddim.denoisers import UNet
from ddim.denoisers.formats.own import read_checkpoint
from ddim.denoisers.pretrained import load_denoiser, open_pretrained
from ddim.diffusion import NoiseSchedule
from ddim.errors import UserError
from ddim.runs.locate import find_checkpoint

DENOISER: dict[str, Any] = {
    "in_channels": 1,
    "resolution": 8,
    "base_channels": 8,
    "channel_mult": [1, 2],
    "num_res_blocks": 1,
    "attention_resolutions": [4],
    "dropout": 0.1,
    "norm_groups": 4,
}


def random_unet(seed: int) -> UNet:
    torch.manual_seed(seed)
    unet = UNet(**DENOISER)
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.normal_(std=0.2)
    return unet.eval()


def prefixed(unet: UNet) -> dict[str, torch.Tensor]:
    return {f"denoiser.{name}": value for name, value in unet.state_dict().items()}


def checkpoint(*, state: UNet, raw: UNet | None = None) -> dict[str, Any]:
    result: dict[str, Any] = {
        "epoch": 3,
        "global_step": 100,
        "pytorch-lightning_version": "2.6.6",
        "state_dict": {**prefixed(state), "loss.weights": torch.ones(3)},
        "optimizer_states": [{"state": {0: {"step": torch.tensor(100.0)}}, "param_groups": [{"lr": 2e-4}]}],
        "ddim": {
            "format": 1,
            "config": {
                "dataset": {"name": "digits", "channels": 1, "resolution": 8},
                "denoiser": {"name": "unet", **DENOISER},
                "schedule": {"name": "linear", "num_timesteps": 1000},
            },
        },
    }
    if raw is not None:
        result["current_model_state"] = prefixed(raw)
    return result


@pytest.fixture
def run_directory(tmp_path: Path) -> Path:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    torch.save(checkpoint(state=random_unet(1), raw=random_unet(2)), tmp_path / "run" / "checkpoints" / "last.ckpt")
    return tmp_path / "run"


def output(unet: UNet) -> torch.Tensor:
    x = torch.linspace(-1, 1, 2 * 64).reshape(2, 1, 8, 8)
    with torch.inference_mode():
        return unet(x, torch.tensor([5, 900]))


@pytest.mark.parametrize(("weights", "seed"), [("ema", 1), ("raw", 2)])
@pytest.mark.parametrize("kind", ["directory", "file", "string"])
def test_ema_and_raw_weights_are_told_apart(run_directory, weights, seed, kind):
    source = {
        "directory": run_directory,
        "file": run_directory / "checkpoints" / "last.ckpt",
        "string": str(run_directory),
    }[kind]
    unet = load_denoiser(source, weights=weights)
    assert not unet.training
    assert all(not parameter.is_meta and parameter.requires_grad for parameter in unet.parameters())
    assert unet.config == random_unet(0).config
    assert torch.equal(output(unet), output(random_unet(seed)))


@pytest.mark.parametrize("predicts", ["eps", "x0", "v"])
def test_load_denoiser_gives_eps_whatever_the_network_predicts(tmp_path, predicts):
    contents = checkpoint(state=random_unet(4))
    contents["ddim"]["config"]["objective"] = {"predicts": predicts}
    torch.save(contents, tmp_path / "a.ckpt")
    opened = open_pretrained(tmp_path / "a.ckpt")
    assert opened.predicts == predicts
    x, t = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([3, 700])
    with torch.inference_mode():
        said, eps = random_unet(4)(x, t), load_denoiser(tmp_path / "a.ckpt", "raw")(x, t)
    alpha_bar = NoiseSchedule.linear().alpha_bar[t].float().reshape(-1, 1, 1, 1)
    signal, sigma = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    expected = {"eps": said, "x0": (x - signal * said) / sigma, "v": sigma * x + signal * said}[predicts]
    torch.testing.assert_close(eps, expected, rtol=1e-4, atol=1e-4)


def test_a_checkpoint_that_says_nothing_predicts_the_noise(run_directory):
    assert open_pretrained(run_directory).predicts == "eps"


@pytest.mark.parametrize("objective", [{"predicts": "score"}, {}, "v", {"predicts": ["v"]}])
def test_an_objective_that_is_none_is_refused(tmp_path, objective):
    contents = checkpoint(state=random_unet(4))
    contents["ddim"]["config"]["objective"] = objective
    torch.save(contents, tmp_path / "a.ckpt")
    with pytest.raises(UserError, match=r"a\.ckpt states objective\.predicts=.*; known are eps, x0, v"):
        open_pretrained(tmp_path / "a.ckpt")


def test_ema_is_the_default(run_directory):
    assert torch.equal(output(load_denoiser(run_directory)), output(random_unet(1)))


def test_a_run_without_ema_gives_raw_weights_and_never_calls_them_ema(tmp_path):
    torch.save(checkpoint(state=random_unet(4)), tmp_path / "a.ckpt")
    assert list(open_pretrained(tmp_path / "a.ckpt").states) == ["raw"]
    assert torch.equal(output(load_denoiser(tmp_path / "a.ckpt", weights="raw")), output(random_unet(4)))
    with pytest.raises(UserError, match=r"a\.ckpt holds no EMA weights"):
        load_denoiser(tmp_path / "a.ckpt", weights="ema")


def test_weights_saved_in_bfloat16_become_float32(tmp_path):
    torch.save(checkpoint(state=random_unet(4).to(torch.bfloat16)), tmp_path / "a.ckpt")
    unet = load_denoiser(tmp_path / "a.ckpt", weights="raw")
    assert {parameter.dtype for parameter in unet.parameters()} == {torch.float32}


def test_read_checkpoint_returns_all_of_it(run_directory):
    read = read_checkpoint(find_checkpoint(run_directory))
    assert read["ddim"]["config"]["schedule"] == {"name": "linear", "num_timesteps": 1000}
    assert read["global_step"] == 100


def test_what_a_checkpoint_of_ours_states(run_directory):
    found = open_pretrained(run_directory)
    assert (found.origin, found.format) == (str(run_directory / "checkpoints" / "last.ckpt"), "ddim")
    assert found.denoiser == {"name": "unet", **DENOISER}
    assert found.schedule == {"name": "linear", "num_timesteps": 1000}
    assert found.dataset == {"name": "digits", "channels": 1, "resolution": 8}
    assert {label: found.select(label) for label in found.states} == {"ema": "ema", "raw": "raw"}
    assert json.loads(json.dumps([found.denoiser, found.schedule, found.dataset]))


def test_a_configuration_given_instead_of_the_files_own(run_directory):
    found = open_pretrained(run_directory)
    larger = {**found.denoiser, "resolution": 16, "attention_resolutions": [8]}
    assert found.build(denoiser=larger).config["resolution"] == 16
    with pytest.raises(UserError, match=r"do not fit the denoiser that was asked for: down\.1\.downsample.* missing"):
        found.build(denoiser={**found.denoiser, "channel_mult": [1, 2, 2]})
    with pytest.raises(UserError, match="the denoiser that was asked for cannot be built: unknown denoiser keys depth"):
        found.build(denoiser={**found.denoiser, "depth": 3})


def test_unknown_kind_of_weights(run_directory):
    with pytest.raises(ValueError, match="weights must be one of ema, raw, got 'best'"):
        load_denoiser(run_directory, weights="best")


def test_missing_files_and_directories_without_checkpoint(tmp_path):
    with pytest.raises(UserError, match=r"nowhere does not exist; give a run directory or a \.ckpt file"):
        find_checkpoint(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"holds no checkpoints.last\.ckpt"):
        load_denoiser(tmp_path)
    with pytest.raises(UserError, match="not a file"):
        read_checkpoint(tmp_path)


class Payload:
    """Unpickled by an ordinary loader, this creates a directory."""

    def __init__(self, target: Path) -> None:
        self.target = str(target)

    def __reduce__(self):
        return os.mkdir, (self.target,)


def valid_bytes(tmp_path: Path) -> bytes:
    torch.save(checkpoint(state=random_unet(1)), tmp_path / "valid.ckpt")
    return (tmp_path / "valid.ckpt").read_bytes()


def write_text(path: Path) -> None:
    path.write_text("epoch,loss\n1,0.5\n" * 50)


def write_random(path: Path) -> None:
    path.write_bytes(bytes(torch.randint(0, 256, (5000,), generator=torch.Generator().manual_seed(0)).tolist()))


def write_truncated(path: Path) -> None:
    data = valid_bytes(path.parent)
    path.write_bytes(data[: len(data) // 2])


def write_bit_flip(path: Path) -> None:
    data = bytearray(valid_bytes(path.parent))
    weight = random_unet(1).state_dict()["middle.block1.conv1.weight"]
    position = data.index(weight.numpy().tobytes())
    data[position] ^= 1
    path.write_bytes(bytes(data))


def write_payload_archive(path: Path) -> None:
    torch.save({**checkpoint(state=random_unet(1)), "extra": Payload(path.parent / "executed")}, path)


def write_payload_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps({"state_dict": Payload(path.parent / "executed")}))


def write_payload_legacy(path: Path) -> None:
    torch.save({"state_dict": Payload(path.parent / "executed")}, path, _use_new_zipfile_serialization=False)


def write_payload_in_hyperparameters(path: Path) -> None:
    hyper = {"_instantiator": Payload(path.parent / "executed")}
    torch.save({**checkpoint(state=random_unet(1)), "hyper_parameters": hyper}, path)


def write_other_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", "not a checkpoint")


def write_list(path: Path) -> None:
    torch.save([1, 2, 3], path)


def write_other_state_dict(path: Path) -> None:
    torch.save(random_unet(1).state_dict(), path)


def write_future_format(path: Path) -> None:
    data = checkpoint(state=random_unet(1))
    data["ddim"]["format"] = 2
    torch.save(data, path)


def write_no_config(path: Path) -> None:
    data = checkpoint(state=random_unet(1))
    data["ddim"]["config"] = None
    torch.save(data, path)


def write_unknown_denoiser(path: Path) -> None:
    data = checkpoint(state=random_unet(1))
    data["ddim"]["config"]["denoiser"] = {"name": "os.system"}
    torch.save(data, path)


def write_other_width(path: Path) -> None:
    data = checkpoint(state=random_unet(1))
    data["ddim"]["config"]["denoiser"]["base_channels"] = 16
    torch.save(data, path)


def write_renamed_weight(path: Path) -> None:
    data = checkpoint(state=random_unet(1))
    data["state_dict"]["denoiser.conv_first.weight"] = data["state_dict"].pop("denoiser.conv_in.weight")
    torch.save(data, path)


def write_no_denoiser_weights(path: Path) -> None:
    torch.save({**checkpoint(state=random_unet(1)), "state_dict": {"loss.weights": torch.ones(3)}}, path)


def write_sparse_weight(path: Path) -> None:
    data = checkpoint(state=random_unet(1))
    data["state_dict"]["denoiser.conv_in.weight"] = data["state_dict"]["denoiser.conv_in.weight"].to_sparse()
    torch.save(data, path)


def write_no_state_dict(path: Path) -> None:
    data = checkpoint(state=random_unet(1))
    del data["state_dict"]
    torch.save(data, path)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("write", "message"),
    [
        (Path.touch, "is empty"),
        (write_text, "is not a checkpoint"),
        (write_random, "is not a checkpoint"),
        (write_truncated, "only the beginning of one"),
        (write_bit_flip, "is damaged .wrong checksum"),
        (write_payload_archive, "it asks for (posix|nt).mkdir"),
        (write_payload_pickle, "is not a checkpoint"),
        (write_payload_legacy, "it asks for (posix|nt).mkdir"),
        (write_payload_in_hyperparameters, "it asks for (posix|nt).mkdir"),
        (write_other_zip, "is not a checkpoint"),
        (
            write_list,
            "not a checkpoint of a known kind .it holds a list.; give a run directory or .ckpt of this project",
        ),
        (write_other_state_dict, "its first keys are time_embedding.linear1.weight, "),
        (write_future_format, "has format 2, this version reads format 1"),
        (write_no_config, "does not describe its denoiser"),
        (write_unknown_denoiser, "known denoisers: unet"),
        (write_other_width, r"has shape \(32, 8\) instead of \(64, 16\)"),
        (write_renamed_weight, "conv_in.weight is missing, conv_first.weight is not expected$"),
        (write_no_denoiser_weights, "holds no denoiser weights"),
        (write_no_state_dict, "holds no weights"),
        (write_sparse_weight, "is damaged: conv_in.weight is not an ordinary floating-point tensor"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_bad_files_are_refused_in_one_sentence_and_run_nothing(tmp_path, write, message):
    path = tmp_path / "bad.ckpt"
    write(path)
    with pytest.raises(UserError, match=message) as caught:
        load_denoiser(path, weights="raw")
    text = str(caught.value)
    assert str(path) in text and "\n" not in text and len(text) < 600
    assert not (tmp_path / "executed").exists()


def test_resuming_takes_only_our_own_checkpoints(tmp_path):
    write_other_state_dict(tmp_path / "other.pt")
    with pytest.raises(UserError, match=r'is not a checkpoint of this project .it has no "ddim" entry'):
        read_checkpoint(tmp_path / "other.pt")


def test_the_payload_would_run_in_an_ordinary_loader(tmp_path):
    write_payload_archive(tmp_path / "bad.ckpt")
    torch.load(tmp_path / "bad.ckpt", weights_only=False)
    assert (tmp_path / "executed").exists()
