"""What the export writes, as diffusers itself reads it: the same network, the same schedule, the same images."""

from __future__ import annotations

import json
import logging
import math
import re
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from ddim.denoisers import UNet
from ddim.denoisers.pretrained import load_denoiser, open_pretrained
from ddim.diffusion import NoiseSchedule, predict_x0, sample, select_timesteps
from ddim.errors import UserError
from ddim.export import export, main

diffusers = pytest.importorskip("diffusers")

UNETS: dict[str, dict[str, Any]] = {
    "cifar10-like": {"base_channels": 32, "resolution": 32, "dropout": 0.1},
    "grey, no attention": {
        "in_channels": 1,
        "resolution": 8,
        "base_channels": 8,
        "channel_mult": [1, 2],
        "num_res_blocks": 1,
        "attention_resolutions": [],
        "norm_groups": 4,
    },
    "attention at two of three levels": {
        "resolution": 16,
        "base_channels": 16,
        "channel_mult": [1, 2, 3],
        "num_res_blocks": 1,
        "attention_resolutions": [8, 4],
        "norm_groups": 8,
    },
    "one level, three blocks": {
        "resolution": 8,
        "base_channels": 8,
        "channel_mult": [1],
        "num_res_blocks": 3,
        "attention_resolutions": [8],
        "norm_groups": 2,
    },
}
SMALL = "grey, no attention"
SCHEDULES: dict[str, dict[str, Any]] = {
    "linear": {"name": "linear", "num_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02},
    "scaled_linear": {"name": "scaled_linear", "num_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012},
    "cosine": {"name": "cosine", "num_timesteps": 1000, "s": 0.008, "max_beta": 0.999},
    "another cosine": {"name": "cosine", "num_timesteps": 500, "s": 0.02, "max_beta": 0.99},
    "sigmoid": {"name": "sigmoid", "num_timesteps": 1000, "start": -3.0, "end": 3.0, "tau": 1.0},
}


def random_unet(config: dict[str, Any], seed: int = 0) -> UNet:
    """A network with random weights, none of them zero, in eval mode."""
    unet = UNet(**config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            scale = 0.7 / math.sqrt(parameter[0].numel()) if parameter.ndim > 1 else 0.1
            values = scale * torch.randn(parameter.shape, generator=generator)
            parameter.copy_(values + 1.0 if "norm" in name and name.endswith("weight") else values)
    return unet


def write_run(
    directory: Path, unet: UNet, schedule: dict[str, Any], raw: UNet | None = None, predicts: str = "eps"
) -> Path:
    """A run directory of this project."""
    checkpoint: dict[str, Any] = {
        "state_dict": {f"denoiser.{name}": value for name, value in unet.state_dict().items()},
        "ddim": {
            "format": 1,
            "config": {
                "dataset": {"name": "digits"},
                "denoiser": {"name": "unet", **unet.config},
                "schedule": schedule,
            },
        },
    }
    if predicts != "eps":
        checkpoint["ddim"]["config"]["objective"] = {"predicts": predicts}
    if raw is not None:
        checkpoint["current_model_state"] = {f"denoiser.{name}": value for name, value in raw.state_dict().items()}
    (directory / "checkpoints").mkdir(parents=True)
    torch.save(checkpoint, directory / "checkpoints" / "last.ckpt")
    return directory


@pytest.fixture
def load_quietly(caplog):
    """`DDIMPipeline.from_pretrained` that fails on any remark of diffusers."""
    diffusers.utils.logging.enable_propagation()
    diffusers.utils.logging.disable_progress_bar()

    def load(directory: Path):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            pipeline = diffusers.DDIMPipeline.from_pretrained(directory, low_cpu_mem_usage=False)
        assert [record.getMessage() for record in caplog.records] == []
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    yield load
    diffusers.utils.logging.disable_propagation()


@pytest.mark.parametrize("case", UNETS)
def test_diffusers_loads_the_same_network_and_we_read_it_back(tmp_path, load_quietly, case):
    ema, raw = random_unet(UNETS[case], 1), random_unet(UNETS[case], 2)
    run = write_run(tmp_path / "run", ema, SCHEDULES["linear"], raw)
    for weights, unet in (("ema", ema), ("raw", raw)):
        written = export(open_pretrained(run), tmp_path / weights, weights)
        assert sorted(written) == sorted(file for file in (tmp_path / weights).rglob("*") if file.is_file())
        theirs = load_quietly(tmp_path / weights).unet
        assert sum(p.numel() for p in theirs.parameters()) == sum(p.numel() for p in unet.parameters())
        generator = torch.Generator().manual_seed(3)
        size = unet.config["resolution"]
        x = torch.randn(2, unet.config["in_channels"], size, size, generator=generator, dtype=torch.float64)
        t = torch.tensor([3, 871])
        back = open_pretrained(tmp_path / weights)
        assert back.build(weights).config == unet.config and back.schedule == SCHEDULES["linear"]
        assert list(back.states) == [weights]
        with torch.inference_mode():
            expected = unet.double()(x, t)
            assert (theirs.double()(x, t).sample - expected).abs().max() <= 1e-9 * expected.abs().max()
            assert torch.equal(back.build(weights).double()(x, t), expected)


@pytest.mark.parametrize("predicts", ["eps", "x0", "v"])
def test_what_the_network_predicts_goes_along(tmp_path, load_quietly, predicts):
    unet = random_unet(UNETS[SMALL], 1)
    exported = tmp_path / "exported"
    export(open_pretrained(write_run(tmp_path / "run", unet, SCHEDULES["linear"], predicts=predicts)), exported, "raw")
    pipeline = load_quietly(exported)
    assert (
        pipeline.scheduler.config.prediction_type == {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}[predicts]
    )
    back = open_pretrained(exported)
    assert back.predicts == predicts
    # A step of diffusers' own from the network's words, and one of ours from load_denoiser's eps.
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    pipeline.scheduler.set_timesteps(10)
    with torch.inference_mode():
        said = pipeline.unet.double()(x, torch.tensor([900, 900])).sample
        theirs = pipeline.scheduler.step(said, 900, x).pred_original_sample
        eps = load_denoiser(exported, "raw").double()(x, torch.tensor([900, 900]))
        ours = predict_x0(x, eps, torch.tensor([900, 900]), NoiseSchedule.linear())
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_a_network_on_patches_is_diffusers_network_of_unshuffled_pixels(tmp_path, load_quietly):
    unet = random_unet({**UNETS["cifar10-like"], "resolution": 16, "attention_resolutions": [4], "patch": 2}, 1)
    exported = tmp_path / "exported"
    export(open_pretrained(write_run(tmp_path / "run", unet, SCHEDULES["linear"])), exported, "raw")
    theirs = load_quietly(exported).unet.double()
    x, t = torch.randn(2, 3, 16, 16, dtype=torch.float64), torch.tensor([3, 871])
    back = open_pretrained(exported)
    with torch.inference_mode():
        expected = torch.pixel_shuffle(theirs(torch.pixel_unshuffle(x, 2), t).sample, 2)
        assert (unet.double()(x, t) - expected).abs().max() <= 1e-9 * expected.abs().max()
        assert torch.equal(back.build("raw").double()(x, t), unet.double()(x, t))
    assert back.build("raw").config == unet.config


def test_half_the_size(tmp_path, load_quietly):
    unet = random_unet(UNETS[SMALL], 1)
    run = write_run(tmp_path / "run", unet, SCHEDULES["linear"])
    sizes = {}
    for half in (False, True):
        files = export(open_pretrained(run), tmp_path / f"half-{half}", "raw", half=half)
        sizes[half] = sum(file.stat().st_size for file in files if file.suffix == ".safetensors")
    assert sizes[True] < 0.6 * sizes[False]
    back = open_pretrained(tmp_path / "half-True").build("raw")
    theirs = load_quietly(tmp_path / "half-True").unet
    x, t = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(3)), torch.tensor([3, 871])
    with torch.inference_mode():
        expected, found = unet(x, t), back(x, t)
        torch.testing.assert_close(theirs(x, t).sample, found, rtol=1e-4, atol=1e-5)
    assert found.dtype == torch.float32
    assert 0 < (found - expected).abs().max() < 0.02 * expected.abs().max()


@pytest.mark.parametrize(
    ("file", "change", "remark"),
    [
        ("unet/config.json", {"unknown": 1}, "not expected and will be ignored"),
        ("scheduler/scheduler_config.json", {"unknown": 1}, "not expected and will be ignored"),
        (
            "unet/config.json",
            {"down_block_types": ["DownBlock2D", "AttnDownBlock2D"]},
            "were not initialized from the model checkpoint",
        ),
    ],
)
def test_diffusers_would_remark_on_what_does_not_fit(tmp_path, load_quietly, file, change, remark):
    run = write_run(tmp_path / "run", random_unet(UNETS[SMALL]), SCHEDULES["linear"])
    export(open_pretrained(run), tmp_path / "out", "raw")
    content = json.loads((tmp_path / "out" / file).read_text())
    (tmp_path / "out" / file).write_text(json.dumps(content | change))
    with pytest.raises(AssertionError, match=remark):
        load_quietly(tmp_path / "out")


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("case", SCHEDULES)
def test_diffusers_draws_the_same_images_from_the_same_latents(tmp_path, load_quietly, case, eta):
    schedule = NoiseSchedule.from_name(**SCHEDULES[case])
    unet = random_unet(UNETS[SMALL])
    export(open_pretrained(write_run(tmp_path / "run", unet, SCHEDULES[case])), tmp_path / "out", "raw")
    pipeline = load_quietly(tmp_path / "out")
    assert (pipeline.scheduler.alphas_cumprod.double() - schedule.alpha_bar).abs().max() < 1e-6

    timesteps = select_timesteps(schedule.num_timesteps, 10, "linear")
    pipeline.scheduler.set_timesteps(10)
    assert pipeline.scheduler.timesteps.tolist() == timesteps.flip(0).tolist()
    steps = len(timesteps)
    generator = torch.Generator().manual_seed(5)
    x = theirs = torch.randn(4, 1, 8, 8, generator=generator)
    noise = torch.randn(steps, 4, 1, 8, 8, generator=generator)
    with torch.inference_mode():
        for step, t in enumerate(pipeline.scheduler.timesteps):
            eps = pipeline.unet(theirs, t).sample
            drawn = noise[step] if eta else None
            theirs = pipeline.scheduler.step(eps, t, theirs, eta=eta, variance_noise=drawn).prev_sample
        order = iter(range(steps))
        ours = sample(unet, x, schedule, timesteps, eta=eta, noise=lambda *_: noise[next(order)])
    assert ours.std() > 0.1
    # Nothing is clipped and these networks were never trained, so x_0 is large: relative to its size.
    assert (ours - theirs).abs().max() <= 1e-5 * ours.abs().max()


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_the_pipeline_itself_gives_our_images(tmp_path, load_quietly, eta):
    mild = {"name": "linear", "num_timesteps": 1000, "beta_start": 1e-4, "beta_end": 1e-3}
    unet = random_unet(UNETS["attention at two of three levels"])
    export(open_pretrained(write_run(tmp_path / "run", unet, mild)), tmp_path / "out", "raw")
    pipeline = load_quietly(tmp_path / "out")
    seeded = torch.Generator().manual_seed(7)
    theirs = pipeline(
        batch_size=2, generator=seeded, eta=eta, num_inference_steps=10, output_type="pt", return_dict=False
    )[0]

    seeded = torch.Generator().manual_seed(7)
    x_T = torch.randn(2, 3, 16, 16, generator=seeded)
    schedule = NoiseSchedule.from_name(**mild)
    with torch.inference_mode():
        ours = sample(
            unet,
            x_T,
            schedule,
            select_timesteps(1000, 10, "linear"),
            eta=eta,
            noise=lambda step, x: torch.randn(x.shape, generator=seeded),
        )
    assert ours.clamp(-1, 1).ne(ours).float().mean() < 0.6
    assert ((ours / 2 + 0.5).clamp(0, 1) - theirs).abs().max() <= 1e-4


@pytest.mark.parametrize("case", SCHEDULES)
def test_every_schedule_is_read_back(tmp_path, case):
    run = write_run(tmp_path / "run", random_unet(UNETS[SMALL]), SCHEDULES[case])
    export(open_pretrained(run), tmp_path / "out", "raw")
    back = open_pretrained(tmp_path / "out").schedule
    assert back is not None
    assert NoiseSchedule.from_name(**back) == NoiseSchedule.from_name(**SCHEDULES[case])
    config = json.loads((tmp_path / "out" / "scheduler" / "scheduler_config.json").read_text())
    assert (config["trained_betas"] is None) is (case in ("linear", "scaled_linear", "cosine"))
    assert config["clip_sample"] is False and config["set_alpha_to_one"] is True and config["steps_offset"] == 0
    assert config["timestep_spacing"] == "leading" and config["prediction_type"] == "epsilon"


def test_the_command_line(tmp_path, capsys):
    run = write_run(tmp_path / "run", random_unet(UNETS[SMALL], 1), SCHEDULES["linear"], random_unet(UNETS[SMALL], 2))
    out = tmp_path / "new" / "out"
    main([str(run), str(out)])
    printed = capsys.readouterr().out
    assert f"Wrote the ema weights of {run / 'checkpoints' / 'last.ckpt'}:" in printed
    assert all(str(file) in printed for file in out.rglob("*") if file.is_file())
    assert "does not state its schedule" not in printed
    code = "\n".join(line.strip() for line in printed.splitlines()[-2:])
    namespace: dict[str, Any] = {}
    exec(code.replace("batch_size=4, num_inference_steps=50", "batch_size=1, num_inference_steps=1"), namespace)
    assert namespace["images"][0].size == (8, 8)
    assert [child.name for child in out.parent.iterdir()] == ["out"]
    assert all(file.stat().st_mode & stat.S_IRUSR for file in out.rglob("*"))


def test_a_public_checkpoint_is_converted_and_its_schedule_assumed(tmp_path, capsys):
    from ddim.denoisers.formats.naming import file_name

    unet = random_unet({"base_channels": 32, "channel_mult": [1, 2], "num_res_blocks": 1, "dropout": 0.0})
    state = {file_name("official", name, 2): value for name, value in unet.state_dict().items()}
    torch.save(state, tmp_path / "official.pt")
    main([str(tmp_path / "official.pt"), str(tmp_path / "out")])
    printed = capsys.readouterr().out
    assert "official.pt does not state its schedule: took the linear one of DDPM" in printed
    assert "Wrote the unstated weights of" in printed
    back = open_pretrained(tmp_path / "out")
    assert back.schedule == SCHEDULES["linear"] and list(back.states) == ["unstated"]
    for name, value in back.build().state_dict().items():
        assert torch.equal(value, unet.state_dict()[name])


def occupied(path: Path) -> None:
    path.mkdir()
    (path / "precious.txt").write_text("kept")


def a_file(path: Path) -> None:
    path.write_text("kept")


@pytest.mark.parametrize(
    ("prepare", "arguments", "message"),
    [
        (occupied, [], r"out exists and is not empty; give a new directory, nothing is overwritten"),
        (a_file, [], r"out exists and is not empty"),
        (lambda path: None, ["--weights", "ema"], "holds no EMA weights; take the raw ones"),
        (lambda path: a_file(path.parent / "run2"), ["RUN=run2"], "run2 is not a checkpoint"),
        (lambda path: None, ["RUN=nowhere"], "nowhere does not exist"),
        (lambda path: a_file(path.parent / "file"), ["DIR=file/out"], "file/out cannot be (read|written)"),
    ],
)
def test_errors_are_one_sentence_and_lose_nothing(tmp_path, capsys, prepare, arguments, message):
    run = write_run(tmp_path / "run", random_unet(UNETS[SMALL]), SCHEDULES["linear"])
    prepare(tmp_path / "out")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    named = dict(argument.split("=") for argument in arguments if "=" in argument)
    rest = [argument for argument in arguments if "=" not in argument] or ["--weights", "raw"]
    source = tmp_path / named["RUN"] if "RUN" in named else run
    with pytest.raises(SystemExit) as caught:
        main([str(source), str(tmp_path / named.get("DIR", "out")), *rest])
    printed = capsys.readouterr()
    assert caught.value.code == 2 and printed.out == ""
    assert printed.err.startswith("error: ") and printed.err.count("\n") == 1
    assert re.search(message, printed.err)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_failure_halfway_leaves_nothing(tmp_path, monkeypatch):
    run = write_run(tmp_path / "run", random_unet(UNETS[SMALL]), SCHEDULES["linear"])

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ddim.export.save", full)
    with pytest.raises(UserError, match=r"out cannot be written .No space left on device."):
        export(open_pretrained(run), tmp_path / "out", "raw")
    assert [child.name for child in tmp_path.iterdir()] == ["run"]
    monkeypatch.undo()
    (tmp_path / "out").mkdir()
    export(open_pretrained(run), tmp_path / "out", "raw")
    assert (tmp_path / "out" / "model_index.json").is_file()


def test_a_directory_in_use_is_left_alone(tmp_path):
    run = write_run(tmp_path / "run", random_unet(UNETS[SMALL]), SCHEDULES["linear"])
    occupied(tmp_path / "out")
    with pytest.raises(UserError, match="out exists and is not empty"):
        export(open_pretrained(run), tmp_path / "out", "raw")
    assert [file.read_text() for file in (tmp_path / "out").iterdir()] == ["kept"]


def test_a_schedule_that_cannot_be_built(tmp_path):
    run = write_run(tmp_path / "run", random_unet(UNETS[SMALL]), {"name": "linear", "beta_end": 2.0})
    with pytest.raises(UserError, match=r"the schedule .*beta_end.* cannot be built: 0 < beta_start"):
        export(open_pretrained(run), tmp_path / "out", "raw")
    assert not (tmp_path / "out").exists()


def test_it_runs_as_a_module_without_diffusers(tmp_path):
    run = write_run(tmp_path / "run", random_unet(UNETS[SMALL]), SCHEDULES["sigmoid"])
    code = (
        "import runpy, sys; sys.modules['diffusers'] = None; "
        f"sys.argv = ['export', {str(run)!r}, {str(tmp_path / 'out')!r}, '--weights', 'raw']; "
        "runpy.run_module('ddim.export', run_name='__main__'); "
        "assert not {'pytorch_lightning', 'hydra'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, capture_output=True)
    assert open_pretrained(tmp_path / "out").schedule is not None


def test_the_card_lies_beside_it_and_says_what_the_run_states(tmp_path, capsys, trained_run):
    from ddim.findings.card import CARD

    options = ["--license", "mit", "--machine", "two cores", "--hours", "0.1"]
    main([str(trained_run), str(tmp_path / "out"), *options])
    text = (tmp_path / "out" / CARD).read_text()
    # Four steps of 16 images.
    assert "Length: 4 optimizer steps, 64 images seen" in text and "license: mit" in text
    assert "Machine: two cores, 0.10 hours" in text and "decay 0.995" in text
    assert str(tmp_path / "out" / CARD) in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--license", "no licence"], "--license 'no licence' is no name"),
        (["--hours", "-1"], "--hours -1 must be a positive number"),
        (["--evaluation", "nowhere"], "no results.json or results.csv in 'nowhere'"),
        (["--push-to-hub", "name"], "--push-to-hub name is not the name of a model on the hub; give OWNER/NAME"),
        (["--push-to-hub", "a/b@main"], "--push-to-hub a/b@main is not the name"),
    ],
)
def test_a_card_that_cannot_be_written_is_one_sentence_and_nothing_is(tmp_path, capsys, options, message):
    run = write_run(tmp_path / "run", random_unet(UNETS[SMALL]), SCHEDULES["linear"])
    with pytest.raises(SystemExit) as caught:
        main([str(run), str(tmp_path / "out"), "--weights", "raw", *options])
    printed = capsys.readouterr()
    assert caught.value.code == 2 and printed.err.startswith("error: ") and message in printed.err
    assert printed.err.count("\n") == 1 and not (tmp_path / "out").exists()
