"""Likelihood: bits per dimension of test images, by the variational bound and by the flow of the deterministic sampler.

What both are is said in `ddim.diffusion.likelihood`; here images are chosen, shared among the processes and averaged.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from ddim.data.splits import spread
from ddim.diffusion import Denoiser, Noise, NoiseSchedule
from ddim.diffusion.grid import GridPoint, SamplerConfig, grid_points
from ddim.diffusion.likelihood.bound import BOUND_VARIANCES, BoundTerms, bound_terms, join_terms, variational_bound
from ddim.diffusion.likelihood.flow import FlowLikelihood, flow_likelihood
from ddim.diffusion.likelihood.quantized import DEQUANTIZATIONS
from ddim.errors import UserError, at_least, some_of
from ddim.evaluation.kept.finished import Finished, Kept
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


@dataclass
class LikelihoodConfig:
    """Bits per dimension of test images: a bound for the random samplers, the flow of the deterministic one.

    Attributes:
        num_images: of the test split, evenly spread over it; null takes all.
        bound: whether the bound is computed, along each τ of `sampler` and along all timesteps.
        flow: whether the flow is followed.
        eta (as sampler.eta, without 0 and sigma_hat_official): which of DDIM's family the bound is of.
        dequantization (truncated_normal, uniform; or a list): of the flow.
        tolerance: of the flow's solver, relative and absolute.
    """

    num_images: int | None = 100
    bound: bool = True
    flow: bool = True
    eta: Any = field(default_factory=lambda: [1.0, "sigma_hat"])
    dequantization: Any = "truncated_normal"
    tolerance: float = 1e-4

    def check(self, key: str) -> None:
        if self.num_images is not None:
            at_least(f"{key}.num_images", self.num_images, 1)
        if not self.bound and not self.flow:
            raise UserError(f"{key}.bound=false with {key}.flow=false leaves nothing to compute; take one of them.")
        self.dequantization = some_of(f"{key}.dequantization", self.dequantization, DEQUANTIZATIONS)
        if not 0 < self.tolerance < 1:
            raise UserError(f"{key}.tolerance={self.tolerance} must be a number between 0 and 1, for example 1e-4.")


class Likelihood(Study):
    """Bits per dimension: how many bits a value of an image takes in the best code that the model makes.

    One pass over all timesteps gives the bound of every point and of every timestep. The flow is that of eta = 0 along
    all timesteps. Image i has the noise of number i, whatever the other images, the batch and the processes; the flow's
    solver takes its steps for a batch, so that there bits depend on the batch within the tolerance.

    Args:
        points: what the bound is of; none leaves it out.
        images: batch size -> uint8 batches (B, C, H, W) of the images in a fixed order.
        numbers: which of their split these are, in the same order.
        split: where they come from, for the rows.
        dequantizations: a flow is followed for each.
        tolerance: of the flow's solver.
        source: what identifies the images; without it nothing finished is recalled.

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
    ) -> None:
        self.points = list(points)
        if any(_has_no_bound(point) for point in self.points):
            raise ValueError("likelihood needs points of ddim with eta > 0, or sigma_hat: no others have a bound")
        self.images = images
        self.numbers = list(numbers)
        self.split = split
        self.dequantizations = list(dequantizations)
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
                    f"likelihood, bound along {every.nfe:,} timesteps: {_bits(found[self.points[-1]])}{again}"
                )
            for kind in self.dequantizations:
                if share is not None and kind not in before:
                    keep(kind, self._flow(subject, share, kind, bar))
                row = {"kind": FLOW, **self._columns(every, subject), "steps": None, "timesteps": None}
                say.row({**row, "dequantization": kind, "tolerance": self.tolerance, **found[kind].row})
                again = ", finished before" if kind in before else ""
                bar.finish_point(f"likelihood, flow, {kind}: {_bits(found[kind])}{again}")
        if subject.first:
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
        return {**subject.depends_on(point), "split": self.split, "numbers": numbers, "images": self.source}

    def _bounds(self, subject: Subject, share: Share, bar: Bar) -> dict[GridPoint, dict[str, Any]]:
        """What is measured at each point, by one pass over the timesteps."""
        schedule, count = subject.schedule, subject.schedule.num_timesteps
        denoiser = _watched(subject, lambda images: bar.advance(images * subject.world_size))

        def work(x_0: Tensor, noise: Noise) -> BoundTerms:
            clip = self.points[0].clip_denoised
            return bound_terms(denoiser, x_0, schedule, range(count), noise, clip_denoised=clip)

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
            decoder = bound.steps[:, 0].mean().item()
            rows[point] = {**_bits_of(bound.total), "prior": bound.prior.mean().item(), "decoder": decoder}
            if len(point.timesteps) == count:
                each = {"step_bits": bound.steps, "eps_error": terms.eps_error}
                means = {name: values.mean(dim=0).tolist() for name, values in each.items()}
                rows[point] |= {"seconds": seconds, "each": means}
            rows[point]["device"] = subject.device_name()
        return rows

    def _flow(self, subject: Subject, share: Share, kind: str, bar: Bar) -> dict[str, Any]:
        denoiser = _watched(subject, lambda images: None)

        def work(x_0: Tensor, noise: Noise) -> FlowLikelihood:
            try:
                found = flow_likelihood(
                    denoiser, x_0, subject.schedule, noise, dequantization=kind, tolerance=self.tolerance
                )
            except ValueError as error:
                raise UserError(
                    f"evaluation.likelihood.flow=true is not possible with this network: {error}."
                ) from error
            bar.advance(len(x_0) * subject.world_size)
            return found

        bar.start_point(f"flow, {kind}", len(self.numbers))
        parts, seconds = together(subject, share, work)
        calls = sum(part.calls * len(part.bits) for part in parts) / len(self.numbers)
        bits = _bits_of(torch.cat([part.bits for part in parts]))
        return {**bits, "nfe": round(calls), "seconds": seconds, "device": subject.device_name()}


def _has_no_bound(point: GridPoint) -> bool:
    return point.sampler != "ddim" or point.eta == 0 or point.variance not in BOUND_VARIANCES


def _watched(subject: Subject, called: Callable[[int], None]) -> Denoiser:
    """The network, asking before each call whether the process is to leave: one batch may take an hour."""

    def denoiser(x: Tensor, t: Tensor) -> Tensor:
        subject.check_signals()
        called(len(x))
        return subject.denoiser(x, t)

    return denoiser


def _bits_of(images: Tensor) -> dict[str, Any]:
    """The mean over images (N,) and its standard error, which one image does not have."""
    error = images.std().item() / math.sqrt(len(images)) if len(images) > 1 else None
    return {"bits_per_dimension": images.mean().item(), "standard_error": error}


def _bits(known: Finished) -> str:
    return f"{significant(known.row['bits_per_dimension'])} bits per dimension"
