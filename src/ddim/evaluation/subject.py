"""A trained network where it runs: what samples of it are, and all that they depend on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.exceptions import SIGTERMException
from torch import Tensor

from ddim.data import IMAGES, Space
from ddim.diffusion import GUIDANCE, SAMPLERS, SCHEDULES, Denoiser, Noise, NoiseSchedule, NoiseSource, StepState
from ddim.diffusion.grid import GridPoint
from ddim.diffusion.guidance.base import Conditional
from ddim.diffusion.guidance.settings import PREFIX
from ddim.diffusion.guidance.table import NONE
from ddim.errors import NotFiniteError, UserError
from ddim.evaluation.hardware import device_name
from ddim.metrics import full_float32


@dataclass
class Sampling:
    """Where samples come from, whatever the network and the sampler.

    Attributes:
        noise: addresses the noise; sample i starts from the same x_T at every point.
        space: what a sample is.
        batch_size: samples drawn at once by one process; results do not depend on it. `in_batches` lowers it where
            memory runs out, for all that is sampled afterwards.
    """

    noise: NoiseSource
    space: Space
    batch_size: int


@dataclass(frozen=True)
class Subject:
    """What is evaluated, on one of the processes that do it.

    Attributes:
        denoiser: (x (N, ...), t (N,)) -> eps, computed in the precision its weights are in.
        identity: what every row says of where it comes from: dataset, checkpoint, weights, weights_hash, seed.
        arithmetic: the precision that is set, in evaluation mode and without gradients; around everything sampled.
        precision: what that is called.
        trained_steps: of the network, for what is said where its samples are no numbers.
        check_signals: raises where somebody has asked the process to leave.
        bound_to: conditions (N, ...) of a batch, or None -> the network with them bound to it, and what guides it; None
            where `denoiser` is that of all samples.
        guide_hash: identifies the weights of the network that autoguidance guides by.
        condition_of: sample numbers (N,) -> the conditions (N, ...) that they are drawn with; None of a network
            without.
        classes: names of the classes, where conditions are these.
    """

    denoiser: Denoiser
    schedule: NoiseSchedule
    sampling: Sampling
    identity: Mapping[str, Any] = field(default_factory=dict)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    rank: int = 0
    world_size: int = 1
    arithmetic: Callable[[], AbstractContextManager[Any]] = torch.inference_mode
    precision: str = "32-true"
    trained_steps: int = 0
    check_signals: Callable[[], None] = lambda: None
    bound_to: Callable[[Tensor | None], Conditional] | None = None
    guide_hash: str | None = None
    condition_of: Callable[[Tensor], Tensor] | None = None
    classes: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, trainer: pl.Trainer, module: Any, sampling: Sampling, identity: Mapping[str, Any] | None = None
    ) -> Subject:
        """The network of a LightningModule with a `schedule`, as `trainer` runs it."""

        def check_signals() -> None:
            # Lightning takes note of the signal and leaves stopping to its own loops, which wait for this one.
            if getattr(trainer, "received_sigterm", False):
                raise SIGTERMException

        return cls(
            denoiser=module,
            schedule=module.schedule,
            sampling=sampling,
            identity=dict(identity or {}),
            device=module.device,
            rank=trainer.global_rank,
            world_size=trainer.world_size,
            arithmetic=lambda: sampling_context(trainer, module),
            precision=str(trainer.precision),
            trained_steps=module.global_step,
            check_signals=check_signals,
            bound_to=getattr(module, "bound_to", None),
            guide_hash=getattr(module, "guide_hash", None),
            condition_of=getattr(module, "condition_of", None),
            classes=tuple((getattr(module, "config", {}).get("condition") or {}).get("classes", ())),
        )

    def with_seed(self, seed: int) -> Subject:
        """The same network with noise of another seed."""
        sampling = replace(self.sampling, noise=NoiseSource(seed))
        return replace(self, sampling=sampling, identity={**self.identity, "seed": seed})

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample."""
        return self.sampling.space.shape

    def draw(self, point: GridPoint, indices: Tensor) -> Tensor:
        """Samples (N, ...) of the numbers `indices` (N,), as they are stored: uint8 for images.

        A sample depends on its number, the noise source's seed and the point, not on its batch mates.
        """
        noise = self.sampling.noise
        x_T = noise.initial(indices, self.shape, self.device)
        return self.sampling.space.to_stored(self.decode(point, x_T, indices=indices, noise=noise.bind(indices)))

    def denoiser_for(self, point: GridPoint, indices: Tensor) -> Denoiser:
        """(x (N, ...), t (N,)) -> eps of the samples `indices` (N,), in this order and no others, at a point."""
        condition = None if self.condition_of is None else self.condition_of(indices).to(self.device)
        name, options = point.guidance
        if self.bound_to is None or (name == NONE and condition is None):
            return self.denoiser
        return GUIDANCE[name].bind(self.bound_to(condition), **options)

    def decode(
        self,
        point: GridPoint,
        x_T: Tensor,
        *,
        indices: Tensor | None = None,
        noise: Noise | None = None,
        on_step: Callable[[StepState], object] | None = None,
    ) -> Tensor:
        """x_0 in model space, float (N, ...), of the latents x_T (N, ...).

        indices: the numbers (N,) of the samples, whose labels or measurements these are; None goes without.
        noise, on_step: as in `ddim.diffusion.sample`, but a point that needs noise refuses to go without.

        Raises NotFiniteError, a UserError, where x_0 is not finite, ValueError where noise is missing.
        """
        denoiser = self.denoiser if indices is None else self.denoiser_for(point, indices)
        return self._run(denoiser, point, x_T.to(self.device), noise, on_step)

    def encode(self, point: GridPoint, x_0: Tensor) -> Tensor:
        """The latents x_T (N, ...) that `decode` takes back to about x_0 (N, ...), in model space.

        Raises ValueError where the point's sampler has no inverse.
        """
        rule = SAMPLERS[point.sampler]
        with self.arithmetic():
            return rule.encode(
                point.scaled(self.denoiser),
                x_0.to(self.device),
                self.schedule,
                point.timesteps_tensor(),
                **point.own_options,
            )

    def told_in(self) -> dict[str, str]:
        """A column of rows with errors, where these are not of pixels on [0, 1]: what they are told in."""
        space = self.sampling.space
        return {} if space.kind == IMAGES else {"unit": space.unit}

    def columns(self, point: GridPoint) -> dict[str, Any]:
        """What a row says about its sampler, its weights and its machine, under the names of `GridResult`."""
        return {
            **self.identity,
            "sampler": point.sampler,
            **({"options": self._options(point)} if point.options else {}),
            "eta": point.eta,
            "variance": point.variance,
            "tau": point.tau,
            "steps": point.steps,
            "nfe": point.nfe,
            **({} if point.nfe_limit is None else {"nfe_limit": point.nfe_limit}),
            "timesteps": point.timesteps,
            "clip_denoised": point.clip_denoised,
            "schedule": describe_schedule(self.schedule),
            "compute_precision": self.precision,
            "device": self.device_name(),
        }

    def device_name(self) -> str:
        """The hardware that a time was measured on."""
        return device_name(self.device, self.world_size)

    def depends_on(self, point: GridPoint) -> dict[str, Any]:
        """All that the samples of a point depend on, besides the network."""
        described = asdict(point)
        # The one follows from the others, the other has led to them.
        del described["nfe"], described["nfe_limit"]
        if not point.options:
            # Points that were finished before samplers had options of their own are the same points.
            del described["options"]
        else:
            described["options"] = self._options(point)
        return {
            "schedule": describe_schedule(self.schedule),
            "sampler": described.pop("sampler"),
            "point": described,
            **versions_of(point, self.schedule),
            "seed": self.sampling.noise.seed,
            "shape": self.shape,
            "compute_precision": self.precision,
        }

    def diverged(self) -> NotFiniteError:
        """Of samples that the network alone has made."""
        said = f"The samples at step {self.trained_steps} are not finite numbers: training has diverged"
        return NotFiniteError(f"{said}; lower optimizer.lr or lengthen optimizer.warmup_steps.")

    def _options(self, point: GridPoint) -> tuple[tuple[str, Any], ...]:
        """Those of the point, with the weights that guide it where a network does."""
        name, _ = point.guidance
        if not GUIDANCE[name].needs_guide or self.guide_hash is None:
            return point.options
        return (*point.options, (f"{PREFIX}weights", self.guide_hash[:16]))

    def _run(
        self,
        denoiser: Denoiser,
        point: GridPoint,
        x_T: Tensor,
        noise: Noise | None,
        on_step: Callable[[StepState], object] | None,
    ) -> Tensor:
        with self.arithmetic():
            try:
                x_0 = SAMPLERS[point.sampler].run(
                    point.scaled(denoiser),
                    x_T,
                    self.schedule,
                    point.timesteps_tensor(),
                    eta=point.eta,
                    variance=point.variance,
                    clip_denoised=point.clip_denoised,
                    noise=_no_noise if noise is None else noise,
                    on_step=on_step,
                    **point.own_options,
                )
            except ValueError as error:
                if SAMPLERS[point.sampler].version is None:
                    raise
                raise UserError(f"sampler.name={point.sampler} cannot be used: {error}.") from error
            if not torch.isfinite(x_0).all():
                raise self.diverged()
            return x_0


def _no_noise(step: int, like: Tensor) -> Tensor:
    raise ValueError(f"step {step} needs noise and none was given: random numbers of nowhere could not be repeated")


@contextmanager
def sampling_context(trainer: pl.Trainer, module: pl.LightningModule) -> Iterator[None]:
    """The precision the trainer is set to, in evaluation mode, without gradients.

    32-true is what its name says, although a GPU's convolutions are TF32 unless told otherwise.
    """
    was_training = module.training
    module.eval()
    arithmetic = full_float32(module.device.type) if trainer.precision == "32-true" else nullcontext()
    try:
        with torch.inference_mode(), arithmetic, trainer.precision_plugin.forward_context():
            yield
    finally:
        module.train(was_training)


def versions_of(point: GridPoint, schedule: NoiseSchedule) -> dict[str, Any]:
    """What the names of a user's own sampler and schedule stand for; nothing where they are this package's."""
    versions: dict[str, Any] = {}
    if SAMPLERS[point.sampler].version is not None:
        versions["sampler_version"] = SAMPLERS[point.sampler].version
    if GUIDANCE[point.guidance[0]].version is not None:
        versions["guidance_version"] = GUIDANCE[point.guidance[0]].version
    if schedule.name in SCHEDULES:
        versions["alpha_bar"] = hashlib.sha256(schedule.alpha_bar.numpy().tobytes()).hexdigest()[:16]
    return versions


def describe_schedule(schedule: NoiseSchedule) -> str:
    """`linear(num_timesteps=1000, ...)`: what a distance depends on besides the sampler."""
    return f"{schedule.name}({', '.join(f'{key}={value}' for key, value in schedule.params.items())})"
