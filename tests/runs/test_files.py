"""Files are whole or as they were: a full disk, for real, and what is told of it."""

from __future__ import annotations

import contextlib
import csv
import errno
import os
import re
import resource
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from ddim.command.arguments import evaluation_arguments, training_arguments
from ddim.errors import UserError
from ddim.runs.files import (
    UNFINISHED,
    disk_errors_as_sentence,
    remove_unfinished,
    replacing,
    save_picture,
    write_atomically,
)
from ddim.tracking.loggers import MetricsFile
from ddim.training.checkpoint_io import AtomicCheckpointIO

SMALL, LARGE = b"old", bytes(300_000)


@contextlib.contextmanager
def files_limited_to(size: int) -> Iterator[None]:
    """The kernel refuses to let a file grow beyond `size` bytes: a full disk that needs no disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


class TestWriting:
    def test_old_or_new_and_nothing_beside_it(self, tmp_path):
        path = tmp_path / "new folder" / "file"
        for content in (SMALL, LARGE):
            write_atomically((path, content))
            assert path.read_bytes() == content and names(path.parent) == {"file"}

    def test_a_file_is_not_there_before_it_is_whole(self, tmp_path):
        path = tmp_path / "file"
        with replacing(path) as stream:
            stream.write(SMALL)
            assert not path.exists() and len(names(tmp_path)) == 1
        assert path.read_bytes() == SMALL

    def test_a_full_disk_leaves_the_old_file_and_names_it(self, tmp_path):
        path = tmp_path / "file"
        write_atomically((path, SMALL))
        with files_limited_to(100_000), pytest.raises(OSError) as caught:
            write_atomically((path, LARGE))
        assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(path))
        assert path.read_bytes() == SMALL and names(tmp_path) == {"file"}

    @pytest.mark.parametrize("large", [0, 1])
    def test_of_several_files_all_are_old_when_one_does_not_fit(self, tmp_path, large):
        paths = [tmp_path / "first", tmp_path / "second"]
        write_atomically(*((path, SMALL) for path in paths))
        content = [b"new", b"new"]
        content[large] = LARGE
        with files_limited_to(100_000), pytest.raises(OSError) as caught:
            write_atomically(*zip(paths, content, strict=True))
        assert caught.value.filename == str(paths[large])
        assert [path.read_bytes() for path in paths] == [SMALL, SMALL] and names(tmp_path) == {"first", "second"}

    def test_what_a_killed_process_left_is_removed(self, tmp_path):
        (tmp_path / "folder").mkdir()
        left = [tmp_path / f"{UNFINISHED}1", tmp_path / "folder" / f"{UNFINISHED}2"]
        for path in [*left, tmp_path / "file"]:
            path.write_bytes(SMALL)
        assert remove_unfinished(tmp_path) == left
        assert names(tmp_path) == {"file", "folder"} and not names(tmp_path / "folder")

    def test_the_name_means_nothing_to_lightning(self):
        """It takes the digits after `ckpt_` in any name for the version of a checkpoint."""
        assert "ckpt_" not in UNFINISHED


class TestPictures:
    picture = Image.effect_noise((300, 300), 50)

    def test_a_full_disk_leaves_the_old_one(self, tmp_path):
        for name in ("picture.png", "picture.gif"):
            save_picture(self.picture.resize((9, 9)), tmp_path / name)
            with files_limited_to(10_000), pytest.raises(OSError) as caught:
                save_picture(self.picture, tmp_path / name)
            assert caught.value.filename == str(tmp_path / name)
            with Image.open(tmp_path / name) as kept:
                assert kept.size == (9, 9) and kept.format == name[-3:].upper()
        assert names(tmp_path) == {"picture.png", "picture.gif"}


class TestMetrics:
    def read(self, logger: MetricsFile) -> list[dict[str, str]]:
        with open(Path(logger.log_dir) / "metrics.csv") as file:
            return [{key: value for key, value in row.items() if value} for row in csv.DictReader(file)]

    def test_rows_and_columns_are_added(self, tmp_path):
        logger = MetricsFile(tmp_path)
        rows = [
            {"loss": 1.0, "step": 0},
            {"loss": 0.5, "step": 1},
            {"other": 0.25, "step": 1},
            {"loss": 0.1, "step": 2},
        ]
        for row in rows:
            logger.log_metrics({key: value for key, value in row.items() if key != "step"}, step=row["step"])
            logger.save()
        assert [{key: float(value) for key, value in row.items()} for row in self.read(logger)] == rows

    @pytest.mark.parametrize("columns", [("loss",), ("loss", "new")])
    def test_a_full_disk_leaves_what_was_there(self, tmp_path, columns):
        logger = MetricsFile(tmp_path)
        logger.log_metrics({"loss": 1.0}, step=0)
        logger.save()
        before = self.read(logger)
        for step in range(1, 90):
            logger.log_metrics(dict.fromkeys(columns, 1 / 3), step=step)
        with files_limited_to(1_000), pytest.raises(OSError) as caught:
            logger.save()
        assert caught.value.filename == str(Path(logger.log_dir) / "metrics.csv")
        assert self.read(logger) == before


class TestCheckpoints:
    checkpoint = {"weights": torch.arange(50_000.0), "step": 3}  # noqa: RUF012

    def test_what_is_saved_can_be_loaded(self, tmp_path):
        path = tmp_path / "folder" / "last.ckpt"
        AtomicCheckpointIO().save_checkpoint(self.checkpoint, path)
        loaded = AtomicCheckpointIO().load_checkpoint(path, weights_only=True)
        assert torch.equal(loaded["weights"], self.checkpoint["weights"]) and loaded["step"] == 3

    def test_a_full_disk_leaves_the_previous_one(self, tmp_path):
        path = tmp_path / "last.ckpt"
        AtomicCheckpointIO().save_checkpoint({"step": 1}, path)
        with files_limited_to(100_000), pytest.raises(OSError) as caught:
            AtomicCheckpointIO().save_checkpoint(self.checkpoint, path)
        assert caught.value.filename == str(path)
        assert torch.load(path, weights_only=True) == {"step": 1} and names(tmp_path) == {"last.ckpt"}

    def test_an_interruption_in_the_middle_leaves_the_previous_one(self, tmp_path, monkeypatch):
        path = tmp_path / "last.ckpt"
        AtomicCheckpointIO().save_checkpoint({"step": 1}, path)
        monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            AtomicCheckpointIO().save_checkpoint(self.checkpoint, path)
        assert torch.load(path, weights_only=True) == {"step": 1} and names(tmp_path) == {"last.ckpt"}


class TestSentences:
    @pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EACCES])
    def test_the_disk_is_told_in_one_sentence(self, tmp_path, number):
        with pytest.raises(UserError) as caught, disk_errors_as_sentence(tmp_path, lambda: "start again"):
            raise OSError(number, os.strerror(number), str(tmp_path / "results.csv"))
        assert str(caught.value) == (
            f"{tmp_path / 'results.csv'} cannot be written ({os.strerror(number)}); the files that were there are "
            "whole. Make room or give write permission, then start again."
        )

    def test_a_write_that_does_not_know_its_file_names_the_directory(self, tmp_path):
        with pytest.raises(UserError, match=f"a file of {tmp_path} cannot be"), disk_errors_as_sentence(tmp_path, str):
            raise OSError(errno.ENOSPC, "No space left on device")

    def test_other_errors_are_errors(self, tmp_path):
        with pytest.raises(FileNotFoundError), disk_errors_as_sentence(tmp_path, str):
            (tmp_path / "nothing").read_text()


@pytest.mark.parametrize("rewrite", [training_arguments, evaluation_arguments])
class TestOutputDirectory:
    @pytest.mark.parametrize("key", ["output_dir", "hydra.run.dir"])
    @pytest.mark.parametrize("directory", ["/proc/x/y", "a file/x", "a file", "/proc/${now:%Y}"])
    def test_one_that_cannot_be_is_refused_before_hydra_tries(self, rewrite, key, directory, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "a file").touch()
        with pytest.raises(UserError, match=f"^{key}={re.escape(directory)} cannot be written to"):
            rewrite([f"{key}='{directory}'"])
        assert names(tmp_path) == {"a file"}

    def test_a_sweep_has_a_directory_of_its_own(self, rewrite):
        with pytest.raises(UserError, match=r"^hydra\.sweep\.dir=/proc/x cannot be written to"):
            rewrite(["-m", "hydra.sweep.dir=/proc/x"])

    @pytest.mark.parametrize("arguments", [[], ["output_dir=deep/er/x"], ["hydra.run.dir='${output_dir}/x'"]])
    def test_nothing_is_left_of_the_trial(self, rewrite, arguments, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        rewrite(arguments)
        assert names(tmp_path) == set()

    @pytest.mark.skipif(os.geteuid() == 0, reason="root writes wherever it likes")
    def test_permissions_are_respected(self, rewrite, tmp_path):
        tmp_path.chmod(0o500)
        with pytest.raises(UserError, match="Permission denied"):
            rewrite([f"output_dir={tmp_path}/x"])


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of 3 MB; making one takes root."""
    mount = shutil.which("mount")
    directory = tmp_path / "disk"
    directory.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(directory)]
    if mount is None or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("a file system of its own needs the right to mount one")
    yield directory
    subprocess.run(["umount", "-l", str(directory)], check=True)


def fill(directory: Path) -> None:
    """Take all room but some that a log line needs, and then that as well."""
    for size in (1 << 16, 1 << 12, 1):
        with open(directory / f"ballast {size}", "wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(size))


@pytest.mark.parametrize("logger", ["csv", "wandb", "tensorboard"])
def test_training_on_a_full_disk_stops_with_a_sentence(run_script, tiny_training, small_disk, logger, monkeypatch):
    arguments = (*tiny_training, "callbacks=minimal", f"logger={logger}", f"output_dir={small_disk}")
    assert run_script("train.py", *arguments).status == 0
    (run,) = (small_disk / "train").iterdir()
    before = {path: path.read_bytes() for path in (run / "checkpoints").iterdir()}
    assert names(run / "checkpoints") == {"last.ckpt", "best.ckpt"}
    from ddim.training.module import DenoisingModule

    train = DenoisingModule.training_step

    full: list[None] = []

    def train_until_full(module, batch, batch_idx):
        if module.global_step == 5 and not full:
            full.append(fill(small_disk))
        return train(module, batch, batch_idx)

    monkeypatch.setattr(DenoisingModule, "training_step", train_until_full)
    outcome = run_script("train.py", f"resume={run}", "trainer.max_steps=8")
    assert outcome.status == 2, outcome.errors
    sentence = outcome.errors.strip().splitlines()[-1]
    assert re.fullmatch(
        rf"error: {re.escape(str(run))}/checkpoints/(last|best).ckpt cannot be written \(No space left on device\); .* "
        rf"go on with `python train.py resume={re.escape(str(run))}`\.",
        sentence,
    ), outcome.errors
    assert "Traceback" not in outcome.errors
    for path, content in before.items():
        assert path.read_bytes() == content and not list(path.parent.glob(f"{UNFINISHED}*"))

    for ballast in small_disk.glob("ballast*"):
        ballast.unlink()
    assert run_script("train.py", f"resume={run}", "trainer.max_steps=8").status == 0
