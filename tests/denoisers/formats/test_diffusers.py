"""Models that diffusers itself wrote: read back they are the same function, or refused naming what differs."""

from __future__ import annotations

import inspect
import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ddim.denoisers.formats.contents import UNSTATED
from ddim.denoisers.formats.diffusers_config import SCHEDULER_DEFAULTS, SCHEDULERS, UNET_DEFAULTS, denoiser_config
from ddim.denoisers.pretrained import load_denoiser, open_pretrained
from ddim.diffusion import NoiseSchedule
from ddim.errors import UserError

diffusers = pytest.importorskip("diffusers")
WEIGHTS = "diffusion_pytorch_model"

# google/ddpm-cifar10-32 as it was published.
CIFAR10: dict[str, Any] = {
    "_class_name": "UNet2DModel",
    "_diffusers_version": "0.0.4",
    "act_fn": "silu",
    "attention_head_dim": None,
    "block_out_channels": [128, 256, 256, 256],
    "center_input_sample": False,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "in_channels": 3,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-06,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 32,
    "time_embedding_type": "positional",
    "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
}
CASES: dict[str, dict[str, Any]] = {
    "cifar10-like": {**CIFAR10, "block_out_channels": [32, 64, 64, 64]},
    "grey, one block, no attention, one group": {
        **CIFAR10,
        "in_channels": 1,
        "out_channels": 1,
        "layers_per_block": 1,
        "norm_num_groups": 1,
        "block_out_channels": [8, 16],
        "down_block_types": ["DownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "UpBlock2D"],
        "sample_size": None,
    },
    "attention at two of three levels, three blocks, dropout": {
        **CIFAR10,
        "layers_per_block": 3,
        "norm_num_groups": 8,
        "block_out_channels": [16, 32, 48],
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"],
        "up_block_types": ["AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
        "sample_size": [16, 16],
        "dropout": 0.1,
    },
    "one level, one head named by its width": {
        **CIFAR10,
        "norm_num_groups": 4,
        "block_out_channels": [8],
        "down_block_types": ["AttnDownBlock2D"],
        "up_block_types": ["AttnUpBlock2D"],
        "attention_head_dim": 8,
        "sample_size": 16,
    },
}
SMALL = CASES["grey, one block, no attention, one group"]


def unet_2d(config, seed=0):
    """A diffusers model with random weights, none of them zero."""
    model = diffusers.UNet2DModel(**{key: value for key, value in config.items() if not key.startswith("_")}).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 0.7 / math.sqrt(parameter[0].numel()) if parameter.ndim > 1 else 0.1
            values = scale * torch.randn(parameter.shape, generator=generator)
            parameter.copy_(values + 1.0 if "norm" in name and name.endswith("weight") else values)
    return model


def assert_same_function(unet, model):
    generator = torch.Generator().manual_seed(1)
    shape = (2, unet.config["in_channels"], 16, 16)
    x, t = torch.randn(shape, generator=generator, dtype=torch.float64), torch.tensor([3, 871])
    assert {parameter.dtype for parameter in unet.parameters()} == {torch.float32} and not unet.training
    with torch.inference_mode():
        expected, found = model.double()(x, t).sample, unet.double()(x, t)
    assert expected.std() > 0.1
    assert (found - expected).abs().max() <= 1e-9 * expected.abs().max()


def rewrite(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text())
    for key, value in changes.items():
        if value is ...:
            del content[key]
        else:
            content[key] = value
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("case", CASES)
def test_a_model_that_diffusers_saved(tmp_path, case):
    model = unet_2d(CASES[case])
    model.save_pretrained(tmp_path / "model")
    found = open_pretrained(tmp_path / "model")
    assert (found.origin, found.format) == (str(tmp_path / "model"), "diffusers")
    assert found.schedule is None and found.dataset is None and list(found.states) == [UNSTATED]
    assert json.loads(json.dumps(found.denoiser)) == found.denoiser
    assert_same_function(found.build(), model)


@pytest.mark.parametrize("pipeline", ["DDPMPipeline", "DDIMPipeline"])
def test_a_pipeline_that_diffusers_saved(tmp_path, pipeline):
    model = unet_2d(SMALL)
    scheduler = getattr(diffusers, pipeline.replace("Pipeline", "Scheduler"))(num_train_timesteps=400, beta_end=0.03)
    getattr(diffusers, pipeline)(model, scheduler).save_pretrained(tmp_path / "pipeline")
    found = open_pretrained(tmp_path / "pipeline")
    assert found.schedule == {"name": "linear", "num_timesteps": 400, "beta_start": 0.0001, "beta_end": 0.03}
    assert_same_function(found.build(), model)
    assert open_pretrained(tmp_path / "pipeline" / "unet").schedule is None


def published(directory: Path, model: Any, legacy: bool, spatial: bool = False) -> None:
    """Write `model` as in 2022: everything in one folder, pickled, old names in the attention layers."""
    directory.mkdir()
    (directory / "config.json").write_text(
        json.dumps({**CIFAR10, **{k: model.config[k] for k in CIFAR10 if k in model.config}})
    )
    index = {"_class_name": "DDPMPipeline", "_diffusers_version": "0.1.1", "unet": ["diffusers", "UNet2DModel"]}
    (directory / "model_index.json").write_text(json.dumps({**index, "scheduler": ["diffusers", "DDPMScheduler"]}))
    scheduler = {
        "_class_name": "DDPMScheduler",
        "_diffusers_version": "0.1.1",
        "beta_end": 0.02,
        "beta_schedule": "linear",
        "beta_start": 0.0001,
        "clip_sample": True,
        "num_train_timesteps": 1000,
        "trained_betas": None,
        "variance_type": "fixed_large",
    }
    (directory / "scheduler_config.json").write_text(json.dumps(scheduler))
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = {}
    for name, value in model.state_dict().items():
        for new, old in names.items():
            name = name.replace(new, old)
        projection = spatial and "attentions" in name and value.ndim == 2
        state[name] = value[:, :, None, None] if projection else value
    assert any(".query." in name for name in state) and not any(".to_q." in name for name in state)
    torch.save(state, directory / f"{WEIGHTS}.bin", _use_new_zipfile_serialization=not legacy)


@pytest.mark.parametrize(("legacy", "spatial"), [(False, False), (True, False), (False, True)])
def test_a_repository_of_2022(tmp_path, legacy, spatial):
    model = unet_2d(CASES["cifar10-like"])
    published(tmp_path / "old", model, legacy, spatial)
    found = open_pretrained(tmp_path / "old")
    assert found.schedule == {"name": "linear", "num_timesteps": 1000, "beta_start": 0.0001, "beta_end": 0.02}
    assert_same_function(found.build(), model)


def test_the_published_cifar10_network_is_ours(tmp_path):
    model = unet_2d(CIFAR10)
    published(tmp_path / "ddpm-cifar10-32", model, legacy=False)
    found = open_pretrained(tmp_path / "ddpm-cifar10-32")
    assert found.denoiser == {
        "name": "unet",
        "in_channels": 3,
        "out_channels": 3,
        "resolution": 32,
        "base_channels": 128,
        "channel_mult": [1, 2, 2, 2],
        "num_res_blocks": 2,
        "attention_resolutions": [16],
        "dropout": 0.0,
        "norm_groups": 32,
    }
    unet = found.build()
    assert sum(parameter.numel() for parameter in unet.parameters()) == 35_746_307
    assert_same_function(unet, model)


def test_safetensors_are_preferred_to_pickled_weights(tmp_path):
    model = unet_2d(SMALL)
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / f"{WEIGHTS}.bin").write_bytes(b"not read")
    assert_same_function(load_denoiser(tmp_path / "model"), model)


def test_weights_that_diffusers_averaged_are_ema(tmp_path):
    from diffusers.training_utils import EMAModel

    raw, averaged = unet_2d(SMALL, seed=1), unet_2d(SMALL, seed=2)
    ema = EMAModel(averaged.parameters(), model_cls=diffusers.UNet2DModel, model_config=averaged.config)
    ema.save_pretrained(tmp_path / "step" / "unet_ema")
    found = open_pretrained(tmp_path / "step" / "unet_ema")
    assert list(found.states) == ["ema"]
    assert_same_function(found.build(), averaged)
    with pytest.raises(UserError, match="holds no raw weights"):
        found.build("raw")

    raw.save_pretrained(tmp_path / "step" / "unet")
    both = open_pretrained(tmp_path / "step")
    assert set(both.states) == {"ema", "raw"}
    assert_same_function(both.build("ema"), unet_2d(SMALL, seed=2))
    assert_same_function(both.build("raw"), raw)


def test_two_networks_in_one_folder(tmp_path):
    unet_2d(SMALL).save_pretrained(tmp_path / "unet")
    unet_2d({**SMALL, "layers_per_block": 2}).save_pretrained(tmp_path / "unet_ema")
    with pytest.raises(UserError, match="holds two different networks, unet_ema and unet"):
        open_pretrained(tmp_path)


def test_our_defaults_are_those_of_diffusers():
    signature = inspect.signature(diffusers.UNet2DModel.__init__).parameters
    theirs = {name: parameter.default for name, parameter in signature.items() if name != "self"}
    assert {name: list(value) if isinstance(value, tuple) else value for name, value in theirs.items()} == UNET_DEFAULTS
    for scheduler in SCHEDULERS:
        parameters = inspect.signature(getattr(diffusers, scheduler).__init__).parameters
        assert all(
            parameters[key].default == SCHEDULER_DEFAULTS[key] for key in SCHEDULER_DEFAULTS if key in parameters
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_class_name": "UNet2DConditionModel"}, "_class_name is 'UNet2DConditionModel' instead of 'UNet2DModel'"),
        ({"attention_head_dim": 8}, "attention_head_dim is 8 instead of None"),
        ({"attention_head_dim": ...}, "attention_head_dim is 8 .by default. instead of None"),
        ({"attention_head_dim": [16]}, "attention_head_dim is .16. instead of None"),
        ({"flip_sin_to_cos": True}, "flip_sin_to_cos is True instead of False"),
        ({"flip_sin_to_cos": ...}, "flip_sin_to_cos is True .by default. instead of False"),
        ({"freq_shift": 0}, "freq_shift is 0 instead of 1"),
        ({"downsample_padding": 1}, "downsample_padding is 1 instead of 0"),
        ({"norm_eps": 1e-5}, "norm_eps is 1e-05 instead of 1e-06"),
        ({"act_fn": "gelu"}, "act_fn is 'gelu' instead of 'silu'"),
        ({"center_input_sample": True}, "center_input_sample is True instead of False"),
        ({"time_embedding_type": "fourier"}, "time_embedding_type is 'fourier' instead of 'positional'"),
        ({"time_embedding_dim": 64}, "time_embedding_dim is 64 instead of 32"),
        ({"mid_block_type": None}, "mid_block_type is None instead of 'UNetMidBlock2D'"),
        ({"mid_block_scale_factor": 1.5}, "mid_block_scale_factor is 1.5 instead of 1"),
        ({"downsample_type": "resnet"}, "downsample_type is 'resnet' instead of 'conv'"),
        ({"upsample_type": "resnet"}, "upsample_type is 'resnet' instead of 'conv'"),
        ({"resnet_time_scale_shift": "scale_shift"}, "resnet_time_scale_shift is 'scale_shift' instead of 'default'"),
        ({"add_attention": False}, "add_attention is False instead of True"),
        ({"class_embed_type": "timestep"}, "class_embed_type is 'timestep' instead of None"),
        ({"num_class_embeds": 0}, "num_class_embeds is 0 instead of a positive integer or None"),
        ({"attn_norm_num_groups": 4}, "attn_norm_num_groups is 4 instead of 1"),
        ({"down_block_types": ["DownBlock2D", "SkipDownBlock2D"]}, r"down_block_types\[1\] is 'SkipDownBlock2D'"),
        ({"up_block_types": ["AttnUpBlock2D", "UpBlock2D"]}, "up_block_types has attention at other levels"),
        ({"up_block_types": ["UpBlock2D"]}, r"up_block_types is \['UpBlock2D'\] instead of a list of 2 names"),
        ({"block_out_channels": [8, 12]}, r"block_out_channels\[1\] is 12, no multiple of the first, 8"),
        ({"block_out_channels": 8}, "block_out_channels is 8 instead of a list of positive integers"),
        ({"layers_per_block": [1, 2]}, r"layers_per_block is \[1, 2\] instead of a positive integer"),
        (
            {"layers_per_block": 10**9},
            "holds .* tensors, too few for the denoiser it describes: 2 levels with 1000000000 blocks each",
        ),
        ({"norm_num_groups": 3}, "norm_groups 3 must divide every level's channels"),
        ({"sample_size": [16, 32]}, r"sample_size is \[16, 32\] instead of one positive integer"),
        ({"sample_size": 15}, "resolution 15 must be divisible by 2"),
        ({"dropout": "much"}, "dropout must be a number"),
        ({"block_out_channels": [8, 10**30 * 8]}, "cannot be built"),
        ({"rotary": True}, "rotary .=True. is not known"),
        (
            {"freq_shift": 0, "downsample_padding": 1, "norm_eps": 0.1, "act_fn": "gelu"},
            "freq_shift is 0 instead of 1, downsample_padding is 1 instead of 0, norm_eps is 0.1 .* and 1 more$",
        ),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_networks_that_ours_cannot_represent(tmp_path, change, message):
    unet_2d(SMALL).save_pretrained(tmp_path / "model")
    rewrite(tmp_path / "model" / "config.json", **change)
    with pytest.raises(UserError, match=message) as caught:
        open_pretrained(tmp_path / "model")
    assert str(tmp_path / "model") in str(caught.value) and "\n" not in str(caught.value)


def test_every_default_of_diffusers_that_matters_is_noticed():
    with pytest.raises(UserError, match=r"freq_shift is 0 .by default. instead of 1, flip_sin_to_cos .* and 2 more$"):
        denoiser_config({}, "X")


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({}, {"name": "linear", "num_timesteps": 1000, "beta_start": 0.0001, "beta_end": 0.02}),
        (
            {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "num_train_timesteps": 500},
            {"name": "scaled_linear", "num_timesteps": 500, "beta_start": 0.00085, "beta_end": 0.012},
        ),
        ({"beta_schedule": "squaredcos_cap_v2"}, {"name": "cosine", "num_timesteps": 1000}),
    ],
)
def test_schedules_have_the_alpha_bar_of_diffusers(tmp_path, theirs, ours):
    unet_2d(SMALL).save_pretrained(tmp_path)
    scheduler = diffusers.DDPMScheduler(**theirs)
    scheduler.save_pretrained(tmp_path)
    found = open_pretrained(tmp_path).schedule
    assert found == ours
    alpha_bar = NoiseSchedule.from_name(**found).alpha_bar
    assert (alpha_bar - scheduler.alphas_cumprod.double()).abs().max() < 1e-6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"_class_name": "ScoreSdeVeScheduler"},
            "_class_name is 'ScoreSdeVeScheduler' instead of one of DDIMScheduler",
        ),
        ({"prediction_type": "flow"}, "prediction_type is .flow. instead of one of epsilon, sample, v_prediction"),
        ({"trained_betas": [0.1, 0.2]}, "trained_betas is a list of numbers instead of a named beta_schedule"),
        ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr is True instead of False"),
        (
            {"beta_schedule": "sigmoid"},
            "beta_schedule is 'sigmoid' instead of one of linear, scaled_linear, squaredcos",
        ),
        ({"beta_schedule": ["linear"]}, "beta_schedule is .'linear'. instead of"),
        ({"beta_start": "low"}, "beta_start and beta_end are 'low' and 0.02 instead of"),
        ({"beta_end": 10**400}, "beta_start and beta_end are"),
        ({"num_train_timesteps": 0}, "num_train_timesteps is 0 instead of a positive integer"),
        (
            {"trained_betas": [0.1], "_ddim_schedule": {"name": "sigmoid", "num_timesteps": 3}},
            "trained_betas is a list",
        ),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_schedulers_that_cannot_be_used(tmp_path, change, message):
    unet_2d(SMALL).save_pretrained(tmp_path)
    diffusers.DDIMScheduler().save_pretrained(tmp_path / "scheduler")
    rewrite(tmp_path / "scheduler" / "scheduler_config.json", **change)
    with pytest.raises(UserError, match=message):
        open_pretrained(tmp_path)


def drop_index_parts(directory: Path) -> None:
    rewrite(directory / "model_index.json", vqvae=["diffusers", "VQModel"])


def conditional(directory: Path) -> None:
    rewrite(directory / "model_index.json", unet=["diffusers", "UNet2DConditionModel"])


def only_index(directory: Path) -> None:
    (directory / "unet" / "config.json").unlink()


def no_weights(directory: Path) -> None:
    (directory / "unet" / f"{WEIGHTS}.safetensors").unlink()


def shards(directory: Path) -> None:
    no_weights(directory)
    (directory / "unet" / f"{WEIGHTS}.safetensors.index.json").write_text("{}")


def no_json(directory: Path) -> None:
    (directory / "unet" / "config.json").write_bytes(b"\xff{")


def json_list(directory: Path) -> None:
    (directory / "unet" / "config.json").write_text("[]")


def deep_json(directory: Path) -> None:
    (directory / "unet" / "config.json").write_text("[" * 100_000)


def cut_weights(directory: Path) -> None:
    path = directory / "unet" / f"{WEIGHTS}.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


def change_weights(directory: Path, change: Any) -> None:
    path = directory / "unet" / f"{WEIGHTS}.safetensors"
    state = load_file(path)
    change(state)
    save_file(state, path)


def renamed_weight(directory: Path) -> None:
    change_weights(
        directory, lambda state: state.update({"up_blocks.0.res.0.x": state.pop("up_blocks.0.resnets.0.conv1.bias")})
    )


def both_spellings(directory: Path) -> None:
    query = "mid_block.attentions.0.query.bias"
    change_weights(directory, lambda state: state.update({query: torch.zeros(16)}))


def other_shape(directory: Path) -> None:
    change_weights(directory, lambda state: state.update({"mid_block.attentions.0.to_q.weight": torch.zeros(16, 8)}))


def pickled_payload(directory: Path) -> None:
    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(directory.parent / "executed"),)

    no_weights(directory)
    torch.save({"conv_in.weight": Payload()}, directory / "unet" / f"{WEIGHTS}.bin")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (drop_index_parts, "is not a pipeline of one UNet2DModel .* has also vqvae"),
        (conditional, "has .'diffusers', 'UNet2DConditionModel'. as unet"),
        (only_index, "holds neither unet.config.json nor config.json"),
        (no_weights, f"holds no weights beside its config.json: neither {WEIGHTS}.safetensors nor {WEIGHTS}.bin"),
        (shards, "are split into several files"),
        (no_json, "config.json in .* cannot be read as JSON"),
        (json_list, "config.json in .* is not a JSON object"),
        (deep_json, "config.json in .* cannot be read as JSON"),
        (cut_weights, f"{WEIGHTS}.safetensors in .* is damaged"),
        (renamed_weight, r"up_blocks\.0\.resnets\.0\.conv1\.bias is missing, up_blocks\.0\.res\.0\.x is not expected$"),
        (both_spellings, r"mid_block\.attentions\.0\.(query|to_q)\.bias is not expected$"),
        (other_shape, r"mid_block\.attentions\.0\.to_q\.weight has shape \(16, 8\) instead of \(16, 16\)$"),
        (pickled_payload, r"diffusion_pytorch_model\.bin is not a checkpoint.*\(it asks for (posix|nt)\.mkdir"),
    ],
)
def test_incomplete_and_damaged_directories(tmp_path, damage, message):
    directory = tmp_path / "pipeline"
    diffusers.DDIMPipeline(unet_2d(SMALL), diffusers.DDIMScheduler()).save_pretrained(directory)
    damage(directory)
    with pytest.raises(UserError, match=message) as caught:
        open_pretrained(directory)
    assert str(directory) in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "executed").exists()


def test_a_weights_file_without_its_directory(tmp_path):
    unet_2d(SMALL).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"safetensors does not describe its network; give the .* directory"):
        open_pretrained(tmp_path / f"{WEIGHTS}.safetensors")
