"""Every key a run sends to W&B: what it is, its unit, the x-axis of its panel. `docs/wandb.md` is made from this list.

Keys have no dots: W&B reads a dot as a path into a dictionary, and defines no x-axis for a name that has one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

# x-axes. They are logged beside the values and hidden, so that they make no panels of their own.
TRAINING_STEP = "trainer/global_step"
SAMPLING_STEPS = "steps"
NFE = "nfe"
AXES = (TRAINING_STEP, SAMPLING_STEPS, NFE)

TRAIN, EVALUATE = "train", "evaluate"
CURVE, PICTURE, TABLE, CHART, SUMMARY = "curve", "picture", "table", "chart", "summary"


@dataclass(frozen=True)
class Key:
    """One key, or a family of keys.

    Attributes:
        name: `<...>` stands for a part that the run decides, one or more levels of the key; `<-...>` may be absent.
        job: the `job_type` of the runs that have it.
        kind: curve, picture (W&B makes a slider of several), table, chart, or summary: a column of the run table.
        what: what it is, with its unit.
        axis: the x-axis of the panel; None for what has none.
        best: the run table shows the smallest value besides the last one.
    """

    name: str
    job: str
    kind: str
    what: str
    axis: str | None = None
    best: bool = False

    @property
    def is_family(self) -> bool:
        return "<" in self.name

    def matches(self, key: str) -> bool:
        pattern = re.sub(r"<-[^>]*>", "(-.+)?", self.name)
        return bool(re.fullmatch(re.sub(r"<[^>]*>", ".+", pattern), key))


def _training(name: str, what: str, kind: str = CURVE, *, best: bool = False) -> Key:
    return Key(name, TRAIN, kind, what, TRAINING_STEP, best)


def _by_steps(name: str, what: str, kind: str = CURVE) -> Key:
    return Key(name, EVALUATE, kind, what, SAMPLING_STEPS)


def _once(kind: str, *names_and_texts: tuple[str, str]) -> list[Key]:
    return [Key(name, EVALUATE, kind, what) for name, what in names_and_texts]


KEYS: tuple[Key, ...] = (
    _training("train/loss", "L_simple of the batch (weighted by `loss.weighting`)"),
    _training("train/gradient_norm", "norm of the gradient before clipping"),
    _training("train/lr", "learning rate of the step"),
    _training("train/images_per_second", "images per second of all devices, validations apart"),
    _training("val/loss", "held-out L_simple, the mean of the four quartiles", best=True),
    *(
        _training(f"val/loss_q{quartile}", f"held-out L_simple of timesteps in quartile {quartile} (1: least noise)")
        for quartile in range(1, 5)
    ),
    _training("val/frechet_distance", "Fréchet distance of the first point of the small grid, EMA weights", best=True),
    _training("val/<metric>", "further metrics of that point (`callbacks.evaluation.metrics`)"),
    _training("val/<metric>/<sampler>/<tau>/<steps>", "each metric of each point of the small grid"),
    _training("samples", "samples of the same latents, EMA weights: one slider over training", PICTURE),
    _training("epoch", "passes through the training images"),
    Key("test/loss", EVALUATE, CURVE, "held-out L_simple of the evaluated weights", TRAINING_STEP),
    Key("test/loss_q<quartile>", EVALUATE, CURVE, "the same by quartile of the timestep", TRAINING_STEP),
    _by_steps("grid/frechet_distance/<sampler>/<tau>", "Fréchet distance against S"),
    _by_steps("grid/<metric>/<sampler>/<tau>", "further metrics against S (`evaluation.metrics`)"),
    _by_steps("grid/seconds_per_50000/<sampler>/<tau>", "wall-clock seconds per 50,000 images"),
    _by_steps("grid/images_per_second/<sampler>/<tau>", "images per second"),
    _by_steps("samples/<sampler>/<tau>", "samples of the same latents: one slider over S", PICTURE),
    _by_steps("reconstruction/mse/<tau>", "mean squared error per dimension on [0, 1] after encoding and decoding"),
    _by_steps(
        "consistency/<distance>/<sampler>/<tau>", "distance to the images of the largest S from the same latents"
    ),
    *_once(
        CHART,
        ("grid/distance_chart", "Fréchet distance against S, one line per η; runs that are compared share it"),
        ("grid/time_chart", "seconds per 50,000 images against S, one line per η"),
    ),
    *_once(
        TABLE,
        ("grid/results", "results.csv: one row per (η, τ, S)"),
        ("grid/pictures", "samples by (η, τ, S), with their distance: sort, filter, group"),
        ("grid/distance_chart_table", "what `grid/distance_chart` is drawn from"),
        ("grid/time_chart_table", "what `grid/time_chart` is drawn from"),
        ("reconstruction/results", "reconstruction.csv"),
        ("consistency/results", "consistency.csv"),
        ("interpolation/results", "interpolation.csv"),
        ("diversity/results", "diversity.csv"),
        ("table/<table>", "beside the paper's numbers (`table=`)"),
    ),
    *_once(
        PICTURE,
        ("grid/samples<-tau>", "sample sheet: η down, S across, the same latents in every cell"),
        ("grid/distance", "distance.png: the same chart with log axes and the floor"),
        ("grid/speed", "speed.png"),
        ("reconstruction/images<-tau>", "test images above their reconstructions"),
        ("reconstruction/error", "reconstruction error against S"),
        ("consistency/images<-tau>", "the same latents under every S and η"),
        ("consistency/distance<-tau>", "distance to the largest S against S"),
        ("interpolation/<what>", "lines and corners of interpolated latents"),
        ("trajectory/<sampler>", "the predicted x_0 along the way: strip and animation"),
        ("diversity/<what>", "samples above their nearest training images"),
    ),
    *_once(
        SUMMARY,
        ("best/frechet_distance", "the smallest distance of the grid"),
        ("best/eta", "where it was found (sigma_hat for the paper's larger variance)"),
        ("best/steps", "where it was found: S"),
        ("frechet_distance/<sampler>/<tau>/<steps>", "the distance of each point: a column per point"),
        ("<metric>/<sampler>/<tau>/<steps>", "the same for kid_mean, precision, recall, inception_score_mean"),
        ("images_per_second/<sampler>/<tau>/<steps>", "images per second of each point"),
        ("floor/frechet_distance", "real held-out images against the reference"),
        ("floor/<metric>", "the same in further metrics"),
        ("reconstruction/mse/<tau>/<steps>", "reconstruction error of each S"),
        (
            "consistency/<distance>/<sampler>/<tau>/<steps>",
            "distance to the largest S; `mse_over_eta0`: ratio to η = 0",
        ),
        ("interpolation/<what>", "of the interpolated lines"),
        ("trajectory/mse_half_way/<sampler>/<tau>/<steps>", "error of the predicted x_0 half way"),
        ("diversity/<number>/<sampler>/<tau>/<steps>", "precision, recall, spread, distance to training images"),
        ("diversity/<number>/held_out", "the same for held-out images"),
    ),
)


def wandb_key(key: str) -> str:
    """The key without dots: `eta0.500` becomes `eta0_500`."""
    return key.replace(".", "_")


def find(key: str, job: str, kinds: Iterable[str] = (CURVE, PICTURE, TABLE, CHART)) -> Key | None:
    """The entry of a key as W&B has it: its own, else the family with the longest fixed part; None if unknown."""
    found = [entry for entry in KEYS if entry.job == job and entry.kind in kinds and entry.matches(key)]
    return max(found, key=lambda entry: (not entry.is_family, len(re.sub(r"<[^>]*>", "", entry.name))), default=None)


def as_markdown(job: str) -> str:
    """The table of `docs/wandb.md` for one kind of run."""
    lines = ["| key | panel | x-axis | what, and its unit |", "|---|---|---|---|"]
    for entry in (entry for entry in KEYS if entry.job == job):
        panel = "column of the run table" if entry.kind == SUMMARY else entry.kind
        axis = f"`{entry.axis}`" if entry.axis else ""
        lines.append(f"| `{entry.name}` | {panel} | {axis} | {entry.what} |")
    return "\n".join(lines) + "\n"
