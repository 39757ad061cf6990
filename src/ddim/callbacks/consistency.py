"""Consistency: do the same latents give the same images whatever S is (DDIM section 5.2, Figure 5)?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from torch import Tensor

from ddim.callbacks.generation import Generation, Sampling, generate
from ddim.callbacks.measure import features_name
from ddim.callbacks.progress import GridProgress
from ddim.callbacks.study import Study
from ddim.grid import GridPoint
from ddim.labelled_rows import labelled_rows
from ddim.lit_module import DenoisingModule
from ddim.metrics import FeatureExtractor
from ddim.records import curve_key, eta_label, eta_title, point_key, significant
from ddim.rows import write_rows
from ddim.show import show_point, show_summary, show_table
from ddim.similarity import distances
from ddim.study_figures import Panel, steps_figure
from ddim.terminal import Terminal

# Columns that go to the loggers as single numbers.
NUMBERS = ("mse", "ssim", "feature_distance_relative")


class Consistency(Study):
    """How far the images at each S are from those at the largest S, for each eta on its own.

    Shared by all points is x_T: sample i starts from the same latent at every S and every eta. Where eta > 0 the k-th
    step of sample i also draws the same noise, a function of (seed, i, k), at every S; but the k-th step of 10 lies at
    another timestep than the k-th of 50, and 50 steps draw noise that 10 do not. What is measured at eta > 0 is how
    much of an image its x_T decides; noise that is shared can only make eta > 0 look more consistent.

    Args (besides those of `Study`):
        extractor: features that distances are measured with.
        num_images: samples 0 ... num_images - 1 are compared, at least 2.
        shown: samples of the picture, at most.

    Raises ValueError where there is nothing to compare: fewer than two images, or a point with no other S beside it.
    """

    name = "consistency"

    def __init__(
        self,
        points: Sequence[GridPoint],
        sampling: Sampling,
        directory: Path,
        identity: Mapping[str, Any],
        *,
        extractor: FeatureExtractor,
        num_images: int,
        shown: int = 8,
        **more: Any,
    ) -> None:
        super().__init__(points, sampling, directory, identity, **more)
        # By (tau, eta), from the smallest S to the largest, which the others are compared with.
        self.groups: dict[tuple[str, str], list[GridPoint]] = {}
        for point in self.points:
            self.groups.setdefault((point.tau, eta_label(point)), []).append(point)
        for members in self.groups.values():
            members.sort(key=lambda point: point.steps)
        if num_images < 2 or any(len(members) < 2 for members in self.groups.values()):
            raise ValueError("consistency compares at least two images and two numbers of steps of each eta and tau")
        self.extractor = extractor
        self.num_images = num_images
        self.shown = min(shown, num_images)
        self.found: dict[GridPoint, dict[str, Any]] = {}

    def plan(self) -> str:
        steps = ", ".join(str(number) for number in sorted({point.steps for point in self.points}))
        etas = ", ".join(dict.fromkeys(eta_label(point) for point in self.points))
        return f"consistency of {self.num_images:,} samples over S = {steps} for η = {etas}"

    def records(self) -> list[dict[str, Any]]:
        return [self.found[point] for point in self.points if point in self.found]

    def run(self, trainer: pl.Trainer, module: DenoisingModule) -> None:
        self.extractor.to(module.device)
        pictures: dict[GridPoint, Tensor] = {}
        with GridProgress(
            [point.nfe for point in self.points], enabled=self.show_progress and trainer.is_global_zero
        ) as progress:
            for *others, largest in self.groups.values():
                reference = self._generate(trainer, module, largest, progress)
                pictures[largest] = reference.first_images[: self.shown]
                progress.finish_point(f"consistency, {_setting(largest)}: {self.num_images} images to compare with")
                for point in others:
                    generation = self._generate(trainer, module, point, progress)
                    pictures[point] = generation.first_images[: self.shown]
                    self.found[point] = {
                        **self.columns(point, trainer, module),
                        "num_images": self.num_images,
                        "reference_steps": largest.steps,
                        **distances(
                            (generation.first_images, generation.features.features),
                            (reference.first_images, reference.features.features),
                        ),
                        "features": features_name(self.extractor),
                        "resize": self.extractor.provenance.get("resize"),
                        "reference_timesteps": largest.timesteps,
                        "seconds": generation.seconds,
                    }
                    mse = significant(self.found[point]["mse"], 3)
                    progress.finish_point(f"consistency, {_setting(point)}: MSE {mse} to S {largest.steps}")
                if trainer.is_global_zero:
                    write_rows(self.directory, self.name, self.records(), self.context)
        if trainer.is_global_zero:
            self._show_all(trainer, pictures)

    def _generate(
        self, trainer: pl.Trainer, module: DenoisingModule, point: GridPoint, progress: GridProgress
    ) -> Generation:
        progress.start_point(_setting(point), self.num_images)
        generation = generate(
            trainer,
            module,
            self.extractor,
            point,
            self.sampling,
            num_samples=self.num_images,
            keep_images=self.num_images,
            advance=progress.advance,
            partial=self.partial(point, trainer, module, self.extractor),
        )
        if len(generation.first_images) != self.num_images:
            raise RuntimeError(f"{len(generation.first_images)} images where {self.num_images} were asked for")
        return generation

    def closer(self) -> list[tuple[GridPoint, float | None]]:
        """How many times larger than at eta = 0 the MSE is at another eta: at the second largest S, for each tau.

        None where there is no error at eta = 0.
        """
        ratios: list[tuple[GridPoint, float | None]] = []
        for (tau, label), members in self.groups.items():
            point = members[-2]
            still = self.groups.get((tau, "0"), members)[-2]
            if label != "0" and eta_label(still) == "0":
                mse = self.found[still]["mse"]
                ratios.append((point, self.found[point]["mse"] / mse if mse > 0 else None))
        return ratios

    def _show_all(self, trainer: pl.Trainer, pictures: Mapping[GridPoint, Tensor]) -> None:
        data = self.identity.get("dataset", "samples")
        for tau in dict.fromkeys(point.tau for point in self.points):
            groups = [members for (name, _), members in self.groups.items() if name == tau]
            order = [point for members in groups for point in members]
            picture = labelled_rows(
                [(f"{eta_title(eta_label(point))}   S = {point.steps}", pictures[point]) for point in order],
                f"{data}: each column starts from the same latent",
                breaks=[order.index(members[0]) for members in groups],
            )
            self.show(trainer, f"images{self.suffix(order[0])}", picture, "the same x_T at every S")
            self.show(trainer, f"distance{self.suffix(order[0])}", self._figure(groups))
        for point, row in self.found.items():
            values = {f"{self.name}/{name}/{curve_key(point)}": row[name] for name in NUMBERS}
            show_point(trainer, point.steps, point.nfe, values)
        rows = self.records()
        columns = [column for column in rows[0] if "timesteps" not in column]
        show_table(trainer, f"{self.name}/results", columns, [[row[column] for column in columns] for row in rows])
        show_summary(trainer, self._summary())

    def _figure(self, groups: Sequence[Sequence[GridPoint]]) -> Any:
        def lines(column: str) -> dict[str, list[tuple[int, float | None]]]:
            return {
                eta_title(eta_label(members[0])): [(point.steps, self.found[point][column]) for point in members[:-1]]
                for members in groups
            }

        row = self.found[groups[0][0]]
        about = {"weights": row.get("weights"), "τ": row["tau"], "seed": row.get("seed"), "features": row["features"]}
        return steps_figure(
            [
                Panel(
                    "pixels: mean squared error on [0, 1]",
                    lines("mse"),
                    level=(row["mse_between_samples"], "two different samples"),
                ),
                Panel(
                    "features: relative distance",
                    lines("feature_distance_relative"),
                    log=False,
                    level=(1.0, "two different samples"),
                ),
            ],
            f"{self.identity.get('dataset', 'samples')}: images of S steps against those of {row['reference_steps']} "
            f"from the same latents, {self.num_images:,} samples",
            " · ".join(f"{name} {value}" for name, value in about.items() if value is not None),
        )

    def _summary(self) -> dict[str, float]:
        """`consistency/mse/eta0.000/linear/steps0010`, and how many times closer eta = 0 is than each other eta."""
        values = {
            f"{self.name}/{column}/{point_key(point)}": row[column]
            for point, row in self.found.items()
            for column in NUMBERS
            if row[column] is not None
        }
        ratios = {f"{self.name}/mse_over_eta0/{point_key(point)}": ratio for point, ratio in self.closer()}
        return values | {key: ratio for key, ratio in ratios.items() if ratio is not None}

    def report(self, terminal: Terminal) -> None:
        several = len({point.tau for point in self.points}) > 1
        terminal.say(
            f"\nConsistency of {self.num_images:,} samples: distance to the images of the largest S from the same x_T",
            "bold",
        )
        for (tau, label), (*others, largest) in self.groups.items():
            rows = [self.found[point] for point in others]
            terminal.say(
                f"{eta_title(label)}{f', {tau} τ' if several else ''}, to S = {largest.steps} "
                f"(two different samples: MSE {significant(rows[0]['mse_between_samples'], 3)}, feature distance 1)"
            )
            lines = [
                [
                    str(row["steps"]),
                    significant(row["mse"], 3),
                    f"{row['ssim']:.3f}",
                    significant(row["feature_distance_relative"], 3),
                    significant(row["seconds"], 3),
                ]
                for row in rows
            ]
            terminal.table(["S", "MSE", "SSIM", "feature distance", "seconds"], lines)
            terminal.say()
        terminal.say(f"MSE and SSIM of pixels on [0, 1], distance of {features_name(self.extractor)} features")
        for point, ratio in self.closer():
            largest = self.groups[point.tau, eta_label(point)][-1]
            where = f"(MSE, S={point.steps} to S={largest.steps}{f', {point.tau} τ' if several else ''})"
            how = "at no distance" if ratio is None else f"{significant(ratio, 3)} times closer than"
            terminal.say(f"η = 0 is {how} {'' if ratio is None else eta_title(eta_label(point)) + ' '}{where}")
        terminal.say(f"\nTable     {self.directory / f'{self.name}.csv'}")


def _setting(point: GridPoint) -> str:
    return f"{eta_title(eta_label(point)).replace('η', 'eta').replace('σ̂', 'sigma_hat')} S {point.steps}"
