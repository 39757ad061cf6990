"""One measurement in a process of its own: `python -m benchmarks.evaluation_probe WHAT ...` prints one line of JSON.

`script PATH ARGUMENTS` runs train.py or evaluate.py as a user does and notes when the first pass of the network begins
and where the time of a grid goes. `memory ROWS STEPS KEPT` generates ROWS samples with 2048 features each, with a
network of one multiplication, and notes what that adds to the process's memory at most.
"""

from __future__ import annotations

import json
import os
import resource
import runpy
import sys
import time
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

# When the process was started, by the clock of the one that started it.
STARTED = "DDIM_BENCHMARK_STARTED"
DIM = 2048


def script(path: str, arguments: list[str]) -> dict[str, float]:
    """Seconds from the start of the process, and inside the parts of a grid."""
    started = float(os.environ[STARTED])
    at: dict[str, float] = {}
    seconds: Counter[str] = Counter()

    def timed(owner: Any, name: str, part: str) -> None:
        inner: Callable[..., Any] = getattr(owner, name)

        def outer(*args: Any, **kwargs: Any) -> Any:
            at.setdefault(part, time.time() - started)
            began = time.perf_counter()
            try:
                return inner(*args, **kwargs)
            finally:
                seconds[part] += time.perf_counter() - began

        setattr(owner, name, outer)

    from ddim.denoisers import UNet
    from ddim.evaluation.studies import grid as evaluation
    from ddim.evaluation.studies.grid import EvaluationGrid
    from ddim.metrics import FeatureExtractor
    from ddim.training.module import DenoisingModule

    timed(UNet, "forward", "network")
    timed(DenoisingModule, "sample_images", "sampling")
    timed(FeatureExtractor, "forward", "features")
    timed(evaluation, "compute_metrics", "metrics")
    timed(EvaluationGrid, "run", "grid")
    # Its pictures are drawn once, however many points there are.
    timed(EvaluationGrid, "_save_grid", "pictures")
    sys.argv = [path, *arguments]
    sys.path.insert(0, os.path.dirname(path))
    runpy.run_path(path, run_name="__main__")
    found = {f"{part}_seconds": seconds[part] for part in ("sampling", "features", "metrics", "grid", "pictures")}
    return {
        **found,
        "first_pass": at["network"],
        "first_sample": at.get("sampling", 0.0),
        "whole": time.time() - started,
    }


def memory(rows: int, steps: int, kept: bool) -> dict[str, float]:
    """Megabytes that generating the samples adds at most to what the process had before."""
    import pytorch_lightning as pl
    import torch

    from ddim.diffusion import NoiseSchedule, NoiseSource
    from ddim.diffusion.grid import grid_points
    from ddim.evaluation.sampling import Sampling, generate
    from ddim.metrics import FeatureExtractor, Features
    from ddim.training.module import DenoisingModule

    class Repeated(FeatureExtractor):
        def __init__(self) -> None:
            super().__init__("repeated", DIM, {})

        def extract(self, images: torch.Tensor) -> Features:
            return Features(images.float().flatten(1).repeat(1, DIM // 64))

    class Scaled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.nn.Parameter(torch.tensor(0.5))

        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return self.scale * x

    module = DenoisingModule(Scaled(), NoiseSchedule.linear(), optimizer={})
    (point,) = grid_points(module.schedule, steps=steps, etas=0.0, tau="linear")
    trainer = SimpleNamespace(
        global_rank=0, world_size=1, precision="32-true", precision_plugin=pl.plugins.precision.Precision()
    )

    def run(num_samples: int) -> None:
        sampling = Sampling(NoiseSource(0), (1, 8, 8), 512)
        generate(
            trainer,  # type: ignore[arg-type]
            module,
            Repeated(),
            point,
            sampling,
            num_samples=num_samples,
            keep_images=64,
            keep_features=kept,
        )

    run(1024)
    before = _peak()
    run(rows)
    return {"megabytes": _peak() - before}


def _peak() -> float:
    """Of this process so far, in megabytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def main() -> None:
    what, *arguments = sys.argv[1:]
    if what == "script":
        found = script(arguments[0], arguments[1:])
    else:
        found = memory(int(arguments[0]), int(arguments[1]), arguments[2] == "True")
    print(f"\n{json.dumps(found)}")


if __name__ == "__main__":
    main()
