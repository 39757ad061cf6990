"""Every key a run sends to W&B: what it is, its unit, the x-axis of its panel. `docs/wandb.md` is made from this list.

Keys have no dots: W&B reads a dot as a path into a dictionary, and defines no x-axis for a name that has one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from ddim.findings.parts import PARTS

# x-axes. They are logged beside the values and hidden, so that they make no panels of their own.
TRAINING_STEP = "trainer/global_step"
SAMPLING_STEPS = "steps"
NFE = "nfe"
AXES = (TRAINING_STEP, SAMPLING_STEPS, NFE)
TRAIN, EVALUATE = "train", "evaluate"
CURVE, PICTURE, TABLE, CHART, SUMMARY = "curve", "picture", "table", "chart", "summary"
# Pictures of each point: a slider over S.
SAMPLES = "samples"


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


def _of_parts(kind: str) -> list[Key]:
    """Those that the parts declare, as keys of this kind; curves and slides are drawn against S."""
    kinds = (CURVE, SAMPLES) if kind == CURVE else (kind,)
    return [
        Key(
            name,
            EVALUATE,
            PICTURE if declared == SAMPLES else kind,
            what,
            SAMPLING_STEPS if declared in (CURVE, SAMPLES) else None,
        )
        for part in PARTS.values()
        for name, declared, what in part.keys
        if declared in kinds
    ]


TRAINING: tuple[Key, ...] = (
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
)


def all_keys() -> tuple[Key, ...]:
    """All of them, with those of every part that is known now."""
    return (
        *TRAINING,
        Key("test/loss", EVALUATE, CURVE, "held-out L_simple of the evaluated weights", TRAINING_STEP),
        Key("test/loss_q<quartile>", EVALUATE, CURVE, "the same by quartile of the timestep", TRAINING_STEP),
        *_of_parts(CURVE),
        *_of_parts(CHART),
        *_of_parts(TABLE),
        Key("table/<table>", EVALUATE, TABLE, "beside the paper's numbers (`table=`)"),
        *_of_parts(PICTURE),
        *_of_parts(SUMMARY),
    )


def wandb_key(key: str) -> str:
    """The key without dots: `eta0.500` becomes `eta0_500`."""
    return key.replace(".", "_")


def find(key: str, job: str, kinds: Iterable[str] = (CURVE, PICTURE, TABLE, CHART)) -> Key | None:
    """The entry of a key as W&B has it: its own, else the family with the longest fixed part; None if unknown."""
    found = [entry for entry in all_keys() if entry.job == job and entry.kind in kinds and entry.matches(key)]
    return max(found, key=lambda entry: (not entry.is_family, len(re.sub(r"<[^>]*>", "", entry.name))), default=None)


def as_markdown(job: str) -> str:
    """The table of `docs/wandb.md` for one kind of run."""
    lines = ["| key | panel | x-axis | what, and its unit |", "|---|---|---|---|"]
    for entry in (entry for entry in all_keys() if entry.job == job):
        panel = "column of the run table" if entry.kind == SUMMARY else entry.kind
        axis = f"`{entry.axis}`" if entry.axis else ""
        lines.append(f"| `{entry.name}` | {panel} | {axis} | {entry.what} |")
    return "\n".join(lines) + "\n"
