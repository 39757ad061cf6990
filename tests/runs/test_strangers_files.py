"""Files from strangers are data: nothing in them runs, and they reach nothing else on this machine."""

from __future__ import annotations

import ast
import io
import os
import re
import shutil
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import EpsImagePlugin, Image
from pytorch_lightning.callbacks import ModelCheckpoint

from ddim.command.arguments import training_arguments
from ddim.data import build_datamodule
from ddim.data.decoding import BadImage, Decoder
from ddim.denoisers.formats.hub import is_hub_id
from ddim.errors import UserError
from ddim.runs.overrides import GROUPS, read_overrides
from ddim.tracking.loggers import LoggerConfig, build_loggers
from ddim.training.callbacks.best_checkpoint import BestCheckpoint

REPOSITORY = Path(__file__).resolve().parents[2]
SOURCES = sorted([*(REPOSITORY / "src").rglob("*.py"), *(REPOSITORY / "tools").rglob("*.py"), *REPOSITORY.glob("*.py")])
# What executes, or can be told to, what it reads. `eval` and `compile` as methods are harmless.
FORBIDDEN = re.compile(
    r"eval|exec|compile|__import__|(.+\.)?(pickle\.\w+|joblib\.load|load_from_checkpoint|instantiate|get_class|get_method"
    r"|get_object|unsafe_load|full_load|load_all|extractall|unpack_archive|read_pickle|system|popen)|yaml\.load"
)
MODULES = re.compile(r"(c?pickle|dill|cloudpickle|shelve|marshal)(\..*)?")
NEEDED = {
    "torch.load": ("weights_only", True),
    "np.load": ("allow_pickle", False),
    "trainer.fit": ("weights_only", True),
}


def dangers(source: str) -> list[str]:
    """Calls and imports in Python source that would trust a file."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            found += [name for name in names if MODULES.fullmatch(name)]
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        keyword, value = NEEDED.get(name, ("", None))
        if (keyword and given.get(keyword) != str(value)) or FORBIDDEN.fullmatch(name):
            found.append(ast.unparse(node))
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_no_source_trusts_a_file(path):
    assert dangers(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "import pickle",
        "from pickle import loads",
        "yaml.load(text, Loader=yaml.Loader)",
        "yaml.unsafe_load(text)",
        "eval(text)",
        "hydra.utils.instantiate(config)",
        "instantiate(config)",
        "DenoisingModule.load_from_checkpoint(path)",
        "trainer.fit(module, ckpt_path=path)",
        "archive.extractall(folder)",
    ],
)
def test_the_search_finds(source):
    assert dangers(source)


class Payload:
    """Pickled, it asks whoever unpickles it to make a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.fixture
def run(trained_run: Path, workplace: Path) -> Path:
    """A copy of a run directory, to be tampered with."""
    directory = workplace / "outputs" / "train" / "stranger"
    shutil.copytree(trained_run, directory)
    return directory


@pytest.fixture
def tampered(run: Path) -> Callable[[Callable[[dict[str, Any]], None]], Path]:
    """`tampered(change)`: the run with a last checkpoint that was changed."""

    def tamper(change: Callable[[dict[str, Any]], None]) -> Path:
        path = run / "checkpoints" / "last.ckpt"
        checkpoint = torch.load(path, weights_only=True)
        change(checkpoint)
        torch.save(checkpoint, path)
        return run

    return tamper


EVALUATE = ("sampler.steps=2", "sampler.eta=0", "evaluation.num_samples=70", "evaluation.grid_images=4", "logger=none")


@pytest.mark.parametrize("place", ["state_dict", "callbacks"])
@pytest.mark.parametrize("script", ["train.py", "evaluate.py"])
def test_a_pickle_that_executes_is_refused(run_script, tampered, workplace, script, place):
    marker = workplace / "executed"
    directory = tampered(lambda checkpoint: checkpoint.update({place: Payload(marker)}))
    arguments = [f"resume={directory}"] if script == "train.py" else [f"checkpoint={directory}", *EVALUATE]
    outcome = run_script(script, *arguments)
    assert outcome.status == 2 and "nothing else is accepted" in outcome.errors, outcome.errors
    assert "mkdir" in outcome.errors and len(outcome.errors.splitlines()) == 1
    assert not marker.exists()
    torch.load(directory / "checkpoints" / "last.ckpt", weights_only=False)
    assert marker.exists(), "the payload is none"


@pytest.mark.parametrize("script", ["train.py", "evaluate.py"])
def test_the_instantiator_of_a_checkpoint_is_not_called(
    run_script, tampered, workplace, monkeypatch, tmp_path_factory, script
):
    """CVE-2026-58659: plain data that names a function, which Lightning before 2.6.6 called."""
    folder, marker = tmp_path_factory.mktemp("modules"), workplace / "called"
    (folder / "strangers_module.py").write_text(
        f"from pathlib import Path\nPath({str(marker)!r}).touch()\ndef make(cls, arguments): return cls(**arguments)\n"
    )
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "strangers_module", raising=False)
    hyperparameters = {"_instantiator": "strangers_module.make", "_class_path": "strangers_module.Module"}
    stored = {name: hyperparameters for name in ("hyper_parameters", "datamodule_hyper_parameters")}
    directory = tampered(lambda checkpoint: checkpoint.update(stored | {"hparams_name": "kwargs"}))
    arguments = [f"resume={directory}", "trainer.max_steps=6"]
    if script == "evaluate.py":
        arguments = [f"checkpoint={directory}", *EVALUATE]
    outcome = run_script(script, *arguments)
    assert outcome.status == 0, outcome.errors
    assert not marker.exists() and "strangers_module" not in sys.modules
    __import__("strangers_module")
    assert marker.exists(), "the module has no side effect"


@pytest.mark.parametrize("group", ["dataset", "denoiser", "schedule"])
@pytest.mark.parametrize("nested", [False, True])
def test_a_target_in_a_stored_configuration_is_not_instantiated(run_script, tampered, workplace, group, nested):
    marker = workplace / "called"
    target = {"_target_": "os.mkdir", "path": str(marker)}

    def change(checkpoint):
        stored = checkpoint["ddim"]["config"][group]
        stored.update({"name": target} if nested else target)

    outcome = run_script("evaluate.py", f"checkpoint={tampered(change)}", *EVALUATE)
    assert outcome.status == 2 and len(outcome.errors.splitlines()) == 1, outcome.errors
    assert group in outcome.errors and "_target_" in outcome.errors
    assert not marker.exists()


SECRET = "swordfish-8d1f"
REFERENCES = ["${oc.env:STRANGERS_WISH}", "x${oc.env:STRANGERS_WISH}y", "${oc.decode:'${oc.env:STRANGERS_WISH}'}"]


def files_with(folder: Path, *texts: str) -> list[Path]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [path for path in files for text in texts if text.encode() in path.read_bytes()]


@pytest.mark.parametrize(
    ("group", "key", "reference"),
    [
        ("dataset", "label", REFERENCES[0]),
        ("dataset", "features", REFERENCES[1]),
        ("denoiser", "name", REFERENCES[2]),
        ("schedule", "name", REFERENCES[0]),
    ],
)
def test_a_checkpoint_cannot_ask_for_the_environment(
    run_script, tampered, workplace, monkeypatch, group, key, reference
):
    monkeypatch.setenv("STRANGERS_WISH", SECRET)
    directory = tampered(lambda checkpoint: checkpoint["ddim"]["config"][group].update({key: reference}))
    outcome = run_script("evaluate.py", f"checkpoint={directory}", *EVALUATE)
    assert outcome.status == 2 and f"{group}.{key}=" in outcome.errors and "not followed" in outcome.errors
    assert SECRET not in outcome.output + outcome.errors and not files_with(workplace, SECRET)


def test_what_the_command_line_says_anew_is_not_asked_of_the_checkpoint(run_script, tampered):
    directory = tampered(lambda checkpoint: checkpoint["ddim"]["config"]["dataset"].update(label=REFERENCES[0]))
    outcome = run_script("evaluate.py", f"checkpoint={directory}", "dataset.label=mine", *EVALUATE)
    assert outcome.status == 0, outcome.errors


def test_a_configuration_of_too_many_levels(run_script, tampered):
    def change(checkpoint):
        value: Any = 1
        for _ in range(200):
            value = {"deeper": value}
        checkpoint["ddim"]["config"]["dataset"]["label"] = value

    outcome = run_script("evaluate.py", f"checkpoint={tampered(change)}", *EVALUATE)
    assert outcome.status == 2 and "levels" in outcome.errors and len(outcome.errors.splitlines()) == 1


EVIL_OVERRIDES = [
    "hydra.callbacks.x._target_=os.mkdir",
    "+hydra.callbacks.x._target_=os.mkdir",
    "++hydra.job_logging.handlers.x.class=os.mkdir",
    "hydra.run.dir=/tmp/elsewhere",
    "hydra.searchpath=[file:///tmp]",
    "hydra/launcher=submitit_local",
    "--config-dir=/tmp",
    "-m",
    "dataset=../../outputs/train/stranger/evil",
    "dataset=/tmp/evil",
    "experiment=[../evil]",
    "dataset/../experiment=evil",
    "dataset@hydra=digits",
    "dataset.label=${oc.env:HOME}",
    "logger.notes='x ${oc.env:HOME}'",
    "dataset.label=${hydra:runtime.cwd}",
    "dataset.label=${oc.${a}:HOME}",
    "not an override",
    "",
]


@pytest.mark.parametrize("override", EVIL_OVERRIDES)
def test_the_command_line_of_a_strangers_run_only_chooses_settings(run, override):
    (run / "overrides.yaml").write_text(yaml.safe_dump(["seed=1", override]))
    with pytest.raises(UserError, match=r"resume=.*(does more|is not the command line)"):
        training_arguments([f"resume={run}"])


@pytest.mark.parametrize(
    "override",
    [
        "dataset=cifar10",
        "~logger",
        "logger=none",
        "++trainer.max_steps=3",
        "~trainer.precision=32-true",
        "denoiser.resolution=${dataset.resolution}",
        "dataset.root='/data/a $ b'",
        "output_dir=/scratch/outputs",
        "sampler.steps=[1,2]",
        "experiment=ddpm_cifar10",
    ],
)
def test_an_ordinary_command_line_is_replayed(run, override):
    (run / "overrides.yaml").write_text(yaml.safe_dump([override]))
    assert read_overrides(run) == [override]


def test_a_line_that_is_not_replayed_can_be_given_anew(run):
    (run / "overrides.yaml").write_text(yaml.safe_dump(["output_dir=${oc.env:HOME}/x", "seed=1"]))
    arguments = training_arguments([f"resume={run}", "output_dir=here"])
    assert "output_dir=here" in arguments and not any("oc.env" in argument for argument in arguments)


@pytest.mark.parametrize(
    "text", ["a: 1", "[1]", "[[]]", "text", "[a", "!!python/object/apply:os.mkdir [x]", "[" * 5000, "\x00", b"\xff\xfe"]
)
def test_a_damaged_command_line_is_one_sentence(run, text):
    (run / "overrides.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=r"^resume=.*overrides\.yaml"):
        training_arguments([f"resume={run}"])
    assert not Path("x").exists()


def test_the_groups_are_the_folders_of_the_configuration():
    assert set(GROUPS) == {path.name for path in (REPOSITORY / "conf").iterdir() if path.is_dir()} - {"hydra"}


@pytest.mark.parametrize(("how", "guarded"), [("..", True), ("elsewhere", True), ("..", False)])
def test_a_checkpoint_cannot_have_files_deleted(run_script, tampered, run, workplace, monkeypatch, guarded, how):
    victim = workplace / "precious.txt"
    victim.write_text("nobody may delete this")
    path = f"{run}/checkpoints/../../../../precious.txt" if how == ".." else f"file://{victim}"

    def change(checkpoint):
        (state,) = [state for key, state in checkpoint["callbacks"].items() if key.startswith("ModelCheckpoint")]
        state.pop("dirpath")
        worst = torch.tensor(float("inf"))
        state |= {"best_k_models": {path: worst}, "kth_best_model_path": path, "kth_value": worst}

    directory = tampered(change)
    if not guarded:
        monkeypatch.setattr(BestCheckpoint, "load_state_dict", ModelCheckpoint.load_state_dict)
    outcome = run_script("train.py", f"resume={directory}", "trainer.max_steps=6")
    assert outcome.status == 0, outcome.errors
    assert victim.exists() == guarded


def test_the_best_score_of_an_own_run_is_remembered(tmp_path):
    before = BestCheckpoint(tmp_path, monitor="val/loss")
    best = str(tmp_path / "best.ckpt")
    before.best_k_models, before.kth_best_model_path, before.best_model_path = {best: torch.tensor(1.0)}, best, best
    after = BestCheckpoint(tmp_path, monitor="val/loss")
    after.load_state_dict(before.state_dict())
    assert after.best_k_models == before.best_k_models and after.best_model_path == best
    assert before.state_key == ModelCheckpoint(tmp_path, monitor="val/loss").state_key


@pytest.mark.parametrize("text", ["../../x", "a/b", "x" * 200, "a\nb", "$(x)"])
def test_the_wandb_id_of_a_run_is_no_path(workplace, text):
    (workplace / "wandb_run_id").write_text(text)
    with pytest.raises(UserError, match="wandb_run_id holds no id"):
        build_loggers(LoggerConfig(mode="offline"), workplace, job_type="train", hyperparameters={})
    assert not (workplace / "wandb").exists()


def test_nothing_is_downloaded_into_a_folder_that_a_checkpoint_names(run_script, tampered, workplace):
    place = workplace / "somewhere"
    stated = {"name": "cifar10", "channels": 3, "resolution": 32, "root": str(place), "download": True}
    stated |= {"features": "pixels", "tau": "linear"}
    directory = tampered(lambda checkpoint: checkpoint["ddim"]["config"].update(dataset=stated))
    outcome = run_script("evaluate.py", f"checkpoint={directory}", *EVALUATE)
    assert outcome.status == 2 and f"dataset.root={place}" in outcome.errors and "download=false" in outcome.errors
    assert f"Images come from {place}, as the checkpoint says" in outcome.output
    assert not place.exists()


def test_images_of_other_formats_are_not_handed_to_their_interpreters(monkeypatch):
    """Pillow recognises PostScript by its first bytes, whatever the file is called, and calls Ghostscript."""
    called = []

    def ghostscript(*arguments, **more):
        called.append(arguments)
        return Image.new("RGB", (8, 8)).im

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", ghostscript)
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "EPS")
    with pytest.raises(BadImage, match="not an image in a known format"):
        Decoder(channels=3, resolution=8)(file.getvalue())
    assert not called
    Image.open(io.BytesIO(file.getvalue())).load()
    assert called, "Pillow itself would not call it"


def test_a_pipe_among_the_images_does_not_hang(tmp_path):
    for number in range(4):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{number}.png")
    os.mkfifo(tmp_path / "7.png")
    config = {"name": "image_folder", "root": str(tmp_path), "resolution": 8}
    module = build_datamodule(config, batch_size=1, eval_batch_size=1, num_workers=0, seed=0, cache_dir=tmp_path)
    with pytest.raises(UserError, match=r"7\.png cannot be used: it is not a regular file"):
        module.setup()


@pytest.mark.parametrize("source", ["../x", "a/../b", "owner/name@../../x", "a/..", "/etc/passwd", "owner/na..me"])
def test_hub_names_are_no_paths(source):
    assert not is_hub_id(source)


KEYS = {
    "WANDB_API_KEY": "0123456789abcdef0123456789abcdef0badc0de",
    "HF_TOKEN": "hf_nEverSayThisAloud",
    "SOME_PASSWORD": "correct-horse-battery",
}


def test_no_secret_of_the_environment_is_written_or_said(run_process, workplace, tiny_training, monkeypatch):
    home = workplace / "home"
    home.mkdir()
    for name, value in (KEYS | {"HOME": str(home)}).items():
        monkeypatch.setenv(name, value)
    done = run_process("train.py", *tiny_training, "callbacks=minimal", "trainer.max_steps=2", "logger.mode=offline")
    assert done.status == 0, done.errors
    done = run_process("evaluate.py", *EVALUATE[:-1], "logger.mode=offline")
    assert done.status == 0, done.errors
    written = [path for path in workplace.rglob("*") if path.is_file()]
    assert sum(path.suffix == ".wandb" for path in written) == 2, "W&B was not used"
    assert not files_with(workplace, *KEYS.values())
    assert not any(value in done.output + done.errors for value in KEYS.values())


# Name -> the lowest version that is allowed, and versions that must not be installed.
FLOORS = {"torch": ("2.10", ["2.9.9", "2.6.0"]), "pytorch-lightning": ("2.6.6", ["2.6.2", "2.6.3", "2.6.5"])}


def test_version_floors_exclude_releases_with_known_holes():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    requirements = map(Requirement, project["dependencies"])
    required = {canonicalize_name(requirement.name): requirement for requirement in requirements}
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    pins = (line.split("==") for line in lines if re.match(r"\w.*==", line))
    pinned = {canonicalize_name(name): version for name, version in pins}
    told = (REPOSITORY / "SECURITY.md").read_text(encoding="utf-8")
    for name, (floor, holes) in FLOORS.items():
        allowed = required[name].specifier
        assert allowed.contains(floor) and not any(allowed.contains(version) for version in holes)
        assert f"{name} >= {floor}" in told
    for name, requirement in required.items():
        assert requirement.specifier.contains(pinned[name]), f"{name} is pinned to {pinned[name]}, not {requirement}"
