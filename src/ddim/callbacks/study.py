"""What the parts of an evaluation have in common: points to sample, a directory to write, a table to print."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import pytorch_lightning as pl
import torch
from PIL import Image

from ddim.callbacks.gathering import from_first
from ddim.callbacks.generation import Sampling
from ddim.callbacks.partial import Partial
from ddim.callbacks.resumption import Finished, Resumption
from ddim.diffusion import SAMPLERS, SCHEDULES, NoiseSchedule
from ddim.files import save_picture
from ddim.grid import GridPoint
from ddim.lit_module import DenoisingModule
from ddim.metrics import FeatureExtractor
from ddim.show import show_image
from ddim.terminal import Terminal


class Study(pl.Callback):
    """One question asked of a trained network at the end of `trainer.test`.

    Every process runs it; files and pictures are the first one's. Afterwards `report` prints what was found.

    Args:
        points: what is sampled.
        sampling: where the samples come from.
        directory: everything is written there.
        identity: what the rows say about where they come from: dataset, checkpoint, weights, weights_hash, seed.
        show_progress: bars, or a line per point.
        context: written beside the rows (configuration, versions, hardware).
        resumption: what an earlier attempt at this evaluation has finished; None remembers and recalls nothing.
    """

    name: ClassVar[str]

    def __init__(
        self,
        points: Sequence[GridPoint],
        sampling: Sampling,
        directory: Path,
        identity: Mapping[str, Any],
        *,
        show_progress: bool = True,
        context: Mapping[str, Any] | None = None,
        resumption: Resumption | None = None,
    ) -> None:
        self.points = list(points)
        self.sampling = sampling
        self.directory = directory
        self.identity = dict(identity)
        self.show_progress = show_progress
        self.context = dict(context or {})
        self.resumption = resumption
        self.pictures: list[Path] = []
        self._partials: list[Partial] = []

    def run(self, trainer: pl.Trainer, module: DenoisingModule) -> None:
        """Do the work and write the files. Called on every process."""
        raise NotImplementedError

    def plan(self) -> str:
        """What will be done, for the log: "12 grid points of 1,000 images"."""
        raise NotImplementedError

    def report(self, terminal: Terminal) -> None:
        """Print what was found."""
        raise NotImplementedError

    def records(self) -> list[dict[str, Any]]:
        """What was found, as its files hold it; empty where nothing is measured."""
        return []

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, DenoisingModule)
        self.run(trainer, pl_module)

    def columns(self, point: GridPoint, trainer: pl.Trainer, module: DenoisingModule) -> dict[str, Any]:
        """What a row says about its sampler, its weights and its machine, under the names of `GridResult`."""
        return {
            **self.identity,
            "sampler": point.sampler,
            "eta": point.eta,
            "variance": point.variance,
            "tau": point.tau,
            "steps": point.steps,
            "nfe": point.nfe,
            "timesteps": point.timesteps,
            "clip_denoised": point.clip_denoised,
            "schedule": describe_schedule(module.schedule),
            "compute_precision": str(trainer.precision),
            "device": device_name(module.device, trainer.world_size),
        }

    def depends_on(self, point: GridPoint, trainer: pl.Trainer, module: DenoisingModule) -> dict[str, Any]:
        """All that the samples of a point depend on, besides the network that `resumption` knows."""
        described = asdict(point)
        return {
            "schedule": describe_schedule(module.schedule),
            "sampler": described.pop("sampler"),
            "point": described,
            **_versions(point, module.schedule),
            "seed": self.sampling.noise.seed,
            "shape": self.sampling.shape,
            "compute_precision": str(trainer.precision),
        }

    def partial(
        self, point: GridPoint, trainer: pl.Trainer, module: DenoisingModule, extractor: FeatureExtractor
    ) -> Partial | None:
        """Where features of a point's samples are kept while it, or the whole study, is not finished."""
        if self.resumption is None:
            return None
        what = {**self.depends_on(point, trainer, module), "extractor": extractor.provenance}
        self._partials.append(self.resumption.partial(what))
        return self._partials[-1]

    def forget_partial(self) -> None:
        """What was kept while samples were not measured is not needed any longer."""
        for partial in self._partials:
            partial.remove()

    def recall(self, wanted: Mapping[GridPoint, Mapping[str, Any]], trainer: pl.Trainer) -> dict[GridPoint, Finished]:
        """Those of the points, given with all that their rows depend on, that are finished; the same everywhere."""
        found: dict[GridPoint, Finished] = {}
        if self.resumption is None:
            return found
        if trainer.is_global_zero:
            self.resumption.tidy()
            every = {point: self.resumption.load(self.name, what) for point, what in wanted.items()}
            found = {point: finished for point, finished in every.items() if finished is not None}
        return from_first(found, trainer.world_size)

    def show(self, trainer: pl.Trainer, what: str, picture: Image.Image, caption: str = "") -> None:
        """Keep a picture as `<name>-<what>.png`, and under `<name>/<what>` in the loggers."""
        path = self.directory / f"{self.name}-{what}.png"
        save_picture(picture, path)
        self.pictures.append(path)
        show_image(trainer, f"{self.name}/{what}", picture, caption)

    def suffix(self, point: GridPoint) -> str:
        """Tells the pictures of several spacings apart."""
        return f"-{point.tau}" if len({point.tau for point in self.points}) > 1 else ""


def _versions(point: GridPoint, schedule: NoiseSchedule) -> dict[str, Any]:
    """What the names of a user's own sampler and schedule stand for; nothing where they are this package's."""
    versions: dict[str, Any] = {}
    if SAMPLERS[point.sampler].version is not None:
        versions["sampler_version"] = SAMPLERS[point.sampler].version
    if schedule.name in SCHEDULES:
        versions["alpha_bar"] = hashlib.sha256(schedule.alpha_bar.numpy().tobytes()).hexdigest()[:16]
    return versions


def describe_schedule(schedule: NoiseSchedule) -> str:
    """`linear(num_timesteps=1000, ...)`: what a distance depends on besides the sampler."""
    return f"{schedule.name}({', '.join(f'{key}={value}' for key, value in schedule.params.items())})"


def device_name(device: torch.device, processes: int = 1) -> str:
    """The hardware that a time was measured on."""
    return _one_device(device) + (f" x {processes}" if processes > 1 else "")


def _one_device(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type
    threads = torch.get_num_threads()
    return f"{_processor()}, {threads} thread{'s' if threads > 1 else ''}"


def _processor() -> str:
    """`platform.processor` is empty or just "x86_64" on Linux, where the kernel knows the name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine() or "cpu"
