"""A model card, the README.md of an exported network: what it is, how it was trained, what was measured of it."""

from __future__ import annotations

import csv
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ddim.errors import UserError
from ddim.findings.comparable import by_calls, cost, group_rows, shows_floor, told_apart
from ddim.findings.files import read_results
from ddim.findings.labels import distance_name, eta_order, line_label, significant, with_sd
from ddim.findings.rows import Floor, GridResult
from ddim.runs.layout import LAST_CHECKPOINT
from ddim.runs.locate import kept_config

CARD = "README.md"
LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]*")
CALLED = {"ema": "exponential moving average", "raw": "as they were after the last step, not averaged"}


@dataclass(frozen=True)
class Card:
    """What is said of a network. None, and empty, is what nobody has stated, and is left out.

    Attributes:
        origin: the checkpoint, as results call it.
        weights: "ema", "raw" or "unstated".
        parameters: number of the network's.
        dataset, schedule: as the checkpoint describes them.
        steps, images: of training that the weights have seen, optimizer steps and images with repetitions.
        run: the directory of the training run.
        licence: as the hub names it, such as mit or cc-by-4.0.
        machine, hours: what it was trained on and how long; without `hours` they are estimated from the run's metrics.
        evaluation: the directory of an evaluation of the same weights.
        use: lines of Python that draw images.
    """

    origin: str
    weights: str
    parameters: int
    dataset: Mapping[str, Any] | None
    schedule: Mapping[str, Any] | None
    steps: int | None = None
    images: int | None = None
    run: Path | None = None
    licence: str | None = None
    machine: str | None = None
    hours: float | None = None
    evaluation: Path | None = None
    use: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.licence is not None and not LICENCE.fullmatch(self.licence):
            raise UserError(f"--license {self.licence!r} is no name of a licence on the hub, such as mit or cc-by-4.0")
        if self.hours is not None and not 0 < self.hours < float("inf"):
            raise UserError(f"--hours {self.hours:g} must be a positive number")

    def text(self) -> str:
        """The whole file: YAML front matter as the Hugging Face hub reads it, then Markdown.

        Raises:
            UserError: `evaluation` holds no results, or those of another network.
        """
        name = self._data_name() or "images"
        front: dict[str, Any] = {} if self.licence is None else {"license": self.licence}
        front |= {"library_name": "diffusers", "pipeline_tag": "unconditional-image-generation"}
        front |= {"tags": ["diffusers", "ddim", "ddpm", "unconditional-image-generation", name]}
        parts = [
            f"---\n{yaml.safe_dump(front, sort_keys=False)}---",
            f"# DDIM of {name}",
            f"A denoising diffusion model with {self.parameters:,} parameters, trained on {self._images()}. It samples "
            "in any number of steps, deterministically (η = 0, DDIM) or with noise (η = 1, DDPM).",
            self._use(),
            "## Training\n\n" + "\n".join(f"* {line}" for line in self._training()),
            self._results(),
            "## Licence\n\n" + (self.licence or "None is stated; ask whoever published this before you use it."),
        ]
        return "\n\n".join(part for part in parts if part) + "\n"

    def _use(self) -> str:
        if not self.use:
            return ""
        code = "\n".join(["```python", *self.use, "```"])
        return (
            f"## Use\n\n{code}\n\n"
            '`"."` is this directory, or the name of this model on the hub. `num_inference_steps` should divide the\n'
            "number of timesteps: only then are these the timesteps that were evaluated."
        )

    def _images(self) -> str:
        if self.dataset is None:
            return "images that its checkpoint does not name"
        known = {key: self.dataset[key] for key in ("channels", "resolution") if isinstance(self.dataset.get(key), int)}
        size = f", {known['channels']}x{known['resolution']}x{known['resolution']}" if len(known) == 2 else ""
        return f"{self._data_name()}{size}"

    def _data_name(self) -> str | None:
        """What the images are called: by their label, or by the kind of the data set."""
        stated = self.dataset or {}
        name = stated.get("label") or stated.get("name")
        return None if name is None else str(name)

    def _training(self) -> list[str]:
        config = kept_config(self.run) if self.run is not None else None
        lines = [f"Data: {self._images()}" + (", mirrored at random" if _of(config, "dataset", "random_flip") else "")]
        if self.steps is not None:
            seen = "" if self.images is None else f", {self.images:,} images seen (with repetitions)"
            lines.append(f"Length: {self.steps:,} optimizer steps{seen}")
        begun = _of(config, "checkpoint")
        if isinstance(begun, str):
            lines.append(f"Begun from: the weights of {_called(begun)}, whose own training comes on top")
        predicts, times = _of(config, "objective", "predicts"), _of(config, "objective", "times")
        if predicts and times:
            lines.append(f"Objective: predicts {predicts}, {times} times")
        optimizer = _of(config, "optimizer")
        if isinstance(optimizer, Mapping) and {"name", "lr", "warmup_steps"} <= set(optimizer):
            lines.append(_optimizer(optimizer))
        average = _average(_of(config, "callbacks", "ema")) if self.weights == "ema" else ""
        lines.append(f"Weights: {CALLED.get(self.weights, 'averaged or not, the checkpoint does not say')}{average}")
        if self.schedule is not None:
            stated = ", ".join(f"{key} {value}" for key, value in self.schedule.items() if key != "name")
            lines.append(f"Schedule: {self.schedule.get('name')}" + (f" ({stated})" if stated else ""))
        hours = self.hours if self.hours is not None else self._estimated_hours()
        duration = None if hours is None else f"{significant(hours, 2)} hours"
        if duration and self.hours is None:
            duration = f"about {duration} of training steps, validations apart"
        if self.machine or duration:
            lines.append("Machine: " + ", ".join(part for part in (self.machine, duration) if part))
        return lines

    def _estimated_hours(self) -> float | None:
        """Images seen times the mean time of one, by the run's own measurements."""
        seconds: list[float] = []
        files = [] if self.run is None else sorted(self.run.glob("csv/version_*/metrics.csv"))
        try:
            for path in files:
                with path.open(newline="") as file:
                    rates = [row.get("train/images_per_second") for row in csv.DictReader(file)]
                seconds += [1 / float(rate) for rate in rates if rate and float(rate) > 0]
        except (OSError, ValueError, csv.Error):
            return None
        return None if self.images is None or not seconds else self.images * statistics.fmean(seconds) / 3600

    def _results(self) -> str:
        if self.evaluation is None:
            return ""
        results = read_results(self.evaluation)
        whose = {(row.checkpoint, row.weights) for row in results.rows}
        others = [stated for stated in sorted(whose) if not _same(stated, (self.origin, self.weights))]
        if others or not whose:
            found = f"the {others[0][1]} weights of {others[0][0]}" if others else "nothing yet"
            raise UserError(
                f"--evaluation {self.evaluation} measured {found}, not the {self.weights} weights of {self.origin}"
            )
        tables = (_table(rows, results.floor) for _, rows in group_rows(results.rows, told_apart))
        return "## Results\n\n" + "\n\n".join(tables)


def _called(origin: str) -> str:
    """A model of the hub by its name and commit; of a path the run, or the last part: the rest is of a machine."""
    path = Path(origin)
    if "@" in origin and not path.is_absolute():
        return origin
    return path.parent.parent.name if path.parent.name == "checkpoints" else path.name


def _optimizer(stated: Mapping[str, Any]) -> str:
    images = stated.get("warmup_images")
    warmup = f"{stated['warmup_steps']:,} steps" if images is None else f"{images:,} images"
    falling = "" if stated.get("schedule") in (None, "constant") else f", then {stated['schedule']}"
    return f"Optimizer: {stated['name']}, learning rate {stated['lr']:g} after {warmup} of warm-up{falling}"


def _average(stated: Any) -> str:
    if not isinstance(stated, Mapping):
        return ""
    if stated.get("halflife_images") is not None:
        return f" with a half-life of {stated['halflife_images']:,} images"
    return f" with decay {stated['decay']}" if stated.get("decay") is not None else ""


def _of(config: Any, *keys: str) -> Any:
    for key in keys:
        config = config.get(key) if isinstance(config, Mapping) else None
    return config


def _same(stated: tuple[str, str], exported: tuple[str, str]) -> bool:
    """Whether results are of these weights; a run that was moved as a whole is known by the name of its directory."""
    (one, weights), (other, exported_weights) = stated, exported
    return weights == exported_weights and (one == other or _run_name(one) == _run_name(other))


def _run_name(origin: str) -> str:
    path = Path(origin)
    return "/".join((path.parent.parent.name, path.name)) if path.parent.name == LAST_CHECKPOINT.parent.name else origin


def _table(rows: Sequence[GridResult], floor: Floor | None) -> str:
    """Distances by sampler and cost, and below what they were measured with."""
    calls, row = by_calls(rows), rows[0]
    name = distance_name(row.features)
    label = "η" if all(other.sampler == "ddim" for other in rows) else "sampler"
    lines = [f"| {label} | S | network calls | {name} |", "| --- | --- | --- | --- |"]
    for other in sorted(rows, key=lambda other: (eta_order(line_label(other, rows)), cost(other, calls))):
        distance = with_sd(other.frechet_distance, other.frechet_distance_sd)
        lines.append(f"| {line_label(other, rows)} | {other.steps} | {other.nfe} | {distance} |")
    against = f" of {row.reference_images:,}" if row.reference_images is not None else ""
    below = f"{row.num_samples:,} samples against the features{against} real images; τ {row.tau}, seed {row.seed}."
    if floor is not None and shows_floor(floor, rows, row) and "frechet_distance" in floor.metrics:
        below += f" {floor.num_images:,} real held-out images have {significant(floor.metrics['frechet_distance'])}."
    return "\n".join(lines) + f"\n\n{below}"
