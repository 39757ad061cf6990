"""Likelihood of held-out data by the variational bound and by the flow of the deterministic sampler: bits per dimension
of images, nats of anything else.

What both are is said in `ddim.diffusion.likelihood`; here samples are chosen, shared among the processes and averaged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from ddim.data import IMAGES as PIXELS
from ddim.data.splits import spread
from ddim.diffusion import Noise, NoiseSchedule
from ddim.diffusion.grid import GridPoint, SamplerConfig, grid_points
from ddim.diffusion.likelihood.bound import BOUND_VARIANCES, BoundTerms, bound_terms, join_terms, variational_bound
from ddim.diffusion.likelihood.flow import FlowLikelihood
from ddim.errors import UserError
from ddim.evaluation.kept.finished import Finished, Kept
from ddim.evaluation.likelihood.asked import flow_of, watched
from ddim.evaluation.likelihood.maps import density_map
from ddim.evaluation.likelihood.settings import LikelihoodConfig
from ddim.evaluation.likelihood.units import Bits, Nats
from ddim.evaluation.real_images import Images, Share, share_of, together
from ddim.evaluation.study import IMAGES, Bar, Material, Progress, Study
from ddim.evaluation.subject import Subject
from ddim.findings.labels import significant
from ddim.findings.parts.likelihood import BOUND, FLOW, TIMESTEP
from ddim.findings.telling import Findings
from ddim.metrics import preprocessing_hash
from ddim.runs.hashes import data_sha256

# What a flow is expected to cost beside a pass over the timesteps, for the progress: calls with a backward pass each.
FLOW_COST = 600


class Likelihood(Study):
    """Bits per dimension: how many bits a value of an image takes in the best code that the model makes; or nats.

    One pass over all timesteps gives the bound of every point and of every timestep. The flow is that of eta = 0 along
    all timesteps. Image i has the noise of number i, whatever the other images, the batch and the processes; the flow's
    solver takes its steps for a batch, so that there bits depend on the batch within the tolerance.

    Args:
        points: what the bound is of; none leaves it out.
        images: batch size -> batches (B, ...) as they are stored, uint8 (B, C, H, W) of images, in a fixed order.
        numbers: which of their split these are, in the same order.
        split: where they come from, for the rows.
        dequantizations: a flow is followed for each; without levels one for any.
        tolerance: of the flow's solver.
        source: what identifies the images; without it nothing finished is recalled.
        unit: what likelihoods are told in.
        plane: held-out points (N, 2) as they are stored, over which the density is drawn; None draws none.

    Raises ValueError for a point that the bound is not defined for.
    """

    name = "likelihood"
    guided = False
    Settings = LikelihoodConfig
    needs: ClassVar[frozenset[str]] = frozenset({IMAGES})

    def __init__(
        self,
        points: Sequence[GridPoint],
        *,
        images: Images,
        numbers: Sequence[int],
        split: str = "test",
        dequantizations: Sequence[str] = (),
        tolerance: float = 1e-4,
        source: Mapping[str, Any] | None = None,
        unit: Bits | Nats | None = None,
        plane: Callable[[], Tensor] | None = None,
    ) -> None:
        self.points = list(points)
        if any(_has_no_bound(point) for point in self.points):
            raise ValueError("likelihood needs points of ddim with eta > 0, or sigma_hat: no others have a bound")
        self.images = images
        self.numbers = list(numbers)
        self.split = split
        self.unit = unit or Bits()
        self.plane = plane
        # What has no levels is not dequantised.
        flows = list(dequantizations)
        self.dequantizations: list[str | None] = [*flows] if self.unit.levels else [None] * bool(flows)
        self.tolerance = tolerance
        self.source = source

    @classmethod
    def grid(cls, settings: LikelihoodConfig, sampler: SamplerConfig, schedule: NoiseSchedule) -> list[GridPoint]:
        """The points of the bound: for each eta those of `sampler.steps` and `sampler.tau`, then all timesteps."""
        if not settings.bound:
            return []
        prefix = f"evaluation.{cls.name}"
        # The bound is one of DDIM's family with the same eta in every step, whatever samples.
        family = replace(sampler, name="ddim", options={}, eta=settings.eta, eps_scale=1.0, eps_slope=0.0)
        points = family.points(schedule, prefix)
        for point in points:
            if _has_no_bound(point):
                given = f"{point.eta:g}" if point.variance == "eta" else point.variance
                raise UserError(
                    f"{prefix}.eta={given} has no bound; take numbers above 0 or sigma_hat. The deterministic "
                    f"sampler's likelihood is that of {prefix}.flow=true."
                )
        every = replace(family, steps=schedule.num_timesteps, nfe=None, tau="linear").points(schedule, prefix)
        found = []
        for last in every:
            same = [p for p in points if (p.eta, p.variance) == (last.eta, last.variance)]
            found += [*(point for point in same if point != last), last]
        return found

    @classmethod
    def of(cls, settings: LikelihoodConfig, points: Sequence[GridPoint], material: Material) -> Likelihood:
        images, wanted = material.images, settings.num_images
        available = images.num_images("test")
        if wanted is not None and wanted > available:
            raise UserError(
                f"evaluation.likelihood.num_images={wanted} is more than the {available} images of the test split "
                f"of {images.name}; take at most {available}, or null for all."
            )
        count = available if wanted is None else wanted
        return cls(
            points,
            images=partial(images.images, "test", limit=count),
            numbers=spread(available, count),
            dequantizations=settings.dequantization if settings.flow else (),
            tolerance=settings.tolerance,
            source=images.provenance("test"),
            unit=None if images.space.kind == PIXELS else Nats(images.space, images.log_density),
            plane=partial(_all_of, partial(images.images, "test")) if images.space.shape == (2,) else None,
        )

    def plan(self) -> str:
        what = ["bound"] * bool(self.points) + ["flow"] * bool(self.dequantizations)
        return f"likelihood of {len(self.numbers):,} {self.split} images by {' and '.join(what)}"

    def run(self, subject: Subject, kept: Kept, say: Findings, progress: Progress) -> None:
        (every,) = grid_points(subject.schedule, steps=subject.schedule.num_timesteps, etas=0.0, tau="linear")
        wanted: dict[Any, dict[str, Any]] = {point: self._depends_on(point, subject) for point in self.points}
        for kind in self.dequantizations:
            about = {"dequantization": kind, "tolerance": self.tolerance}
            wanted[kind] = {**self._depends_on(every, subject), **about}
        found: dict[Any, Finished] = {}
        if self.source is not None:
            found = kept.recall(self.name, wanted, first=subject.first, world_size=subject.world_size)
        before, share = set(found), None
        if len(found) < len(wanted):
            share = share_of(self.images, self.numbers, subject)

        def keep(what: Any, row: dict[str, Any]) -> None:
            found[what] = Finished(row, subject.sampling.space.empty())
            if self.source is not None and subject.first:
                kept.save(self.name, wanted[what], found[what])

        say.begin()
        costs = [every.nfe] * bool(self.points) + [FLOW_COST] * len(self.dequantizations)
        with progress(costs) as bar:
            if self.points:
                if share is not None and not set(self.points) <= before:
                    for point, row in self._bounds(subject, share, bar).items():
                        keep(point, row)
                self._say_bounds(subject, found, say)
                again = ", finished before" if set(self.points) <= before else ""
                bar.finish_point(
                    f"likelihood, bound along {every.nfe:,} timesteps: {_told(found[self.points[-1]])}{again}"
                )
            for kind in self.dequantizations:
                if share is not None and kind not in before:
                    keep(kind, self._flow(subject, share, kind, bar))
                row = {"kind": FLOW, **self._columns(every, subject), "steps": None, "timesteps": None}
                say.row({**row, "dequantization": kind, "tolerance": self.tolerance, **found[kind].row})
                again = ", finished before" if kind in before else ""
                bar.finish_point(f"likelihood, {_flow_name(kind)}: {_told(found[kind])}{again}")
        if subject.first:
            if self.plane is not None and self.dequantizations and isinstance(self.unit, Nats):
                say.picture(*density_map(subject, self.unit, self.plane(), self.tolerance))
            say.end()

    def _say_bounds(self, subject: Subject, found: Mapping[Any, Finished], say: Findings) -> None:
        """The rows of the points, and for those along all timesteps a row for each."""
        timesteps = []
        for point in self.points:
            row = {**found[point].row}
            each = row.pop("each", {})
            say.row({"kind": BOUND, **self._columns(point, subject), **row})
            setting = {"sampler": point.sampler, "eta": point.eta, "variance": point.variance, "tau": point.tau}
            for number, t in enumerate(point.timesteps if each else ()):
                # What differs most comes first: rows of several evaluations are compared with each other.
                own = {"kind": TIMESTEP, "timestep": t, **{name: values[number] for name, values in each.items()}}
                timesteps.append({**own, **setting, "num_images": len(self.numbers), **subject.identity})
        if timesteps:
            say.row(*timesteps)

    def _columns(self, point: GridPoint, subject: Subject) -> dict[str, Any]:
        return {
            **subject.columns(point),
            "num_images": len(self.numbers),
            "split": self.split,
            "preprocessing": None if self.source is None else preprocessing_hash(self.source),
        }

    def _depends_on(self, point: GridPoint, subject: Subject) -> dict[str, Any]:
        numbers = data_sha256({"numbers": self.numbers})
        stated = subject.sampling.space.stated()
        found = {**subject.depends_on(point), "split": self.split, "numbers": numbers, "images": self.source}
        return found if stated is None else {**found, "space": stated}

    def _bounds(self, subject: Subject, share: Share, bar: Bar) -> dict[GridPoint, dict[str, Any]]:
        """What is measured at each point, by one pass over the timesteps."""
        schedule, count = subject.schedule, subject.schedule.num_timesteps
        denoiser = watched(subject, lambda images: bar.advance(images * subject.world_size))

        def work(x_0: Tensor, noise: Noise) -> BoundTerms:
            clip, levels = self.points[0].clip_denoised, self.unit.levels
            return bound_terms(denoiser, x_0, schedule, range(count), noise, levels=levels, clip_denoised=clip)

        bar.start_point("bound, network calls", len(self.numbers) * count)
        parts, seconds = together(subject, share, work)
        terms = join_terms(parts)
        rows: dict[GridPoint, dict[str, Any]] = {}
        for point in self.points:
            bound = variational_bound(terms, point.timesteps, point.eta, variance=point.variance)
            if not bool(bound.total.isfinite().all()):
                raise UserError(
                    f"The bound at step {subject.trained_steps} is not a finite number: training has diverged; lower "
                    "optimizer.lr or lengthen optimizer.warmup_steps."
                )
            rows[point] = row = self.unit.row(bound.total, self._stored(subject))
            row |= self.unit.ends(bound.prior, bound.steps[:, 0])
            if len(point.timesteps) == count:
                each = {"step_bits": bound.steps, "eps_error": terms.eps_error} if self.unit.levels else {}
                row["seconds"] = seconds
                row["each"] = {name: values.mean(dim=0).tolist() for name, values in each.items()}
            row["device"] = subject.device_name()
        return rows

    def _flow(self, subject: Subject, share: Share, kind: str | None, bar: Bar) -> dict[str, Any]:
        asked: dict[str, Any] = {"levels": self.unit.levels, "divergence": self.unit.divergence}
        asked |= {"tolerance": self.tolerance, **({} if kind is None else {"dequantization": kind})}

        def work(x_0: Tensor, noise: Noise) -> FlowLikelihood:
            found = flow_of(subject, x_0, noise, **asked)
            bar.advance(len(x_0) * subject.world_size)
            return found

        bar.start_point(_flow_name(kind), len(self.numbers))
        parts, seconds = together(subject, share, work)
        calls = sum(part.calls * len(part.bits) for part in parts) / len(self.numbers)
        row = self.unit.row(torch.cat([part.bits for part in parts]), self._stored(subject))
        return {**row, "nfe": round(calls), "seconds": seconds, "device": subject.device_name()}

    def _stored(self, subject: Subject) -> Callable[[], Tensor]:
        """All samples as they are stored, in the order in which `together` returns what was found of them."""

        def read() -> Tensor:
            every = _all_of(self.images)
            return torch.cat([every[rank :: subject.world_size] for rank in range(subject.world_size)])

        return read


def _has_no_bound(point: GridPoint) -> bool:
    return point.sampler != "ddim" or point.eta == 0 or point.variance not in BOUND_VARIANCES


def _all_of(images: Images) -> Tensor:
    return torch.cat(list(images(500)))


def _flow_name(dequantization: str | None) -> str:
    return "flow" if dequantization is None else f"flow, {dequantization}"


def _told(known: Finished) -> str:
    row = known.row
    if "log_density" in row:
        return f"log-density {significant(row['log_density'])} nats"
    return f"{significant(row['bits_per_dimension'])} bits per dimension"
