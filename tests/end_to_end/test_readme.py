"""Every command in the README runs, on small networks and generated data."""

from __future__ import annotations

import hashlib
import importlib.util
import pickle
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

README = Path(__file__).resolve().parents[2] / "README.md"
SCRIPTS = ("train.py", "evaluate.py", "-m ddim.export")
NETWORK = ("denoiser.base_channels=8", "++denoiser.norm_groups=4")
TRAINING = (
    "trainer.max_steps=2",
    "trainer.val_check_interval=1",
    "trainer.accelerator=cpu",
    "loader.batch_size=4",
    "callbacks.sample_grid.steps=2",
    "callbacks.sample_grid.num_images=4",
    "callbacks.evaluation.steps=[2]",
    "callbacks.evaluation.num_samples=4",
    "callbacks.evaluation.every_n_validations=1",
    "callbacks.evaluation.features=pixels",
)
EVALUATION = ("evaluation.num_samples=70", "evaluation.batch_size=70", "evaluation.grid_images=4")


def commands(text: str) -> list[str]:
    """The lines of the bash fences that run one of SCRIPTS, without their comments."""
    fences = re.findall(r"^```bash\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    lines = [re.split(r"\s{2,}#", line)[0].strip() for fence in fences for line in fence.splitlines()]
    return [line for line in lines if line.startswith(tuple(f"python {script}" for script in SCRIPTS))]


def test_what_counts_as_a_command():
    text = (
        "```text\npython train.py no\n```\n```bash\nmake\npython train.py a=1   # why\npython evaluate.py 'b=[1, 2]'\n"
        "```\npython train.py no\n"
    )
    assert commands(text) == ["python train.py a=1", "python evaluate.py 'b=[1, 2]'"]


def test_the_readme_shows_every_script():
    found = commands(README.read_text())
    assert all(any(script in command for command in found) for script in SCRIPTS)
    assert len(found) == len(set(found))


def write_images(folder: Path, count: int, width: int, height: int) -> Path:
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)
    for number in range(count):
        Image.fromarray(pixels[number]).save(folder / f"{number:06d}.png")
    return folder


def write_cifar10(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An archive in the published layout; torchvision is told its md5 sums in place of the real ones."""
    from torchvision.datasets import CIFAR10

    batches = folder / CIFAR10.base_folder
    batches.mkdir(parents=True)
    names = [name for name, _ in CIFAR10.train_list + CIFAR10.test_list]
    for number, name in enumerate(names):
        pixels = np.random.default_rng(number).integers(0, 256, (4, 3 * 32 * 32), dtype=np.uint8)
        (batches / name).write_bytes(pickle.dumps({"data": pixels, "labels": [0] * 4}))
    (batches / CIFAR10.meta["filename"]).write_bytes(pickle.dumps({"label_names": ["airplane"]}))
    archive = folder / CIFAR10.filename
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(batches, CIFAR10.base_folder)

    def md5(path: Path) -> str:
        return hashlib.md5(path.read_bytes()).hexdigest()

    monkeypatch.setattr(CIFAR10, "train_list", [[name, md5(batches / name)] for name in names[:-1]])
    monkeypatch.setattr(CIFAR10, "test_list", [[names[-1], md5(batches / names[-1])]])
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": md5(batches / CIFAR10.meta["filename"])})
    monkeypatch.setattr(CIFAR10, "tgz_md5", md5(archive))
    shutil.rmtree(batches)


@pytest.fixture
def places(workplace: Path, trained_run: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A finished run under outputs/, data sets in a cache of this test's own; what the placeholders stand for."""
    run = workplace / "outputs" / "train" / "run"
    shutil.copytree(trained_run, run)
    cache = workplace / "cache"
    monkeypatch.setenv("DDIM_CACHE_DIR", str(cache))
    write_cifar10(cache / "data" / "cifar10", monkeypatch)
    write_images(cache / "data" / "celeba" / "img_align_celeba", 12, 178, 218)
    images = write_images(workplace / "images", 12, 48, 40)
    return {"DIR": str(images), "PATH": str(run), "RUN": str(run), "EXPORTED": str(workplace / "exported")}


@pytest.mark.parametrize("command", commands(README.read_text()))
def test_readme_command_runs(run_script, workplace, places, command):
    _, script, *arguments = shlex.split(command)
    if script == "-m":
        arguments = [places.get(argument, argument) for argument in arguments]
        done = subprocess.run([sys.executable, "-m", *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0 and (Path(places["EXPORTED"]) / "model_index.json").is_file(), done.stderr
        return
    arguments = [re.sub(r"=([A-Z]+)$", lambda match: "=" + places[match[1]], argument) for argument in arguments]
    if any(argument.startswith("hydra/launcher=submitit") for argument in arguments):
        if importlib.util.find_spec("hydra_plugins.hydra_submitit_launcher") is None:
            pytest.skip("needs the package hydra-submitit-launcher")
        outcome = run_script(script, *arguments, "--cfg", "hydra")
        assert outcome.status == 0 and "submitit" in outcome.output, outcome.errors
        return

    resumes = any(argument.startswith("resume=") for argument in arguments)
    tiny = ["trainer.max_steps=5"] if resumes else [*NETWORK, *TRAINING]
    tiny = list(EVALUATION) if script == "evaluate.py" else tiny
    if not any(argument.startswith("logger") for argument in arguments):
        tiny.append("logger=csv")
    before = {path: path.stat().st_mtime_ns for path in workplace.rglob("last.ckpt")}
    if resumes and script == "evaluate.py":
        assert run_script(script, "sampler.eta=0", *tiny).status == 0
    outcome = run_script(script, *arguments, *tiny)
    assert outcome.status == 0, outcome.errors
    assert "Traceback" not in outcome.errors + outcome.output
    if script == "train.py":
        written = {path for path in workplace.rglob("last.ckpt") if path.stat().st_mtime_ns != before.get(path)}
        assert len(written) == 1
        assert (written == set(before)) == resumes
    else:
        jobs = 1
        if {"-m", "--multirun"} & set(arguments):
            for argument in arguments:
                jobs *= len(argument.split(",")) if "=" in argument else 1
        part = next((word.removeprefix("evaluation=") for word in arguments if word.startswith("evaluation=")), "grid")
        tables = {"grid": "results", "paper": "results", "samplers": "results", "all": "*"}.get(part, part)
        found = list(workplace.glob(f"outputs/{'multirun' if jobs > 1 else 'evaluate'}/**/{tables}.csv"))
        # A sweep's jobs have a table each, and together one.
        wanted = jobs + 1 if jobs > 1 else jobs
        assert len(found) == wanted if part != "all" else len(found) >= 6
