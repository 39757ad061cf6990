"""`python -m ddim.export RUN DIR`: a trained denoiser as a diffusers pipeline (`UNet2DModel` and `DDIMScheduler`).

diffusers need not be installed to write it. `DDIMPipeline.from_pretrained(DIR)` then draws the images that this project
draws from the same latents, under two conditions. Its "leading" timesteps equal the linear sub-sequence here only where
the number of steps divides num_timesteps. And it must not clip x_0: DDIMScheduler clips by default, so the exported
configuration says `clip_sample: false`, as in the paper.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save

from ddim.data.build import load_data
from ddim.denoisers.formats.contents import UNSTATED, WEIGHTS, Pretrained
from ddim.denoisers.formats.diffusers import CONFIG, INDEX, MODEL, SAFETENSORS, SCHEDULER_CONFIGS
from ddim.denoisers.formats.diffusers_config import (
    OUR_PATCH_KEY,
    OUR_SCHEDULE_KEY,
    OUR_WEIGHTS_KEY,
    PREDICTION_TYPES,
    UNET_CLASS,
    UNET_NEEDED,
)
from ddim.denoisers.formats.naming import file_name
from ddim.denoisers.pretrained import open_pretrained
from ddim.denoisers.unet import UNet
from ddim.diffusion import NoiseSchedule
from ddim.errors import UserError
from ddim.findings.paper import OFFICIAL_SCHEDULE
from ddim.metrics import FEATURES
from ddim.metrics.measure import load_extractor, statistics_of
from ddim.metrics.published import statistics_file
from ddim.runs.layout import STATISTICS_FILE
from ddim.runs.paths import usable_path
from ddim.runs.plugins import load_plugins

# diffusers notes here which version wrote a file; this is the oldest one our tests accept.
DIFFUSERS_VERSION = "0.35.0"
# What diffusers fixes in the schedule it calls squaredcos_cap_v2.
DIFFUSERS_COSINE = {"s": 0.008, "max_beta": 0.999}


def export(
    pretrained: Pretrained, directory: Path, weights: str = "ema", beside: Mapping[str, bytes] | None = None
) -> list[Path]:
    """Write a diffusers pipeline directory, whole or not at all.

    Args:
        pretrained: where the weights and the schedule come from; the linear schedule of DDPM if it states none.
        directory: does not exist yet, or is empty.
        weights: "ema" or "raw".
        beside: further files by their names, such as `statistics_to_go_along` makes.

    Returns:
        The files written.

    Raises:
        UserError: there are no such weights, they are of another network than the UNet, the schedule cannot be built,
            or `directory` cannot be written or holds something.
    """
    _check_free(directory)
    label = pretrained.select(weights)
    unet = pretrained.build(weights)
    if not isinstance(unet, UNet):
        name = pretrained.denoiser["name"]
        raise UserError(
            f"the denoiser {name} of {pretrained.origin} has no counterpart in diffusers; only unet has one"
        )
    levels = len(unet.config["channel_mult"])
    tensors = {file_name("diffusers", name, levels): value.contiguous() for name, value in unet.state_dict().items()}
    texts = {
        Path(INDEX): pipeline_index(),
        MODEL / CONFIG: unet_config(unet, label),
        SCHEDULER_CONFIGS[0]: scheduler_config(pretrained.schedule or OFFICIAL_SCHEDULE, pretrained.predicts),
    }
    target = usable_path(directory, "DIR").resolve()
    unfinished = target.with_name(f".{target.name}.{os.getpid()}.unfinished")
    try:
        for name, content in texts.items():
            (unfinished / name).parent.mkdir(parents=True, exist_ok=True)
            (unfinished / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        # The library's own writing of files makes them readable for nobody else, whatever the umask says.
        (unfinished / MODEL / SAFETENSORS).write_bytes(save(tensors, metadata={"format": "pt"}))
        for file, data in (beside or {}).items():
            (unfinished / file).write_bytes(data)
        if target.exists():
            target.rmdir()
        unfinished.rename(target)
    except OSError as error:
        raise UserError(f"{directory} cannot be written ({error.strerror or error}); give another place") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return [directory / name for name in (*texts, MODEL / SAFETENSORS, *(beside or ()))]


def statistics_to_go_along(
    pretrained: Pretrained, features: str, root: Path | None = None, cache_dir: Path = Path("cache")
) -> dict[str, bytes]:
    """Reference statistics of all training images, {file name: content}: samples of the exported network are then
    measured without the data set.

    Args:
        pretrained: states the data set.
        features: what the statistics are of, as `evaluation.features`.
        root: where the images lie, if not where they lay in training.
        cache_dir: of downloads, weights and statistics.

    Raises:
        UserError: the checkpoint states no data set, or images, features or weights are not to be had.
    """
    if pretrained.dataset is None:
        raise UserError(f"{pretrained.origin} does not say which images it was trained on; leave --reference out")
    dataset = {**pretrained.dataset, **({} if root is None else {"root": str(root)})}
    images = load_data(
        dataset, stage="test", seed=0, cache_dir=cache_dir, batch_size=1, eval_batch_size=1, num_workers=0
    )
    extractor = load_extractor(features, images, cache_dir=cache_dir, device="cpu")
    statistics = statistics_of("train", extractor, images, cache_dir, lambda batches, text, total: batches)
    return {STATISTICS_FILE.format(extractor.name): statistics_file(statistics, dataset)}


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
    }


def scheduler_config(description: Mapping[str, Any], predicts: str = "eps") -> dict[str, Any]:
    """`scheduler_config.json` of the DDIMScheduler with the alpha_bar of a schedule {"name": ..., parameters}.

    predicts: what the network does, one of PREDICTIONS.

    A schedule that diffusers has no name for is written as its betas, beside our own description of it.

    Raises:
        UserError: there is no such schedule.
    """
    try:
        schedule = NoiseSchedule.from_name(**description)
    except (ValueError, TypeError) as error:
        raise UserError(f"the schedule {dict(description)} cannot be built: {error}") from error
    config: dict[str, Any] = {
        "_class_name": "DDIMScheduler",
        "_diffusers_version": DIFFUSERS_VERSION,
        "num_train_timesteps": schedule.num_timesteps,
        "prediction_type": {ours: theirs for theirs, ours in PREDICTION_TYPES.items()}[predicts],
        "clip_sample": False,
        "clip_sample_range": 1.0,
        "set_alpha_to_one": True,
        "steps_offset": 0,
        "timestep_spacing": "leading",
        "thresholding": False,
        "rescale_betas_zero_snr": False,
        "beta_schedule": "linear",
        "beta_start": OFFICIAL_SCHEDULE["beta_start"],
        "beta_end": OFFICIAL_SCHEDULE["beta_end"],
        "trained_betas": None,
    }
    parameters = {key: value for key, value in schedule.params.items() if key != "num_timesteps"}
    if schedule.name in ("linear", "scaled_linear"):
        return config | {"beta_schedule": schedule.name, **parameters}
    if schedule.name == "cosine" and parameters == DIFFUSERS_COSINE:
        return config | {"beta_schedule": "squaredcos_cap_v2"}
    ours = {"name": schedule.name, "num_timesteps": schedule.num_timesteps, **parameters}
    return config | {"trained_betas": schedule.betas.tolist(), OUR_SCHEDULE_KEY: ours}


def usage(directory: str, patch: int = 1) -> list[str]:
    """Lines of Python that draw four images with diffusers; a network on patches gives their pixels as channels."""
    pipeline = f"DDIMPipeline.from_pretrained({directory!r})"
    if patch == 1:
        return [
            "from diffusers import DDIMPipeline",
            f"images = {pipeline}(batch_size=4, num_inference_steps=50).images",
        ]
    return [
        "import torch",
        "from diffusers import DDIMPipeline",
        f"patches = {pipeline}(batch_size=4, num_inference_steps=50, output_type='np').images",
        f"images = torch.pixel_shuffle(torch.from_numpy(patches).permute(0, 3, 1, 2), {patch})  # in [0, 1]",
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line: writes the directory and prints how to use it; exit status 2 with one sentence on an error."""
    parser = argparse.ArgumentParser(
        prog="python -m ddim.export", description="Write a trained denoiser as a diffusers pipeline directory."
    )
    parser.add_argument("run", metavar="RUN", help="a run directory, a .ckpt, or a public checkpoint or hub model")
    parser.add_argument("directory", metavar="DIR", type=Path, help="where to write: a new or empty directory")
    parser.add_argument("--weights", choices=WEIGHTS, default="ema", help="which weights of RUN (default: ema)")
    parser.add_argument(
        "--reference",
        choices=FEATURES,
        metavar="FEATURES",
        help=f"also write reference statistics of the training images, of these features: {', '.join(FEATURES)}",
    )
    parser.add_argument("--root", type=Path, metavar="DIR", help="where the images lie, if they have moved")
    parser.add_argument(
        "--cache-dir",
        type=Path,
        default=Path(os.environ.get("DDIM_CACHE_DIR", "cache")),
        metavar="DIR",
        help="downloads, weights and statistics (default: %(default)s)",
    )
    options = parser.parse_args(arguments)
    try:
        load_plugins()
        _check_free(options.directory)
        pretrained = open_pretrained(options.run)
        pretrained.select(options.weights)  # before all images are read
        beside = (
            statistics_to_go_along(pretrained, options.reference, options.root, options.cache_dir)
            if options.reference
            else None
        )
        files = export(pretrained, options.directory, options.weights, beside)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    if pretrained.schedule is None:
        print(f"{pretrained.origin} does not state its schedule: took the linear one of DDPM, {OFFICIAL_SCHEDULE}.")
    print(f"Wrote the {pretrained.select(options.weights)} weights of {pretrained.origin}:")
    for file in files:
        print(f"  {file}")
    print("To use it:")
    for line in usage(str(options.directory), pretrained.denoiser.get("patch", 1)):
        print(f"  {line}")


def _check_free(directory: Path) -> None:
    directory = usable_path(directory, "DIR")
    try:
        taken = any(directory.iterdir()) if directory.is_dir() else directory.exists() or directory.is_symlink()
    except OSError as error:
        raise UserError(f"{directory} cannot be read ({error.strerror}); give another place") from error
    if taken:
        raise UserError(f"{directory} exists and is not empty; give a new directory, nothing is overwritten")


if __name__ == "__main__":
    main()
