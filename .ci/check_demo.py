"""What the demo's table has to show: the paper's claim on digits. Exits with 1 and a sentence if it does not."""

from __future__ import annotations

import sys
from pathlib import Path

from ddim.findings.files import read_results


def main() -> int:
    directory = max(Path("outputs/evaluate").iterdir(), key=lambda path: path.stat().st_mtime)
    results = read_results(directory)
    distance = {(row.eta, row.steps): row.frechet_distance for row in results.rows}
    assert results.floor is not None
    floor = results.floor.metrics["frechet_distance"]
    checks = {
        "every grid point was measured": all(value is not None for value in distance.values()) and len(distance) == 12,
        "every distance has its error bar": all(0 < (row.frechet_distance_sd or 0) < 1 for row in results.rows),
        "exactly 1,000 images per point": {row.num_samples for row in results.rows} == {1000},
        "eta 0 beats eta 1 at S=5": distance[0.0, 5] < distance[1.0, 5],
        "eta 0 beats eta 1 at S=10": distance[0.0, 10] < distance[1.0, 10],
        "eta 0 and eta 1 are close at S=50": abs(distance[0.0, 50] - distance[1.0, 50]) < 2 * floor,
        "S=50 lies within 3 times the floor": distance[0.0, 50] < 3 * floor,
        "the pictures are there": all((directory / name).is_file() for name in ("samples.png", "distance.png")),
        "the report is there": (directory / "report.html").is_file(),
    }
    for claim, holds in checks.items():
        print(f"{'ok  ' if holds else 'FAIL'} {claim}")
    return 0 if all(checks.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
