"""How the cost of sampling grows with S, N, the batch and the resolution: `python -m benchmarks.growth`.

Each is doubled with the others fixed, all points by turns; the exponent is the slope of a straight line through the
logarithms. Cost is proportional to all four where the exponents are 1. `--output growth.png` draws it.
"""

from __future__ import annotations

import argparse
import logging
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator

from benchmarks.machine import describe
from benchmarks.sampling import TINY, Ours
from benchmarks.timing import Blocks, alternate, table
from ddim.display.axes import COLOURS
from ddim.training.precision import AUTO

Measured = dict[str, dict[int, float]]


def exponent(seconds: Mapping[int, float]) -> float:
    """p of seconds = c * size^p, by least squares on the logarithms."""
    sizes, times = np.log(list(seconds)), np.log(list(seconds.values()))
    return float(np.polyfit(sizes, times, 1)[0])


def sides(tiny: bool, device: str, precision: str) -> tuple[dict[str, dict[int, Callable[[], object]]], Ours]:
    """What is timed, by quantity and size. N is sampled in batches of 8, the batch at N = batch."""
    config = TINY if tiny else {}
    ours = Ours(config, device, precision, 8)
    images = ours.sampling.batch_size

    def at(steps: int = 4, num_samples: int = images, batch: int = images) -> Callable[[], object]:
        def block() -> None:
            ours.sampling.batch_size = batch
            ours.sample(num_samples, ours.point(steps))

        return block

    def of_resolution(resolution: int) -> Callable[[], object]:
        # Attention where it is at the resolution of the configuration: its part would grow with the pixels squared.
        size = {"resolution": resolution, "attention_resolutions": [resolution // 2]}
        other = Ours({**config, **size}, device, precision, 16)
        return lambda: other.sample(16, other.point(4))

    return {
        "S (steps)": {steps: at(steps=steps) for steps in (2, 4, 8, 16)},
        "N (images)": {n: at(num_samples=n) for n in (8, 16, 32, 64)},
        "batch (images at once)": {batch: at(num_samples=batch, batch=batch) for batch in (4, 8, 16, 32)},
        "pixels (resolution squared)": {r * r: of_resolution(r) for r in ((16, 32) if tiny else (16, 32, 64))},
    }, ours


def measured(blocks: Blocks) -> Measured:
    found: Measured = {}
    for side, seconds in blocks.seconds.items():
        quantity, size = side.rsplit(" = ", 1)
        found.setdefault(quantity, {})[int(size)] = statistics.median(seconds)
    return found


def draw(found: Measured, path: Path, title: str) -> None:
    """Four panels of time against size, both logarithmic, each with the line of exponent 1 through its last point."""
    figure = Figure(figsize=(4 * len(found), 4), layout="constrained")
    figure.suptitle(title)
    for axis, (quantity, seconds) in zip(figure.subplots(1, len(found)), found.items(), strict=True):
        sizes, times = list(seconds), list(seconds.values())
        axis.loglog(sizes, [times[-1] * size / sizes[-1] for size in sizes], "--", color="#999999", label="exponent 1")
        axis.loglog(sizes, times, "o", color=COLOURS[0], label=f"measured, exponent {exponent(seconds):.2f}")
        axis.set(xlabel=quantity, ylabel="seconds", xticks=sizes, xticklabels=sizes)
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _position: f"{value:.3g}"))
        axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.minorticks_off()
        axis.grid(True, color="#dddddd", linewidth=0.8)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(loc="upper left")
    figure.savefig(path, dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="counted blocks of each point (default: 3)")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="default: cpu")
    parser.add_argument("--precision", default=AUTO, help=f"as trainer.precision (default: {AUTO})")
    parser.add_argument("--output", type=Path, help="a picture of it")
    parser.add_argument("--tiny", action="store_true", help="a very small network: does it run?")
    options = parser.parse_args()
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)

    by_quantity, ours = sides(options.tiny, options.device, options.precision)
    machine = describe(ours.device)
    print(machine)
    flat = {f"{quantity} = {size}": block for quantity, sizes in by_quantity.items() for size, block in sizes.items()}
    found = measured(alternate(flat, options.rounds, device=ours.device))
    rows = []
    for quantity, seconds in found.items():
        least, most = min(seconds), max(seconds)
        range_of_seconds = f"{seconds[least]:.2f} ... {seconds[most]:.2f}"
        rows.append([quantity, f"{least} ... {most}", range_of_seconds, f"{exponent(seconds):.3f}"])
    print(table(["quantity", "sizes", "seconds (median)", "exponent"], rows))
    if options.output is not None:
        draw(found, options.output, f"Cost of sampling, {ours.trainer.precision}, {machine.split(';')[0]}")
        print(options.output)


if __name__ == "__main__":
    main()
