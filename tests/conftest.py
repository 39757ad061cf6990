"""Fixtures for tests that run the scripts: in this process for speed, or in one of their own as a user does."""

from __future__ import annotations

import io
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from filelock import FileLock
from hypothesis import strategies as st

if TYPE_CHECKING:
    from ddim.denoisers import UNet

REPOSITORY = Path(__file__).resolve().parents[1]
# Variables of a cluster's or of torchrun's processes, which what is started here is not.
FOREIGN = ("SLURM_", "TORCHELASTIC_")
# A network and a run small enough for tests; everything else is as a user gets it.
TINY_TRAINING = (
    "trainer.max_steps=4",
    "trainer.val_check_interval=2",
    "trainer.log_every_n_steps=1",
    "trainer.accelerator=cpu",
    "denoiser.base_channels=8",
    "denoiser.norm_groups=4",
    "loader.batch_size=16",
    "callbacks.sample_grid.steps=2",
    "callbacks.sample_grid.num_images=4",
    "callbacks.evaluation.steps=[2]",
    "callbacks.evaluation.num_samples=70",
    "callbacks.evaluation.every_n_validations=1",
)


@dataclass(frozen=True)
class Outcome:
    status: int
    output: str
    errors: str


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def workplace(tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory, a shared cache, no W&B account and no colours."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DDIM_CACHE_DIR", str(cache_dir))
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("WANDB_API_KEY", "HYDRA_FULL_ERROR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def run_script(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Outcome]]:
    """`run_script("train.py", *arguments)` in this process, from an empty directory."""
    from hydra.core.global_hydra import GlobalHydra

    def run(script: str, *arguments: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", [str(REPOSITORY / script), *arguments])
        GlobalHydra.instance().clear()
        output, errors, status = io.StringIO(), io.StringIO(), 0
        with redirect_stdout(output), redirect_stderr(errors):
            try:
                runpy.run_path(str(REPOSITORY / script), run_name="__main__")
            except SystemExit as exit_:
                status = exit_.code if isinstance(exit_.code, int) else 1
        return Outcome(status, output.getvalue(), errors.getvalue())

    yield run
    GlobalHydra.instance().clear()


@pytest.fixture(scope="session")
def tiny_training() -> tuple[str, ...]:
    return TINY_TRAINING


@pytest.fixture
def run_process(workplace: Path) -> Callable[..., Outcome]:
    """The same in a process of its own."""

    def run(*command: str, timeout: float = 300) -> Outcome:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        script, *arguments = command
        done = subprocess.run(
            [sys.executable, str(REPOSITORY / script), *arguments],
            capture_output=True,
            text=True,
            env=environment,
            timeout=timeout,
            check=False,
        )
        return Outcome(done.returncode, done.stdout, done.stderr)

    return run


@dataclass(frozen=True)
class Fork:
    """A script in a process of its own, the first of a group."""

    process: int
    ask: Callable[[object], int | None]
    output_file: Path

    def poll(self) -> int | None:
        """The exit status, negative for a signal; None while it runs."""
        return self.ask({"poll": self.process})

    def wait(self) -> Outcome:
        status = self.ask({"wait": self.process})
        assert status is not None
        return Outcome(status, self.output_file.read_text(encoding="utf-8"), "")

    def kill(self) -> None:
        """SIGKILL to it and to all that it has started."""
        os.killpg(self.process, signal.SIGKILL)
        self.wait()


@pytest.fixture(scope="session")
def start_fork(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> Iterator[Callable[..., Fork]]:
    """`start_fork(directory, {variable: value}, "train.py", *arguments)` in a process of its own that need not import
    anything; all that it says is `output`."""
    outputs = tmp_path_factory.mktemp("forks")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    environment |= {"DDIM_CACHE_DIR": str(cache_dir), "OMP_NUM_THREADS": "1"}
    for name in ("WANDB_MODE", "FORCE_COLOR", "DDIM_PLUGINS"):
        environment.pop(name, None)
    command = [sys.executable, str(REPOSITORY / "tests" / "end_to_end" / "forking_launcher.py")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as launcher:

        def ask(message: object) -> int | None:
            assert launcher.stdin is not None and launcher.stdout is not None
            launcher.stdin.write(json.dumps(message) + "\n")
            launcher.stdin.flush()
            answer = json.loads(launcher.stdout.readline())
            assert answer is None or isinstance(answer, int)
            return answer

        def start(directory: Path, variables: dict[str, str], script: str, *arguments: str) -> Fork:
            output = outputs / str(len(list(outputs.iterdir())))
            output.touch()
            order = {"arguments": [str(REPOSITORY / script), *arguments], "directory": str(directory)}
            process = ask(order | {"output": str(output), "environment": variables})
            assert process
            return Fork(process, ask, output)

        yield start


@pytest.fixture(scope="session")
def run_fork(start_fork: Callable[..., Fork]) -> Callable[..., Outcome]:
    """The same, to its end."""
    return lambda *order: start_fork(*order).wait()


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], object]], Path]:
    """`made_once(name, make)`: the directory that `make(directory)` has filled, once for all workers of a test run."""
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    shared.mkdir(exist_ok=True)

    def once(name: str, make: Callable[[Path], object]) -> Path:
        directory, finished = shared / name, shared / f"{name}.finished"
        with FileLock(shared / f"{name}.lock"):
            if not finished.is_file():
                shutil.rmtree(directory, ignore_errors=True)
                directory.mkdir()
                make(directory)
                finished.touch()
        return directory

    return once


@pytest.fixture(scope="session")
def trained(made_once: Callable[..., Path], run_fork: Callable[..., Outcome]) -> Callable[..., Path]:
    """`trained(name, *arguments)`: the directory of a training run, which nobody may change."""

    def run(name: str, *arguments: str) -> Path:
        def train(directory: Path) -> None:
            outcome = run_fork(directory, {}, "train.py", *arguments, f"output_dir={directory / 'outputs'}")
            assert outcome.status == 0, outcome.output

        return next((made_once(name, train) / "outputs" / "train").iterdir())

    return run


@pytest.fixture(scope="session")
def trained_run(trained: Callable[..., Path]) -> Path:
    """The directory of a tiny training run on digits."""
    return trained("trained", *TINY_TRAINING, "logger=csv")


@pytest.fixture(scope="session")
def digits_run(trained: Callable[..., Path]) -> Path:
    """The directory of a digits run that is long enough for its samples to look like digits."""
    # A quarter of the default's operations, in training and in every test that samples from it.
    small = ("denoiser.base_channels=16", "denoiser.norm_groups=8")
    return trained(
        *("digits", *small, "trainer.max_steps=700", "callbacks=minimal", "callbacks.ema.decay=0.98", "logger=none")
    )


@pytest.fixture(scope="session")
def random_inception_weights(made_once: Callable[..., Path]) -> Path:
    """A folder with an Inception weights file of random values, scaled so that the signal reaches the last layer."""
    return made_once("weights", _random_inception_weights)


def _random_inception_weights(folder: Path) -> None:
    import torch
    from torch_fidelity import FeatureExtractorInceptionV3, feature_extractor_inceptionv3

    from ddim.metrics.inception import WEIGHTS_FILE

    generator = torch.Generator().manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feature_extractor_inceptionv3, "load_state_dict_from_url", lambda *args, **kwargs: {})
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda *args, **kwargs: None)
        state = FeatureExtractorInceptionV3("random", ["logits"]).state_dict()
    for key, value in state.items():
        if value.dim() == 4:
            fan_in = value[0].numel()
            value.copy_(torch.randn(value.shape, generator=generator) * (2 / fan_in) ** 0.5)
        elif key == "fc.weight":
            value.copy_(torch.randn(value.shape, generator=generator))
    torch.save(state, folder / WEIGHTS_FILE)


@st.composite
def _damage(draw: st.DrawFn, original: bytes) -> bytes:
    content = bytearray(original)
    for _ in range(draw(st.integers(0, 4))):
        content[draw(st.integers(0, len(content) - 1))] ^= draw(st.integers(1, 255))
    start, length = draw(st.integers(0, len(content))), draw(st.sampled_from([0, 0, 1, 7, 100]))
    del content[start : start + length]
    return bytes(content[: draw(st.sampled_from([len(content), len(content), len(content) // 2, 3]))])


@pytest.fixture(scope="session")
def damage() -> Callable[[bytes], st.SearchStrategy[bytes]]:
    """What is left of the bytes of a file: bits flipped, pieces cut out, an end missing."""
    return _damage


@pytest.fixture(scope="session")
def small_unet() -> Callable[..., UNet]:
    """Makes networks for digits. Their last layers are not zero, as they are at the start of a training: the answers
    depend on everything."""

    def make(dropout: float = 0.0) -> UNet:
        import torch

        from ddim.denoisers import UNet

        torch.manual_seed(0)
        unet = UNet(
            in_channels=1,
            resolution=8,
            base_channels=8,
            channel_mult=(1, 2),
            num_res_blocks=1,
            attention_resolutions=(4,),
            dropout=dropout,
            norm_groups=4,
        )
        with torch.no_grad():
            for parameter in unet.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(std=parameter[0].numel() ** -0.5)
        return unet

    return make


@pytest.fixture
def forgotten() -> Iterator[None]:
    """Whatever a test registers is forgotten."""
    from hydra.core.config_store import ConfigStore

    from ddim.data.build import SOURCES
    from ddim.denoisers.build import DENOISERS, VERSIONS
    from ddim.diffusion import GUIDANCE, SAMPLERS, SCHEDULES, WEIGHTINGS
    from ddim.diffusion.restoration.operators.table import OPERATORS
    from ddim.evaluation.settings import STUDIES
    from ddim.findings.parts import PARTS
    from ddim.metrics import EXTRACTORS, MEASURES

    store = ConfigStore.instance().repo
    tables = (
        SAMPLERS,
        GUIDANCE,
        SCHEDULES,
        WEIGHTINGS,
        OPERATORS,
        SOURCES,
        DENOISERS,
        VERSIONS,
        MEASURES,
        EXTRACTORS,
        STUDIES,
        PARTS,
        store,
    )
    copies = [dict(table) for table in tables]
    groups = {name: dict(group) for name, group in store.items() if isinstance(group, dict)}
    yield
    for table, copy in zip(tables, copies, strict=True):
        table.clear()
        table.update(copy)
    store.update(groups)
