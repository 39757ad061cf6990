"""`python -m ddim.export RUN DIR`: a trained denoiser as a diffusers pipeline (`UNet2DModel` and `DDIMScheduler`).

A model card lies beside it. diffusers need not be installed to write it. `DDIMPipeline.from_pretrained(DIR)` then draws
the images that this project draws from the same latents, under two conditions. Its "leading" timesteps equal the linear
sub-sequence here only where the number of steps divides num_timesteps. And it must not clip x_0: DDIMScheduler clips by
default, so the exported configuration says `clip_sample: false`, as in the paper.
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

from ddim.denoisers.formats.contents import WEIGHTS, Pretrained
from ddim.denoisers.formats.diffusers import CONFIG, INDEX, MODEL, SAFETENSORS, SCHEDULER_CONFIGS
from ddim.denoisers.formats.diffusers_config import (
    DIFFUSERS_VERSION,
    OUR_SCHEDULE_KEY,
    PREDICTION_TYPES,
    pipeline_index,
    unet_config,
)
from ddim.denoisers.formats.hub import check_hub_name, push
from ddim.denoisers.formats.naming import file_name
from ddim.denoisers.pretrained import open_pretrained
from ddim.denoisers.unet import UNet
from ddim.diffusion import NoiseSchedule
from ddim.errors import UserError
from ddim.findings.card import CARD, Card
from ddim.findings.paper import OFFICIAL_SCHEDULE
from ddim.metrics import FEATURES
from ddim.runs.layout import LAST_CHECKPOINT, STATISTICS_FILE
from ddim.runs.paths import usable_path
from ddim.runs.plugins import load_plugins

# What diffusers fixes in the schedule it calls squaredcos_cap_v2.
DIFFUSERS_COSINE = {"s": 0.008, "max_beta": 0.999}


def export(
    pretrained: Pretrained,
    directory: Path,
    weights: str = "ema",
    beside: Mapping[str, bytes] | None = None,
    *,
    half: bool = False,
) -> list[Path]:
    """Write a diffusers pipeline directory, whole or not at all.

    Args:
        pretrained: where the weights and the schedule come from; the linear schedule of DDPM if it states none.
        directory: does not exist yet, or is empty.
        weights: "ema" or "raw".
        beside: further files by their names, as `model_card` and `statistics_to_go_along` make them.
        half: stores the weights in float16: half the size, read back as float32.

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
    state = (unet.half() if half else unet).state_dict()
    tensors = {file_name("diffusers", name, levels): value.contiguous() for name, value in state.items()}
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
    # Images come with Lightning, which an export without them need not load.
    from ddim.data.build import load_data
    from ddim.metrics.measure import load_extractor, statistics_of
    from ddim.metrics.published import statistics_file

    if pretrained.dataset is None:
        raise UserError(f"{pretrained.origin} does not say which images it was trained on; leave --reference out")
    dataset = {**pretrained.dataset, **({} if root is None else {"root": str(root)})}
    images = load_data(
        dataset, stage="test", seed=0, cache_dir=cache_dir, batch_size=1, eval_batch_size=1, num_workers=0
    )
    extractor = load_extractor(features, images, cache_dir=cache_dir, device="cpu")
    statistics = statistics_of("train", extractor, images, cache_dir, lambda batches, text, total: batches)
    return {STATISTICS_FILE.format(extractor.name): statistics_file(statistics, dataset)}


def model_card(pretrained: Pretrained, weights: str = "ema", **stated: Any) -> bytes:
    """The README.md of an exported network.

    Args:
        pretrained: what is exported; where it lies in a run directory, the card says how that run was trained.
        weights: "ema" or "raw".
        stated: what only its owner knows: `licence`, `machine`, `hours`, `evaluation` of `ddim.findings.card.Card`.

    Raises:
        UserError: there are no such weights, the evaluation is of others, or a licence or duration is none.
    """
    label, checkpoint = pretrained.select(weights), Path(pretrained.origin)
    card = Card(
        origin=pretrained.origin,
        weights=label,
        parameters=sum(value.numel() for value in pretrained.states[label].values()),
        dataset=pretrained.dataset,
        schedule=pretrained.schedule or OFFICIAL_SCHEDULE,
        steps=pretrained.steps,
        images=pretrained.images,
        use=usage(".", pretrained.denoiser.get("patch", 1)),
        run=checkpoint.parent.parent if checkpoint.parent.name == LAST_CHECKPOINT.parent.name else None,
        **stated,
    )
    return card.text().encode()


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
    options = _parser().parse_args(arguments)
    try:
        load_plugins()
        _check_free(options.directory)
        if options.push_to_hub is not None:
            check_hub_name(options.push_to_hub)
        pretrained = open_pretrained(options.run)
        stated = {name: getattr(options, name) for name in ("licence", "machine", "hours", "evaluation")}
        beside = {CARD: model_card(pretrained, options.weights, **stated)}
        if options.reference:
            beside |= statistics_to_go_along(pretrained, options.reference, options.root, options.cache_dir)
        files = export(pretrained, options.directory, options.weights, beside, half=options.half)
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
    if options.push_to_hub is not None:
        try:
            print(f"Uploaded to {push(options.directory, options.push_to_hub, private=options.private)}")
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ddim.export", description="Write a trained denoiser as a diffusers pipeline directory."
    )
    parser.add_argument("run", metavar="RUN", help="a run directory, a .ckpt, or a public checkpoint or hub model")
    parser.add_argument("directory", metavar="DIR", type=Path, help="where to write: a new or empty directory")
    parser.add_argument("--weights", choices=WEIGHTS, default="ema", help="which weights of RUN (default: ema)")
    parser.add_argument("--half", action="store_true", help="store the weights in float16, half the size")
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
    card = parser.add_argument_group("model card", f"what {CARD} says besides what RUN states")
    card.add_argument("--license", dest="licence", metavar="ID", help="as the hub names it: mit, cc-by-4.0, ...")
    card.add_argument("--machine", metavar="TEXT", help="what it was trained on")
    card.add_argument("--hours", type=float, help="how long; default: estimated from the metrics of RUN")
    card.add_argument("--evaluation", type=Path, metavar="DIR", help="an evaluation of these weights, for its table")
    hub = parser.add_argument_group("Hugging Face hub")
    hub.add_argument("--push-to-hub", metavar="OWNER/NAME", help="upload DIR as this model; needs `hf auth login`")
    hub.add_argument("--private", action="store_true", help="where the model is new, only its owner sees it")
    return parser


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
