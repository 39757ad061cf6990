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
    from ddim.display.presenter import Pictures
    from ddim.evaluation.studies import grid as evaluation
    from ddim.evaluation.studies.grid import EvaluationGrid
    from ddim.evaluation.subject import Subject
    from ddim.metrics import FeatureExtractor

    timed(UNet, "forward", "network")
    timed(Subject, "draw", "sampling")
    timed(FeatureExtractor, "forward", "features")
    timed(evaluation, "measure_metrics", "metrics")
    timed(EvaluationGrid, "run", "grid")
    # Its pictures are drawn once, however many points there are.
    timed(Pictures, "picture", "pictures")
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
    import torch

    from ddim.data import Pixels
    from ddim.diffusion import NoiseSchedule, NoiseSource
    from ddim.diffusion.grid import grid_points
    from ddim.evaluation.sampling import generate
    from ddim.evaluation.subject import Sampling, Subject
    from ddim.metrics import FeatureExtractor, Features

    class Repeated(FeatureExtractor):
        def __init__(self) -> None:
            super().__init__("repeated", DIM, {})

        def extract(self, images: torch.Tensor) -> Features:
            return Features(images.float().flatten(1).repeat(1, DIM // 64))

    schedule = NoiseSchedule.linear()
    (point,) = grid_points(schedule, steps=steps, etas=0.0, tau="linear")

    def run(num_samples: int) -> None:
        subject = Subject(lambda x, t: 0.5 * x, schedule, Sampling(NoiseSource(0), Pixels((1, 8, 8)), 512))
        generate(subject, Repeated(), point, num_samples=num_samples, keep_images=64, keep_features=kept)

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
