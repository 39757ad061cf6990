"""What an evaluation costs besides its network: `python -m benchmarks.evaluation`.

Trains the digits network for a few steps in a temporary folder, then prints how long the scripts take to their first
pass of the network, what a grid of 1, 2 and 4 points costs and what one more point does, split into sampling, features,
metrics and everything else, and how memory grows with N and S. Then the metrics alone, on random features, by turns
with torch-fidelity's own functions and torchmetrics.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.evaluation_probe import DIM, STARTED
from benchmarks.machine import describe
from benchmarks.timing import BUDGET, Blocks, Summary, alternate, table
from ddim.metrics import METRICS, NEIGHBOURS, Features, ReferenceStatistics, RunningMoments, compute_metrics

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("sampling", "features", "metrics", "pictures")


def probe(folder: Path, *arguments: str) -> dict[str, float]:
    """What `benchmarks.evaluation_probe` prints last, run in `folder`."""
    paths = [str(ROOT), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), STARTED: repr(time.time())}
    command = [sys.executable, "-m", "benchmarks.evaluation_probe", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def evaluate(folder: Path, points: int, samples: int) -> dict[str, float]:
    """A grid of as many points of about ten steps each; the caches in `folder` stay."""
    steps = ",".join(str(10 + number) for number in range(points))
    settings = (f"sampler.steps={steps}", "sampler.eta=0", f"evaluation.num_samples={samples}", "logger=csv")
    return probe(folder, "script", str(ROOT / "evaluate.py"), *settings, "evaluation.partial_every_seconds=1e6")


def train(folder: Path) -> dict[str, float]:
    settings = ("trainer.max_steps=3", "trainer.max_epochs=1", "callbacks=minimal", "logger=csv")
    return probe(folder, "script", str(ROOT / "train.py"), *settings)


def show_start(folder: Path, repeats: int) -> None:
    training, runs = [train(folder) for _ in range(repeats)], [evaluate(folder, 1, 64) for _ in range(repeats + 1)]
    helps = Blocks()
    for _ in range(repeats):
        for name in ("evaluate.py", "train.py"):
            call = [sys.executable, str(ROOT / name), "--help"]
            helps.run(name, lambda call=call: subprocess.run(call, capture_output=True, check=True))  # type: ignore[misc]
    rows = [
        ("evaluate.py, nothing cached, to the first sample", [runs[0]["first_sample"]]),
        ("evaluate.py, to the first pass of the network", [run["first_pass"] for run in runs[1:]]),
        ("evaluate.py, to the first sample", [run["first_sample"] for run in runs[1:]]),
        ("evaluate.py, 64 images at S = 10, from start to end", [run["whole"] for run in runs[1:]]),
        ("train.py, to the first pass of the network", [run["first_pass"] for run in training]),
        *((f"{name} --help", helps.seconds[name]) for name in helps.seconds),
    ]
    print("\nStart, seconds (digits)\n")
    print(table(["", "min", "median", "max"], [[name, *_cells(Summary.of(values))] for name, values in rows]))


def show_grid(folder: Path, samples: int, counts: Sequence[int], repeats: int) -> None:
    """The grid's wall time by parts, and that of one more point."""
    found: dict[int, dict[str, float]] = {}
    for count in counts:
        runs = [evaluate(folder, count, samples) for _ in range(repeats)]
        found[count] = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
    rows = [[f"{count} point{'s' * (count > 1)}", *_parts(found[count])] for count in counts]
    first, last = counts[0], counts[-1]
    difference = {key: (found[last][key] - found[first][key]) / (last - first) for key in found[first]}
    rows.append(["one more point", *_parts(difference)])
    print(f"\nA grid of {samples:,} digits a point, S = 10 and more, all metrics: seconds\n")
    print(table(["", "all", *PARTS, "rest"], rows))


def _parts(run: Mapping[str, float]) -> list[str]:
    parts = [run[f"{part}_seconds"] for part in PARTS]
    return [f"{seconds:.3f}" for seconds in (run["grid_seconds"], *parts, run["grid_seconds"] - sum(parts))]


def _cells(summary: Summary) -> list[str]:
    return [f"{value:.2f}" for value in (summary.low, summary.median, summary.high)]


def show_memory(folder: Path, rows: Sequence[int], steps: Sequence[int]) -> None:
    print(f"\nPeak memory of sampling and features, MB more than before (8x8 images, {DIM} features, batches of 512)\n")
    lines = []
    for kept in (False, True):
        name = "all features are kept (KID, precision, recall)" if kept else "moments are enough (Frechet distance)"
        cells = [probe(folder, "memory", str(n), str(s), str(kept))["megabytes"] for n in rows for s in steps]
        lines.append([name, *(f"{megabytes:.0f}" for megabytes in cells)])
    print(table(["", *(f"N = {n:,}, S = {s}" for n in rows for s in steps)], lines))


def show_metrics(count: int, dim: int, rounds: int, logits: int = 1008) -> None:
    """Each metric on random features of both sides, ours against its peers, on the same numbers."""
    generator = torch.Generator().manual_seed(0)
    generated, real = (torch.rand(count, dim, generator=generator) for _ in range(2))
    features = Features(generated, torch.randn(count, logits, generator=generator))
    moments = RunningMoments(dim)
    moments.update(real)
    reference = ReferenceStatistics(moments.mean, moments.covariance(), count, real, {}, "random")
    once = Blocks()
    once.run("root", lambda: reference.sigma_root)
    once.run("radii", lambda: reference.radii(NEIGHBOURS))
    print(
        f"\nMetrics of {count:,} x {dim:,} random features, seconds; once per reference: root of the covariance "
        f"{once.seconds['root'][0]:.2f}, radii {once.seconds['radii'][0]:.2f} (kept in the cache)\n"
    )
    lines = []
    for metric in METRICS:
        sides: dict[str, Callable[[], object]] = {
            "ddim": lambda metric=metric: compute_metrics(features, reference, [metric])  # type: ignore[misc]
        }
        sides |= _peers(metric, features, real)
        blocks = alternate(sides, rounds, warmup=0, budget=BUDGET / len(METRICS))
        for side in blocks.seconds:
            ratio = blocks.speedup(side, over=list(sides)[-1])
            lines.append([f"{metric}: {side}", *_cells(Summary.of(blocks.seconds[side])), f"{ratio.median:.2f}"])
    print(table(["", "min", "median", "max", "times as fast as the last"], lines))


def _peers(metric: str, generated: Features, real: Tensor) -> dict[str, Callable[[], object]]:
    """torch-fidelity's functions as it calls them itself, and torchmetrics' of the same numbers."""
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_isc import isc_features_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric
    from torchmetrics.image.fid import _compute_fid

    features, size = generated.features, min(1000, len(real))
    assert generated.logits is not None
    logits = generated.logits

    def statistics_of(rows: Tensor) -> dict[str, Any]:
        return fid_features_to_statistics(rows.double())

    theirs = statistics_of(real) if metric == "frechet_distance" else {}

    def torchmetrics_fid() -> object:
        found = statistics_of(features)
        first, second = (
            [torch.from_numpy(statistics[key]) for key in ("mu", "sigma")] for statistics in (found, theirs)
        )
        return _compute_fid(*first, *second)

    if metric == "frechet_distance":
        return {
            "torchmetrics": torchmetrics_fid,
            "torch-fidelity": lambda: fid_statistics_to_metric(statistics_of(features), theirs, verbose=False),
        }
    if metric == "kid":
        return {"torch-fidelity": lambda: kid_features_to_metric(features, real, kid_subset_size=size, verbose=False)}
    if metric == "precision_recall":
        options = {"save_cpu_ram": True, "prc_batch_size": 1000}
        return {
            "torch-fidelity": lambda: prc_features_to_metric(
                features, real, prc_neighborhood=3, verbose=False, **options
            )
        }
    return {"torch-fidelity": lambda: isc_features_to_metric(logits, splits=10)}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--samples", type=int, default=1000, help="digits per grid point (default: 1000)")
    parser.add_argument("--points", type=int, nargs="+", default=[1, 2, 4], help="sizes of the grid (default: 1 2 4)")
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000], help="random features (default: 10000)")
    parser.add_argument("--dim", type=int, default=DIM, help=f"dimensions of these (default: {DIM})")
    parser.add_argument("--memory-rows", type=int, nargs="+", default=[5_000, 50_000], help="N (default: 5000 50000)")
    parser.add_argument("--memory-steps", type=int, nargs="+", default=[5, 50], help="S (default: 5 50)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each (default: 3)")
    parser.add_argument("--only", choices=["start", "grid", "memory", "metrics"], nargs="+", help="these parts alone")
    options = parser.parse_args(arguments)
    only = options.only or ["start", "grid", "memory", "metrics"]
    print(describe())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "start" in only:
            show_start(folder, options.repeats)
        elif "grid" in only:
            train(folder)
            evaluate(folder, 1, 64)
        if "grid" in only:
            show_grid(folder, options.samples, options.points, options.repeats)
        if "memory" in only:
            show_memory(folder, options.memory_rows, options.memory_steps)
    if "metrics" in only:
        for count in options.rows:
            show_metrics(count, options.dim, options.repeats)
    print(f"\n{describe()}")


if __name__ == "__main__":
    main()
