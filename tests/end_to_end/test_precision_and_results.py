"""bfloat16 moves a distance by less than another seed does: precision is not a setting of the experiment."""

from __future__ import annotations

import statistics

from ddim.findings.files import read_results
from ddim.training import precision


def test_distances_change_by_less_than_between_seeds(run_script, workplace, digits_run):
    distances: dict[str, list[dict[tuple[float, int], float]]] = {"32-true": [], "bf16-mixed": []}
    for arithmetic, found in distances.items():
        for seed in range(3):
            outcome = run_script(
                "evaluate.py",
                f"checkpoint={digits_run}",
                f"seed={seed}",
                f"trainer.precision={arithmetic}",
                f"hydra.run.dir={workplace / arithmetic / str(seed)}",
                "sampler.eta=0,1",
                "sampler.steps=10",
                "evaluation.num_samples=500",
                "evaluation.metrics=[frechet_distance]",
                "logger=none",
            )
            assert outcome.status == 0, outcome.errors
            rows = read_results(workplace / arithmetic / str(seed)).rows
            assert {row.compute_precision for row in rows} == {arithmetic}
            found.append({(row.eta, row.steps): row.frechet_distance for row in rows})
    for point in distances["32-true"][0]:
        exact, rounded = ([seed[point] for seed in distances[arithmetic]] for arithmetic in distances)
        moved = max(abs(a - b) for a, b in zip(exact, rounded, strict=True))
        assert 0 < moved < statistics.stdev(exact) / 3, (point, exact, rounded)


def test_both_scripts_take_what_auto_means_and_keep_it_where_it_means_something_else(
    run_script, workplace, trained_run, tiny_training, monkeypatch
):
    monkeypatch.setattr(precision, "LEAST_WORK_ON_CPU", 0)
    monkeypatch.setattr(precision, "_cpu_has_bfloat16", lambda: True)
    trained = run_script("train.py", *tiny_training, "trainer.max_steps=2", "logger=none", "callbacks=minimal")
    assert trained.status == 0 and ", in bf16-mixed. " in trained.output + trained.errors
    directory = workplace / "evaluation"
    grid = ("sampler.eta=0", "sampler.steps=2", "evaluation.num_samples=70", "logger=none")
    first = run_script("evaluate.py", f"checkpoint={trained_run}", *grid, f"hydra.run.dir={directory}")
    assert first.status == 0, first.errors
    monkeypatch.setattr(precision, "_cpu_has_bfloat16", lambda: False)
    again = run_script("evaluate.py", f"resume={directory}")
    assert again.status == 0 and "finished before" in again.output + again.errors
    assert {row.compute_precision for row in read_results(directory).rows} == {"bf16-mixed"}
