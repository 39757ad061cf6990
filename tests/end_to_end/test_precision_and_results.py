"""bfloat16 moves a distance by less than another seed does: precision is not a setting of the experiment."""

from __future__ import annotations

import statistics

from ddim.results import read_results


def test_distances_change_by_less_than_between_seeds(run_script, workplace, digits_run):
    distances: dict[str, list[dict[tuple[float, int], float]]] = {"32-true": [], "bf16-mixed": []}
    for precision, found in distances.items():
        for seed in range(3):
            outcome = run_script(
                "evaluate.py",
                f"checkpoint={digits_run}",
                f"seed={seed}",
                f"trainer.precision={precision}",
                f"hydra.run.dir={workplace / precision / str(seed)}",
                "sampler.eta=0,1",
                "sampler.steps=10",
                "evaluation.num_samples=500",
                "evaluation.metrics=[frechet_distance]",
                "logger=none",
            )
            assert outcome.status == 0, outcome.errors
            rows = read_results(workplace / precision / str(seed)).rows
            assert {row.compute_precision for row in rows} == {precision}
            found.append({(row.eta, row.steps): row.frechet_distance for row in rows})
    for point in distances["32-true"][0]:
        exact, rounded = ([seed[point] for seed in distances[precision]] for precision in distances)
        moved = max(abs(a - b) for a, b in zip(exact, rounded, strict=True))
        assert 0 < moved < statistics.stdev(exact) / 3, (point, exact, rounded)
