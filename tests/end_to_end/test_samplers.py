"""`evaluation=samplers`: several samplers at equal cost in one evaluation, one table, one page."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from ddim.command.arguments import evaluation_arguments
from ddim.command.config import evaluation_config
from ddim.diffusion import SAMPLERS
from ddim.findings.files import read_results

CONF = Path(__file__).resolve().parents[2] / "conf"
SIX = ["ddim", "ipndm", "deis", "dpmpp", "unipc", "heun"]
SMALL = ("evaluation.num_samples=60", "evaluation.features=pixels", "logger=none", "evaluation.loss_images=8")


def rows(directory: Path) -> list[dict[str, str]]:
    with open(directory / "results.csv", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def sampler_of(*arguments: str):
    known = ("dataset=digits", "denoiser=unet_digits", "schedule=linear")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return evaluation_config(
            compose("evaluate", overrides=evaluation_arguments([*known, *arguments]))
        ).config.sampler


def test_the_preset_compares_six_samplers_in_one_evaluation(run_script, workplace, trained_run):
    command = ("evaluate.py", f"checkpoint={trained_run}", "evaluation=samplers", *SMALL)
    outcome = run_script(*command, "sampler.nfe=3,5")
    assert outcome.status == 0, outcome.errors
    (directory,) = (workplace / "outputs" / "evaluate").iterdir()
    found = rows(directory)
    assert [(row["sampler"], int(row["nfe_limit"])) for row in found] == [(name, n) for name in SIX for n in (3, 5)]
    assert all(int(row["nfe"]) <= int(row["nfe_limit"]) for row in found)
    assert [row["steps"] for row in found if row["sampler"] == "heun"] == ["2", "3"]
    assert all(float(row["frechet_distance_sd"]) > 0 and row["as_good"] in ("true", "false") for row in found)
    for limit in ("3", "5"):
        assert [float(row["difference"]) for row in found if row["nfe_limit"] == limit].count(0) == 1
    assert outcome.output.count("by sampler (down) and network calls (across)") == 1
    assert "nfe<=3" in outcome.output and "not told apart" in outcome.output
    (heading,) = [line for line in outcome.output.splitlines() if line.split()[:1] == ["sampler"]]
    table = outcome.output.partition(heading)[2].splitlines()[1:7]
    assert [line.split()[0] for line in table] == sorted(SIX)
    assert {path.name for path in directory.glob("*.png")} == {"samples.png", "distance.png", "speed.png"}
    page = (directory / "report.html").read_text(encoding="utf-8")
    assert all(f">{name}<" in page for name in SIX) and "±" in page and "nfe ≤ 3" in page

    # The same again finds all of it, another cost measures that alone.
    again = run_script(*command, f"resume={directory}", "sampler.nfe=3,5,6")
    assert again.status == 0, again.errors
    assert again.errors.count("finished before") == 12
    more = {(row["sampler"], row["nfe_limit"]) for row in rows(directory)}
    assert more - {(row["sampler"], row["nfe_limit"]) for row in found} == {(name, "6") for name in SIX[:-1]}


def test_samplers_by_name_with_seeds(run_script, workplace, trained_run):
    arguments = (f"checkpoint={trained_run}", "sampler=ddim,deis", "sampler.steps=2", "evaluation.seeds=0,3")
    outcome = run_script("evaluate.py", *arguments, *SMALL, "evaluation.metrics=frechet_distance")
    assert outcome.status == 0, outcome.errors
    (directory,) = (workplace / "outputs" / "evaluate").iterdir()
    found = read_results(directory).rows
    assert [(row.sampler, row.eta, row.seeds, row.options) for row in found] == [
        ("ddim", 0.0, (0, 3), None),
        ("deis", 0.0, (0, 3), None),
    ]
    assert all(len(row.leave_one_out) == 2 and row.frechet_distance_sd > 0 for row in found)
    assert "seed mean over 0 3" in outcome.output
    assert len(list((directory / "finished").iterdir())) == 4


def test_a_list_begins_from_what_suits_all_whatever_its_first_name():
    for arguments in (["sampler=deis,dpmpp"], ["sampler=[deis,dpmpp]"], ["evaluation=samplers", "sampler=deis,dpmpp"]):
        config = sampler_of(*arguments)
        assert (config.names, config.eta, config.options) == (["deis", "dpmpp"], 0.0, {})
    assert sampler_of("evaluation=samplers").names == SIX
    assert sampler_of("sampler=ddim,deis", "sampler.order=2").options == {"order": 2}
    assert sampler_of("sampler.name=deis", "sampler.eta=0", "sampler.order=2").options == {"order": 2}
    assert sampler_of("sampler.eta_schedule=middle").options == {"eta_schedule": "middle"}


def test_every_sampler_has_a_preset_that_says_its_own_defaults():
    for name, rule in SAMPLERS.items():
        config = sampler_of(f"sampler={name}")
        assert (config.name, config.options) == (name, dict(rule.options))


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_preset_samples(run_script, workplace, trained_run, name):
    """At few steps; restart needs some to go back to."""
    arguments = (f"checkpoint={trained_run}", f"sampler={name}", "sampler.nfe=12", *SMALL)
    outcome = run_script("evaluate.py", *arguments, "evaluation.num_samples=12", "evaluation.metrics=frechet_distance")
    assert outcome.status == 0, outcome.errors
    (directory,) = (workplace / "outputs" / "evaluate").iterdir()
    (row,) = rows(directory)
    assert row["sampler"] == name and 2 <= int(row["steps"]) <= int(row["nfe"]) <= 12
    assert float(row["frechet_distance"]) > 0
