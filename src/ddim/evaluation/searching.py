"""Grids that are searched with the trained network: once per checkpoint, and kept in the cache.

`sampler.tau=gits` follows the deterministic sampler's paths of latents that no measured sample starts from.
`sampler.tau=elbo` asks the variational bound of training images: test images are what is measured on. Either costs at
most 16,384 network calls, a third of 1,000 images at S = 50, and finds the timesteps of every S.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddim.data import ImageDataModule
from ddim.data.splits import spread
from ddim.diffusion import Noise, NoiseSchedule, NoiseSource
from ddim.diffusion.grid import GridPoint
from ddim.diffusion.guided_grid import all_calls
from ddim.diffusion.likelihood.bound import BOUND_VARIANCES, BoundTerms, bound_terms, join_terms
from ddim.diffusion.search.elbo import elbo
from ddim.diffusion.search.gits import TeacherTrajectory, jump_costs, teacher_trajectory
from ddim.diffusion.search.paths import cheapest_paths
from ddim.diffusion.selection import FEWEST_SEARCHED, SEARCHED, largest, search_candidates
from ddim.errors import UserError
from ddim.evaluation.kept.hashes import tensors_sha256
from ddim.evaluation.real_images import share_of, together
from ddim.evaluation.sampling import in_batches
from ddim.evaluation.subject import Subject
from ddim.runs.files import write_atomically
from ddim.runs.gathering import failing_together, from_first
from ddim.runs.hashes import data_sha256, plain_data

log = logging.getLogger(__name__)
# To be raised whenever the same settings come to find other timesteps.
FORMAT = 1
FOLDER = "searched_tau"
LATENTS = IMAGES = 256
# Of the search's noise: beyond all that `seed` can be.
SEED = 2**63
# Latents whose whole paths are in memory at once.
PATHS_AT_ONCE = 64
# S -> timesteps.
Answer = dict[int, tuple[int, ...]]


@dataclass(frozen=True, order=True)
class Question:
    """What is searched for: "gits", or the least bound of one model of the family.

    One answer of "gits" serves all samplers: on the digits network it was better than a search with the error of a
    second-order solver not only for DDIM, but for iPNDM and DEIS as well.
    """

    method: str
    eta: float = 1.0
    variance: str = "eta"
    clip_denoised: bool = False

    @classmethod
    def of(cls, point: GridPoint) -> Question:
        """That whose answer the point is sampled at."""
        if point.tau == "gits":
            return cls("gits")
        if point.eta == 0 or point.variance not in BOUND_VARIANCES:
            # What has no bound takes the timesteps of DDPM, as the paper did.
            return cls("elbo", clip_denoised=point.clip_denoised)
        return cls("elbo", point.eta, point.variance, point.clip_denoised)

    def besides(self) -> list[Question]:
        """Those that are answered at no further cost and likely to come next."""
        if self.method == "gits":
            return []
        return [replace(self, eta=1.0, variance=variance) for variance in BOUND_VARIANCES]

    def settings(self) -> dict[str, Any]:
        if self.method == "gits":
            return {"method": self.method, "latents": LATENTS}
        model = {"eta": self.eta, "variance": self.variance, "clip_denoised": self.clip_denoised}
        return {"method": self.method, **model, "images": IMAGES}


def any_searched(points: Mapping[str, Sequence[GridPoint]]) -> bool:
    """Whether a part has a point whose timesteps only stand in for those that a search finds."""
    return any(point.tau in SEARCHED for part in points.values() for point in part)


@dataclass
class Search:
    """Searches with one network.

    Attributes:
        network: what identifies it: the hash of the weights and the architecture.
        images: of the training split, for "elbo".
        cache_dir: where answers are kept.
    """

    network: Mapping[str, Any]
    images: ImageDataModule
    cache_dir: Path
    _teacher: TeacherTrajectory | None = field(default=None, init=False, repr=False)
    _terms: dict[bool, BoundTerms] = field(default_factory=dict, init=False, repr=False)

    def searched(self, points: Mapping[str, Sequence[GridPoint]], subject: Subject) -> dict[str, list[GridPoint]]:
        """The points of each part, those of a searched tau at the timesteps that were found. All processes call it.

        The first process searches for all: on another device rounding may find others.

        Raises UserError where the network gives no numbers, or a sampler refuses the timesteps.
        """
        questions = {Question.of(point) for where in points.values() for point in where if point.tau in SEARCHED}

        @failing_together
        def gathered(subject: Subject) -> dict[Question, Answer]:
            mine = {question: self._answer(question, subject) for question in sorted(questions) if subject.first}
            return from_first(mine, subject.world_size)

        answers = gathered(subject)
        found = {
            part: [
                moved(point, answers[Question.of(point)], subject.schedule) if point.tau in SEARCHED else point
                for point in where
            ]
            for part, where in points.items()
        }
        if subject.first:
            new = dict.fromkeys(point for where in found.values() for point in where if point.tau in SEARCHED)
            texts = {f"{point.tau}, S={point.steps}: {' '.join(map(str, point.timesteps))}": None for point in new}
            log.info("Timesteps that were found for sampler.tau: %s", "; ".join(texts))
        return found

    def _answer(self, question: Question, subject: Subject) -> Answer:
        """From the cache, or from the network and into the cache."""
        path, asked = self._kept(question, subject)
        known = _read(path, asked)
        if known is not None:
            log.info("sampler.tau=%s was searched before: %s", question.method, path)
            return known
        began, fresh = time.perf_counter(), not self._measured(question)
        answers = {other: self._search(other, subject) for other in dict.fromkeys((question, *question.besides()))}
        if fresh:
            log.info(
                "sampler.tau=%s took %s network calls, as many as %d images at S=50, and %.0f s; kept in %s",
                *(question.method, f"{self._calls(question):,}", self._calls(question) // 50),
                *(time.perf_counter() - began, path.parent),
            )
        for other, answer in answers.items():
            path, asked = self._kept(other, subject)
            _write(path, asked, answer, self._calls(other))
        return answers[question]

    def _search(self, question: Question, subject: Subject) -> Answer:
        wanted = range(FEWEST_SEARCHED, len(search_candidates(subject.schedule)) + 1)
        try:
            if question.method == "gits":
                if self._teacher is None:
                    self._teacher = _teacher_of(subject)
                paths = cheapest_paths(jump_costs(self._teacher), self._teacher.timesteps, wanted)
            else:
                if question.clip_denoised not in self._terms:
                    self._terms[question.clip_denoised] = _terms_of(self.images, subject, question.clip_denoised)
                terms = self._terms[question.clip_denoised]
                paths = elbo(terms, wanted, question.eta, variance=question.variance)
        except ValueError as error:
            raise UserError(f"sampler.tau={question.method} finds nothing with this network: {error}.") from error
        return {steps: path.timesteps for steps, path in zip(wanted, paths, strict=True)}

    def _measured(self, question: Question) -> bool:
        return self._teacher is not None if question.method == "gits" else question.clip_denoised in self._terms

    def _calls(self, question: Question) -> int:
        if question.method == "gits":
            return 0 if self._teacher is None else self._teacher.calls
        return self._terms[question.clip_denoised].error.numel()

    def _kept(self, question: Question, subject: Subject) -> tuple[Path, dict[str, Any]]:
        """The file of an answer, and all that it depends on."""
        asked = plain_data(
            {
                "format": FORMAT,
                **question.settings(),
                **self.network,
                "alpha_bar": tensors_sha256({"alpha_bar": subject.schedule.alpha_bar}),
                "candidates": search_candidates(subject.schedule),
                "shape": subject.shape,
                "compute_precision": subject.precision,
                "seen": self.images.provenance("train") if question.method == "elbo" else None,
            }
        )
        return self.cache_dir / FOLDER / f"{question.method}-{data_sha256(asked)[:16]}.json", asked


def moved(point: GridPoint, answer: Answer, schedule: NoiseSchedule) -> GridPoint:
    """The point at the timesteps that were found.

    Where its network calls are limited S is chosen anew: calls may depend on where timesteps are.
    """
    steps = point.steps
    if point.nfe_limit is not None:
        options = point.own_options
        steps, _ = largest(
            schedule, point.nfe_limit, point.sampler, options, sorted(answer), answer.__getitem__, "sampler"
        )
    found = replace(point, steps=steps, timesteps=answer[steps])
    return replace(found, nfe=all_calls(found, schedule))


def _teacher_of(subject: Subject) -> TeacherTrajectory:
    latents = NoiseSource(SEED).initial(torch.arange(LATENTS), subject.shape, subject.device)
    at_once = min(PATHS_AT_ONCE, subject.sampling.batch_size)

    def denoiser(x: Tensor, t: Tensor) -> Tensor:
        """In batches that memory holds."""

        def work(places: Tensor) -> Tensor:
            subject.check_signals()
            return subject.denoiser(x[places], t[places])

        return torch.cat(list(in_batches(subject.sampling, torch.arange(len(x)), work)))

    with subject.arithmetic():
        return teacher_trajectory(
            denoiser, latents, subject.schedule, search_candidates(subject.schedule), batch_size=at_once
        )


def _terms_of(images: ImageDataModule, subject: Subject, clip_denoised: bool) -> BoundTerms:
    available = images.num_images("train")
    count = min(IMAGES, available)
    alone = replace(subject.with_seed(SEED), rank=0, world_size=1)

    def denoiser(x: Tensor, t: Tensor) -> Tensor:
        subject.check_signals()
        return subject.denoiser(x, t)

    def work(x_0: Tensor, noise: Noise) -> BoundTerms:
        candidates = search_candidates(subject.schedule)
        return bound_terms(denoiser, x_0, subject.schedule, candidates, noise, clip_denoised=clip_denoised)

    share = share_of(partial(images.images, "train", limit=count), spread(available, count), alone)
    parts, _ = together(alone, share, work)
    return join_terms(parts)


def _read(path: Path, asked: Mapping[str, Any]) -> Answer | None:
    """What `_write` has written; None, with a warning, for anything else that is there."""
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text("utf-8"))
        if content["asked"] != asked:
            raise ValueError("it is of something else")
        answer = {int(steps): tuple(timesteps) for steps, timesteps in content["timesteps"].items()}
        candidates = asked["candidates"]
        if sorted(answer) != list(range(FEWEST_SEARCHED, len(candidates) + 1)):
            raise ValueError("numbers of steps are missing")
        for steps, timesteps in answer.items():
            # In the order of the candidates and among them.
            if len(timesteps) != steps or list(timesteps) != [t for t in candidates if t in timesteps]:
                raise ValueError(f"its {steps} timesteps are none that could be found")
        return answer
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        log.warning("%s is damaged, its search is done again: %s", path, " ".join(str(error).split()))
        return None


def _write(path: Path, asked: Mapping[str, Any], answer: Answer, calls: int) -> None:
    content = {"timesteps": answer, "all_calls": calls, "asked": asked}
    try:
        write_atomically((path, f"{json.dumps(content)}\n".encode()))
    except OSError as error:
        log.warning("%s could not be kept, the next evaluation searches again: %s", path, error)
