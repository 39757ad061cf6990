"""The same network evaluated from every format it can come in: the numbers are the same, the labels are honest."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ddim.denoisers.formats.naming import file_name
from ddim.denoisers.pretrained import open_pretrained
from ddim.findings.files import read_results
from ddim.findings.rows import GridResult

GRID = ("sampler.eta=0,1", "sampler.steps=2", "evaluation.num_samples=70", "logger=none")
# An official file states neither the images nor its resolution, and all official networks have 32 groups.
GROUPS = "denoiser.norm_groups=4"
STATED_BY_HAND = ("dataset=digits", "denoiser.resolution=8", "denoiser.attention_resolutions=[4]", GROUPS)


@pytest.fixture(scope="module")
def files(tmp_path_factory, trained_run) -> dict[str, Path]:
    """The trained network as each kind of file."""
    folder = tmp_path_factory.mktemp("public")
    ours = open_pretrained(trained_run)
    levels = len(ours.denoiser["channel_mult"])

    def official(label: str, prefix: str = "") -> dict[str, torch.Tensor]:
        named = {prefix + file_name("official", name, levels): value for name, value in ours.states[label].items()}
        return {
            name: value[:, :, None, None] if ".attn" in name and value.ndim == 2 else value
            for name, value in named.items()
        }

    torch.save(official("ema"), folder / "flat.ckpt")
    torch.save([official("raw", "module."), {}, 3, 100, official("ema")], folder / "training.pth")
    torch.save([official("raw", "module."), {}, 3, 100], folder / "without_ema.pth")
    command = [sys.executable, "-m", "ddim.export", str(trained_run), str(folder / "diffusers")]
    exported = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert exported.returncode == 0, exported.stderr
    return {path.name: path for path in folder.iterdir()}


def evaluated(run_script, workplace: Path, checkpoint: Path, *arguments: str) -> list[GridResult]:
    outcome = run_script("evaluate.py", f"checkpoint={checkpoint}", *GRID, *arguments)
    assert outcome.status == 0, outcome.errors
    return read_results(max((workplace / "outputs" / "evaluate").iterdir())).rows


@pytest.mark.parametrize(
    ("name", "arguments", "label"),
    [
        ("flat.ckpt", STATED_BY_HAND, "unstated"),
        ("training.pth", STATED_BY_HAND, "ema"),
        ("training.pth", (*STATED_BY_HAND, "evaluation.weights=raw"), "raw"),
        ("without_ema.pth", (*STATED_BY_HAND, "evaluation.weights=raw"), "raw"),
        ("diffusers", ("dataset=digits",), "ema"),
    ],
)
def test_every_format_gives_the_numbers_of_the_run_itself(
    run_script, workplace, trained_run, files, name, arguments, label
):
    own_weights = "evaluation.weights=raw" if label == "raw" else "evaluation.weights=ema"
    own = evaluated(run_script, workplace, trained_run, own_weights)
    public = evaluated(run_script, workplace, files[name], *arguments)
    assert [row.frechet_distance for row in public] == [pytest.approx(row.frechet_distance, rel=1e-4) for row in own]
    for row in public:
        assert row.weights == label and row.checkpoint == str(files[name]) and row.dataset == "digits"
        assert row.schedule == own[0].schedule


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("flat.ckpt", (), "does not say which images"),
        ("flat.ckpt", (*STATED_BY_HAND, "evaluation.weights=raw"), "evaluation.weights=ema"),
        ("without_ema.pth", STATED_BY_HAND, "evaluation.weights=raw"),
        ("flat.ckpt", ("dataset=digits", GROUPS), "denoiser.resolution=32 does not fit"),
        ("diffusers", ("dataset=digits", "denoiser.channel_mult=[1,1]"), "do not fit"),
        # The table's own data set is taken, and asked for where it needs a folder.
        ("flat.ckpt", ("table=lsun_church_table3",), "dataset.root"),
        ("diffusers", ("dataset=celeba", "dataset.root=nowhere"), "dataset.root=nowhere"),
    ],
)
def test_what_is_missing_or_does_not_fit_is_one_sentence(run_script, workplace, files, name, arguments, said):
    outcome = run_script("evaluate.py", f"checkpoint={files[name]}", *GRID, *arguments)
    assert outcome.status == 2 and said in outcome.errors, outcome.errors
    assert "Traceback" not in outcome.errors and not list(workplace.rglob("results.csv"))


def test_a_hub_id_without_network_is_one_sentence(run_process, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    outcome = run_process("evaluate.py", "checkpoint=google/ddpm-cifar10-32", "dataset=cifar10", "logger=none")
    assert outcome.status == 2 and "google/ddpm-cifar10-32" in outcome.errors
    assert "Traceback" not in outcome.errors and len(outcome.errors.strip().splitlines()) == 1
