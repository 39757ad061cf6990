"""What a diffusers `config.json` of a UNet2DModel and a `scheduler_config.json` mean here, or why they cannot be used.

And what is written of a UNet of ours. Keys that a file leaves out have the defaults of diffusers' classes, which are
repeated here because diffusers need not be installed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ddim.denoisers.formats.contents import UNSTATED
from ddim.denoisers.formats.weights import refuse, resolution_of
from ddim.denoisers.unet import UNet

# diffusers notes here which version wrote a file; this is the oldest one our tests accept.
DIFFUSERS_VERSION = "0.35.0"
UNET_CLASS = "UNet2DModel"
UNET_DEFAULTS: dict[str, Any] = {
    "sample_size": None,
    "in_channels": 3,
    "out_channels": 3,
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "freq_shift": 0,
    "flip_sin_to_cos": True,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"],
    "mid_block_type": "UNetMidBlock2D",
    "up_block_types": ["AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [224, 448, 672, 896],
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "downsample_padding": 1,
    "downsample_type": "conv",
    "upsample_type": "conv",
    "dropout": 0.0,
    "act_fn": "silu",
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "attn_norm_num_groups": None,
    "norm_eps": 1e-5,
    "resnet_time_scale_shift": "default",
    "add_attention": True,
    "class_embed_type": None,
    "num_class_embeds": None,
    "num_train_timesteps": None,
}
# What our UNet is, in diffusers' words.
UNET_NEEDED: dict[str, Any] = {
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "freq_shift": 1,
    "flip_sin_to_cos": False,
    "mid_block_type": "UNetMidBlock2D",
    "mid_block_scale_factor": 1,
    "downsample_padding": 0,
    "downsample_type": "conv",
    "upsample_type": "conv",
    "norm_eps": 1e-6,
    "resnet_time_scale_shift": "default",
    "add_attention": True,
    "class_embed_type": None,
}
ACTIVATIONS = ("silu", "swish")
# Added to the configuration by EMAModel.save_pretrained.
EMA_KEYS = (
    "decay",
    "min_decay",
    "optimization_step",
    "update_after_step",
    "use_ema_warmup",
    "inv_gamma",
    "power",
)
# Written by our export and ignored by diffusers, as all keys with an underscore.
OUR_WEIGHTS_KEY = "_ddim_weights"
OUR_SCHEDULE_KEY = "_ddim_schedule"
OUR_PATCH_KEY = "_ddim_patch"
# Whether the last of num_class_embeds stands for no class; a file of others does not say, so that all are classes.
OUR_NULL_KEY = "_ddim_null_class"
SCHEDULER_DEFAULTS: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "prediction_type": "epsilon",
    "rescale_betas_zero_snr": False,
}
SCHEDULERS = ("DDIMScheduler", "DDPMScheduler", "PNDMScheduler")
PREDICTION_TYPES = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
SCHEDULES = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}


def denoiser_config(given: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """The configuration of our UNet that is the same function as diffusers' UNet2DModel of configuration `given`.

    Raises:
        UserError: there is none; the message names the first three keys that differ, with what is needed.
    """
    sentence = f"the UNet in {origin} is not one that the UNet of DDPM can represent"
    class_name = given.get("_class_name", UNET_CLASS)
    refuse([f"_class_name is {class_name!r} instead of {UNET_CLASS!r}"] if class_name != UNET_CLASS else [], sentence)
    config = {**UNET_DEFAULTS, **given}
    unknown = [key for key in given if not key.startswith("_") and key not in {*UNET_DEFAULTS, *EMA_KEYS}]
    problems = [f"{key} (={given[key]!r}) is not known" for key in unknown if given[key] not in (None, False)]
    problems += [
        f"{key} is {config[key]!r}{'' if key in given else ' (by default)'} instead of {needed!r}"
        for key, needed in UNET_NEEDED.items()
        if config[key] != needed
    ]
    if config["act_fn"] not in ACTIVATIONS:
        problems.append(f"act_fn is {config['act_fn']!r} instead of 'silu'")
    for key in ("in_channels", "out_channels", "layers_per_block", "norm_num_groups"):
        if not _is_positive_int(config[key]):
            problems.append(f"{key} is {config[key]!r} instead of a positive integer")
    embeds, null = config["num_class_embeds"], bool(config.get(OUR_NULL_KEY))
    if embeds is not None and (not _is_positive_int(embeds) or embeds <= null):
        problems.append(f"num_class_embeds is {embeds!r} instead of a positive integer or None")
    widths = config["block_out_channels"]
    if not isinstance(widths, list) or not widths or not all(map(_is_positive_int, widths)):
        problems.append(f"block_out_channels is {widths!r} instead of a list of positive integers")
        refuse(problems, sentence)
    problems += _problems_of_blocks(config, widths, "attention_head_dim" in given)
    refuse(problems, sentence)

    attends = [kind == "AttnDownBlock2D" for kind in config["down_block_types"]]
    patch = given.get(OUR_PATCH_KEY, 1)
    if not _is_positive_int(patch) or any(config[key] % patch**2 for key in ("in_channels", "out_channels")):
        refuse([f"{OUR_PATCH_KEY} is {patch!r}, which does not fit in_channels={config['in_channels']}"], sentence)
    size = config["sample_size"][0] if isinstance(config["sample_size"], list) else config["sample_size"]
    if size is None:
        places = resolution_of(attends)
    else:
        attention_resolutions = [size >> level for level, attention in enumerate(attends) if attention]
        places = {"resolution": size * patch, "attention_resolutions": attention_resolutions}
    return {
        "name": "unet",
        "in_channels": config["in_channels"] // patch**2,
        "out_channels": config["out_channels"] // patch**2,
        "base_channels": widths[0],
        "channel_mult": [width // widths[0] for width in widths],
        "num_res_blocks": config["layers_per_block"],
        "dropout": config["dropout"],
        "norm_groups": config["norm_num_groups"],
        **({} if embeds is None else {"num_classes": embeds - null, "null_class": null}),
        **places,
        **({"patch": patch} if patch > 1 else {}),
    }


def schedule_config(given: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """The noise schedule that a diffusers scheduler's configuration states.

    Raises:
        UserError: it is not one of ours.
    """
    sentence = (
        f"the scheduler in {origin} cannot be used (to ignore it, copy config.json and the weights into a "
        "folder of their own and name the schedule yourself)"
    )
    class_name = given.get("_class_name", SCHEDULERS[0])
    if class_name not in SCHEDULERS:
        refuse([f"_class_name is {class_name!r} instead of one of {', '.join(SCHEDULERS)}"], sentence)
    config = {**SCHEDULER_DEFAULTS, **given}
    problems = [f"rescale_betas_zero_snr is {config['rescale_betas_zero_snr']!r} instead of False"] * (
        config["rescale_betas_zero_snr"] is not False
    )
    if _prediction_of(config) is None:
        problems.append(
            f"prediction_type is {config['prediction_type']!r} instead of one of {', '.join(PREDICTION_TYPES)}"
        )
    steps, betas, ours = config["num_train_timesteps"], config["trained_betas"], config.get(OUR_SCHEDULE_KEY)
    if not _is_positive_int(steps):
        problems.append(f"num_train_timesteps is {steps!r} instead of a positive integer")
    stated = isinstance(ours, dict) and isinstance(ours.get("name"), str) and ours.get("num_timesteps") == steps
    if betas is not None and not stated:
        problems.append("trained_betas is a list of numbers instead of a named beta_schedule")
    if not isinstance(config["beta_schedule"], str) or config["beta_schedule"] not in SCHEDULES:
        problems.append(f"beta_schedule is {config['beta_schedule']!r} instead of one of {', '.join(SCHEDULES)}")
    start, end = config["beta_start"], config["beta_end"]
    if not all(isinstance(beta, (int, float)) for beta in (start, end)) or not 0 < start <= end < 1:
        problems.append(f"beta_start and beta_end are {start!r} and {end!r} instead of 0 < beta_start <= beta_end < 1")
    refuse(problems, sentence)
    if betas is not None:
        assert isinstance(ours, dict)
        return dict(ours)
    schedule = {"name": SCHEDULES[config["beta_schedule"]], "num_timesteps": steps}
    if schedule["name"] != "cosine":
        schedule |= {"beta_start": float(start), "beta_end": float(end)}
    return schedule


def prediction(given: Mapping[str, Any]) -> str:
    """What the network predicts, one of PREDICTIONS, by a scheduler's configuration that `schedule_config` took."""
    predicts = _prediction_of({**SCHEDULER_DEFAULTS, **given})
    assert predicts is not None
    return predicts


def _prediction_of(config: Mapping[str, Any]) -> str | None:
    kind = config["prediction_type"]
    return PREDICTION_TYPES.get(kind) if isinstance(kind, str) else None


def _problems_of_blocks(config: Mapping[str, Any], widths: list[int], head_dim_given: bool) -> list[str]:
    """What is wrong with the keys whose needed value depends on other keys."""
    problems = [
        f"block_out_channels[{level}] is {width}, no multiple of the first, {widths[0]}"
        for level, width in enumerate(widths)
        if width % widths[0]
    ]
    kinds = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("UpBlock2D", "AttnUpBlock2D")}
    for key, known in kinds.items():
        types = config[key]
        if not isinstance(types, list) or len(types) != len(widths):
            problems.append(f"{key} is {types!r} instead of a list of {len(widths)} names")
            return problems
        problems += [
            f"{key}[{index}] is {kind!r} instead of {' or '.join(known)}"
            for index, kind in enumerate(types)
            if kind not in known
        ]
    attends = [str(kind).startswith("Attn") for kind in config["down_block_types"]]
    if [str(kind).startswith("Attn") for kind in reversed(config["up_block_types"])] != attends:
        problems.append("up_block_types has attention at other levels than down_block_types")
    # One head as wide as its level, which is what None means, is all our attention has.
    attending = [width for width, attention in zip(widths, attends, strict=True) if attention] + [widths[-1]]
    head_dim = config["attention_head_dim"]
    if head_dim is not None and any(width != head_dim for width in attending):
        by_default = "" if head_dim_given else " (by default)"
        problems.append(f"attention_head_dim is {head_dim!r}{by_default} instead of None")
    for key, implied in (
        ("attn_norm_num_groups", config["norm_num_groups"]),
        ("time_embedding_dim", 4 * widths[0]),
    ):
        if config[key] not in (None, implied):
            problems.append(f"{key} is {config[key]!r} instead of {implied}")
    size = config["sample_size"]
    square = size[0] if isinstance(size, list) and len(size) == 2 and size[0] == size[1] else size
    if square is not None and not _is_positive_int(square):
        problems.append(f"sample_size is {size!r} instead of one positive integer")
    return problems


def _is_positive_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def pipeline_index() -> dict[str, Any]:
    """`model_index.json` of a DDIMPipeline."""
    return {
        "_class_name": "DDIMPipeline",
        "_diffusers_version": DIFFUSERS_VERSION,
        "scheduler": ["diffusers", "DDIMScheduler"],
        "unet": ["diffusers", UNET_CLASS],
    }


def unet_config(unet: UNet, label: str = UNSTATED) -> dict[str, Any]:
    """`config.json` of the UNet2DModel that is the same function as `unet`; `label` says which weights these are."""
    config, patch = unet.config, unet.config["patch"]
    size = config["resolution"] // patch
    attends = [size >> level in config["attention_resolutions"] for level in range(len(config["channel_mult"]))]
    return {
        "_class_name": UNET_CLASS,
        "_diffusers_version": DIFFUSERS_VERSION,
        OUR_WEIGHTS_KEY: label,
        **({OUR_PATCH_KEY: patch} if patch > 1 else {}),
        **UNET_NEEDED,
        "act_fn": "silu",
        "attention_head_dim": None,
        "attn_norm_num_groups": None,
        "sample_size": size,
        "in_channels": config["in_channels"] * patch**2,
        "out_channels": config["out_channels"] * patch**2,
        "block_out_channels": [config["base_channels"] * m for m in config["channel_mult"]],
        "layers_per_block": config["num_res_blocks"],
        "down_block_types": ["AttnDownBlock2D" if attention else "DownBlock2D" for attention in attends],
        "up_block_types": ["AttnUpBlock2D" if attention else "UpBlock2D" for attention in reversed(attends)],
        "dropout": config["dropout"],
        "norm_num_groups": config["norm_groups"],
        **_class_embeds(config),
    }


def _class_embeds(config: Mapping[str, Any]) -> dict[str, Any]:
    """The classes of a UNet; the one that stands for none is the last, which diffusers knows nothing of."""
    if config["num_classes"] is None:
        return {"num_class_embeds": None}
    return {"num_class_embeds": config["num_classes"] + config["null_class"], OUR_NULL_KEY: config["null_class"]}
