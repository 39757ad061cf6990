"""A real SLURM of one machine: a sweep is one table, a requeued job goes on where it was, a job that fails is named.

Debian's munge, slurmctld and slurmd run as root on loopback addresses, with all that they write in one directory.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from ddim.findings.files import read_results

REPOSITORY = Path(__file__).resolve().parents[2]
NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel", "sinfo")
EVALUATION = ("logger=none", "trainer.accelerator=cpu", "evaluation.num_samples=70", "evaluation.grid_images=4")
ON_SLURM = ("-m", "hydra/launcher=submitit_slurm", "hydra.launcher.partition=cpu")
# Several seconds of training with a checkpoint in each.
TRAINING = (
    "trainer.max_steps=120",
    "trainer.val_check_interval=40",
    "trainer.accelerator=cpu",
    "trainer.devices=2",
    "trainer.strategy=ddp",
    "denoiser.base_channels=8",
    "denoiser.norm_groups=4",
    "denoiser.dropout=0.1",
    "loader.batch_size=100",
    "callbacks=minimal",
    "callbacks.checkpoint.every_n_steps=5",
    "logger=none",
)
# What a slow machine may need; nothing waits longer than it has to.
PATIENCE = 600

CONFIGURATION = """\
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# A requeued job waits until its first credential is no longer good: two minutes by default.
AuthInfo=socket={directory}/munge.socket,cred_expire=5
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/slurmd.pid
SlurmctldLogFile={directory}/slurmctld.log
SlurmdLogFile={directory}/slurmd.log
PlugStackConfig=/dev/null
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
# More processors than there may be, so that the jobs of a test need not wait for each other.
SlurmdParameters=config_overrides
KillWait=120
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs=6 State=UNKNOWN
PartitionName=cpu Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


class Cluster:
    """One node with one partition, cpu."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.environment = {**os.environ, "SLURM_CONF": str(directory / "slurm.conf"), "OMP_NUM_THREADS": "1"}
        self.daemons: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        for name in ("state", "spool"):
            (self.directory / name).mkdir()
        key = self.directory / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        host = socket.gethostname().partition(".")[0]
        text = CONFIGURATION.format(host=host, ports=_free_ports(2), directory=self.directory)
        (self.directory / "slurm.conf").write_text(text)
        files = [f"--{name}-file={self.directory}/munged.{name}" for name in ("pid", "log", "seed")]
        socket_file = self.directory / "munge.socket"
        # --force: not where and as whom munged prefers to run.
        self._daemon("munged", "--foreground", "--force", f"--key-file={key}", f"--socket={socket_file}", *files)
        self.until(socket_file.exists)
        for name in ("slurmctld", "slurmd"):
            self._daemon(name, "-D", "-f", str(self.directory / "slurm.conf"))
        self.until(lambda: self.run("sinfo", "--noheader", "--format=%T", check=False).strip() == "idle")

    def _daemon(self, *command: str) -> None:
        with open(self.directory / f"{command[0]}.output", "wb") as output:
            self.daemons.append(
                subprocess.Popen(command, env=self.environment, stdout=output, stderr=subprocess.STDOUT)
            )

    def stop(self) -> None:
        if len(self.daemons) == 3:
            self.run("scancel", "--user=root", "--signal=KILL", "--full", check=False)
        for daemon in reversed(self.daemons):
            daemon.terminate()
            try:
                daemon.wait(timeout=20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    def run(self, *command: str, check: bool = True) -> str:
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0 or not check, done.stderr
        return done.stdout

    def job(self, number: str) -> dict[str, str]:
        return dict(re.findall(r"(\w+)=(\S*)", self.run("scontrol", "show", "job", "--oneliner", number)))

    def until(self, reached: Callable[[], object], also: Callable[[], str] = str) -> None:
        """Wait; where nothing comes of it, show the ends of the logs and what `also` has to say."""
        end = time.monotonic() + PATIENCE
        while not reached():
            if time.monotonic() > end:
                logs = [path.read_text(errors="replace")[-2000:] for path in sorted(self.directory.glob("*.log"))]
                raise AssertionError("\n".join([*logs, also()]))
            time.sleep(0.1)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    missing = [name for name in NEEDED if shutil.which(name) is None]
    if missing:
        pytest.skip(f"no {', '.join(missing)}: apt-get install slurmctld slurmd slurm-client munge")
    if os.geteuid() != 0:
        pytest.skip("slurmd starts jobs as their users, which only root can do")
    # The way to munge's socket has to be open for others, which that of pytest's directories is not.
    directory = Path(tempfile.mkdtemp(prefix="slurm-"))
    directory.chmod(0o755)
    cluster = Cluster(directory)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def on_the_cluster(cluster: Cluster, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    monkeypatch.setenv("SLURM_CONF", cluster.environment["SLURM_CONF"])
    return cluster


def numbers(directory: Path) -> dict[tuple[float, int], float | None]:
    return {(row.eta, row.steps): row.frechet_distance for row in read_results(directory).rows}


def test_four_jobs_make_the_table_of_one_process(on_the_cluster, run_process, run_script, workplace, trained_run):
    grid = ("sampler.eta=0,1", "sampler.steps=2,3", f"checkpoint={trained_run}", *EVALUATION)
    outcome = run_process("evaluate.py", *ON_SLURM, *grid, timeout=PATIENCE)
    assert outcome.status == 0, outcome
    (sweep,) = (workplace / "outputs" / "multirun").iterdir()
    assert "4 of 4 jobs finished" in outcome.output and outcome.output.count("FD (digits-cnn) by eta") == 1
    assert run_script("evaluate.py", *grid, "hydra.run.dir=alone").status == 0
    assert numbers(sweep) == pytest.approx(numbers(workplace / "alone"), rel=1e-5) and len(numbers(sweep)) == 4
    tasks = [path.name for path in (sweep / ".submitit").iterdir() if re.fullmatch(r"\d+_\d", path.name)]
    assert len(tasks) == 4
    # A job is COMPLETING for a moment after its last process has ended.
    on_the_cluster.until(lambda: all(on_the_cluster.job(task)["JobState"] == "COMPLETED" for task in tasks))


def test_a_job_that_fails_is_named_and_the_other_is_in_the_table(on_the_cluster, run_process, workplace, trained_run):
    grid = ("sampler.steps=2,2000", f"checkpoint={trained_run}", *EVALUATION)
    outcome = run_process("evaluate.py", *ON_SLURM, *grid, timeout=PATIENCE)
    assert outcome.status == 2, outcome
    (sweep,) = (workplace / "outputs" / "multirun").iterdir()
    assert {steps for _, steps in numbers(sweep)} == {2}
    said = outcome.output + outcome.errors
    assert "1 of 2 jobs finished" in said
    assert re.search(r"job 1 \(sampler.steps=2000\) failed: sampler\.steps=2000 .*from 1 to 1000", said), said


class Training:
    """A batch script of two processes, as docs/scaling.md shows it."""

    def __init__(self, cluster: Cluster, directory: Path) -> None:
        self.cluster, self.directory = cluster, directory
        script = directory / "job.sh"
        command = " ".join([sys.executable, str(REPOSITORY / "train.py"), *TRAINING])
        lines = ("#!/bin/bash", "#SBATCH --nodes=1 --ntasks-per-node=2 --open-mode=append --output=output.txt")
        script.write_text("\n".join([*lines, f"srun --kill-on-bad-exit=1 {command}"]) + "\n")
        submitted = cluster.run("sbatch", "--parsable", "--requeue", f"--chdir={directory}", str(script))
        self.number = submitted.strip()

    @property
    def run(self) -> Path:
        (run,) = (self.directory / "outputs" / "train").iterdir()
        return run

    @property
    def output(self) -> str:
        return (self.directory / "output.txt").read_text()

    def has_saved(self) -> bool:
        return any(self.directory.glob("outputs/train/*/checkpoints/last.ckpt"))

    def has_ended(self) -> bool:
        state = self.cluster.job(self.number)["JobState"]
        assert state not in ("FAILED", "CANCELLED", "NODE_FAIL"), self.output
        return state == "COMPLETED"

    def weights(self) -> dict[str, torch.Tensor]:
        checkpoint = torch.load(self.run / "checkpoints" / "last.ckpt", weights_only=True)
        assert checkpoint["global_step"] == 120
        return checkpoint["state_dict"]


@pytest.mark.parametrize("how", [("scontrol", "requeue"), ("scancel", "--signal=USR1")], ids=" ".join)
def test_a_requeued_training_of_two_processes_goes_on_where_it_was(on_the_cluster, tmp_path, cache_dir, how):
    """By an operator, or by Lightning itself, which is told by a signal that the time is almost up."""
    on_the_cluster.environment["DDIM_CACHE_DIR"] = str(cache_dir)
    for name in ("whole", "requeued"):
        (tmp_path / name).mkdir()
    requeued = Training(on_the_cluster, tmp_path / "requeued")
    whole = Training(on_the_cluster, tmp_path / "whole")
    on_the_cluster.until(requeued.has_saved, lambda: requeued.output)
    on_the_cluster.run(*how, requeued.number)
    on_the_cluster.until(requeued.has_ended, lambda: requeued.output)
    on_the_cluster.until(whole.has_ended, lambda: whole.output)
    assert on_the_cluster.job(requeued.number)["Restarts"] == "1", requeued.output
    assert on_the_cluster.job(whole.number)["Restarts"] == "0"
    assert re.fullmatch(rf"slurm-{requeued.number}-[0-9a-f]{{6}}-digits", requeued.run.name)
    # Where Lightning has saved a newer state for itself it takes that one.
    goes_on = requeued.output.count("was started before: this goes on from") == 1
    assert goes_on or (requeued.run / "hpc_ckpt_1.ckpt").is_file()
    assert "was started before" not in whole.output and "100 on each of 2 devices" in whole.output
    expected, found = whole.weights(), requeued.weights()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
