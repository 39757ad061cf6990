"""What W&B gets, read back from the offline files of a real training and a real evaluation."""

from __future__ import annotations

import csv
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ddim.findings.parts import PARTS
from ddim.tracking.keys import (
    AXES,
    CURVE,
    EVALUATE,
    PICTURE,
    SAMPLING_STEPS,
    TRAIN,
    TRAINING_STEP,
    all_keys,
    as_markdown,
    find,
)
from ddim.tracking.loggers import group_name
from ddim.tracking.offline_runs import OfflineRun, offline_files, read_offline_run
from ddim.tracking.wandb_run import ARTIFACT_FILE, DashboardLogger, artifact_of

REPOSITORY = Path(__file__).resolve().parents[2]
# Logged only by `table=`, with a picture of one's own, under guidance, and of what is no image.
ABSENT = {
    *("table/<table>", "restoration/restored-<method>", "grid/tradeoff", "grid/classes<-sampler>"),
    *("trajectory/flow", "grid/samples-real", "grid/samples-pairs"),
    *("likelihood/log_density/<sampler>/<tau>", "likelihood/density", "restoration/rmse"),
}
# In the summary of what is no image.
ABSENT_COLUMNS = {
    *("likelihood/log_density/<sampler>/<tau>/<steps>", "likelihood/log_density/flow"),
    *("likelihood/difference/<sampler>/<tau>/<steps>", "likelihood/difference/flow"),
}
# Of a part that needs another data set than the digits; its own tests find its keys.
CAPTIONS = {name for name, *_ in PARTS["captions"].keys}
TRAINING_PANELS = (
    *("train/loss", "train/gradient_norm", "train/lr", "train/images_per_second"),
    *("val/loss", "val/loss_q1", "val/loss_q2", "val/loss_q3", "val/loss_q4", "val/frechet_distance", "samples"),
)
EVALUATION_CURVES = (
    *("grid/frechet_distance/eta0_000/linear", "grid/frechet_distance/eta1_000/linear"),
    *("grid/seconds_per_50000/eta0_000/linear", "grid/seconds_per_50000/eta1_000/linear"),
    *("samples/eta0_000/linear", "samples/eta1_000/linear", "reconstruction/mse/linear"),
    *("consistency/mse/eta0_000/linear", "consistency/mse/eta1_000/linear"),
)  # fmt: skip
FIGURES = (
    "grid/samples",
    "reconstruction/images",
    "reconstruction/error",
    "consistency/images",
    "consistency/distance",
)


@dataclass
class Logged:
    directory: Path
    attempts: list[tuple[Path, OfflineRun]]

    @property
    def run(self) -> OfflineRun:
        return self.attempts[0][1]

    @property
    def files(self) -> Path:
        return self.attempts[0][0].parent / "files"

    def table(self, key: str) -> dict[str, Any]:
        return json.loads((self.files / self.run.series(key)[-1]["path"]).read_text())


def logged(directory: Path) -> Logged:
    paths = offline_files(directory, (directory / "wandb_run_id").read_text().strip())
    return Logged(directory, [(path, read_offline_run(path)) for path in paths])


@pytest.fixture(scope="module")
def runs(made_once, run_fork, tiny_training) -> tuple[Logged, Logged]:
    """A training, resumed once, and an evaluation of it; both offline."""
    train, evaluate = Path("outputs/train/a run"), Path("outputs/evaluate/a grid")

    def run(folder: Path) -> None:
        def script(*command: str) -> None:
            outcome = run_fork(folder, {}, *command)
            assert outcome.status == 0, outcome.output

        script(
            *("train.py", *tiny_training, "logger.mode=offline", "logger.log_model=true", "tags=tiny,first"),
            *("logger.notes='a note, with a comma'", "callbacks.evaluation.metrics=[frechet_distance,kid]"),
            f"hydra.run.dir='{folder / train}'",
        )
        script("train.py", f"resume={folder / train}", "trainer.max_steps=6")
        script(
            *(
                "evaluate.py",
                f"checkpoint={folder / train}",
                f"evaluation.parts={','.join(name for name in PARTS if name != 'captions')}",
                "sampler.eta=0,1",
            ),
            *("sampler.steps=2,3", "evaluation.num_samples=40", "evaluation.consistency.num_images=4"),
            *("evaluation.reconstruction.num_images=4", "evaluation.convergence.num_images=4"),
            *("evaluation.convergence.reference_steps=6", "evaluation.likelihood.num_images=4"),
            *("evaluation.interpolation.lines=1", "logger.mode=offline", f"hydra.run.dir='{folder / evaluate}'"),
        )

    folder = made_once("dashboards", run)
    return logged(folder / train), logged(folder / evaluate)


def keys_of(run: OfflineRun) -> set[str]:
    found = {key for row in run.history for key in row if not key.startswith("_")}
    return (found | set(run.config["_wandb"].get("visualize", {}))) - set(AXES)


@pytest.mark.parametrize("job", [TRAIN, EVALUATE])
def test_the_list_of_keys_and_what_is_logged_are_the_same(runs, job):
    run = runs[job == EVALUATE].run
    entries = {key: find(key, job) for key in keys_of(run)}
    assert not [key for key, entry in entries.items() if entry is None], "logged, but not in ddim.tracking.keys"
    listed = {entry.name for entry in all_keys() if entry.job == job and entry.kind != "summary"} - CAPTIONS
    assert listed - {entry.name for entry in entries.values()} == (ABSENT if job == EVALUATE else set())


def test_the_summary_has_the_columns_of_the_list(runs):
    run = runs[1].run
    columns = {key for key in run.summary if not key.startswith("_")} - keys_of(run) - set(AXES)
    entries = {key: find(key, EVALUATE, ["summary"]) for key in columns}
    assert not [key for key, entry in entries.items() if entry is None]
    listed = {entry.name for entry in all_keys() if entry.job == EVALUATE and entry.kind == "summary"} - CAPTIONS
    assert {entry.name for entry in entries.values()} == listed - ABSENT_COLUMNS
    assert not [key for key in (*columns, *keys_of(run), *keys_of(runs[0].run)) if "." in key]


def test_training_panels_have_the_step_as_x_axis(runs):
    run = runs[0].run
    for key in TRAINING_PANELS:
        assert run.metrics[key].step_metric == TRAINING_STEP, key
        rows = [row for row in run.history if key in row]
        assert rows and all(TRAINING_STEP in row for row in rows), key
    assert [step for step, _ in run.curve("train/loss")] == [0, 1, 2, 3]
    assert [step for step, _ in run.curve("samples")] == [2, 4], "a slider over training"
    assert len(run.curve("val/loss")) == 2 and run.metrics["*"].step_metric == TRAINING_STEP
    assert run.summary["val/loss"] == {
        "min": min(run.series("val/loss")),
        "last": run.series("val/loss")[-1],
    }


def test_evaluation_curves_have_the_steps_as_x_axis(runs):
    evaluation = runs[1]
    run = evaluation.run
    for key in EVALUATION_CURVES:
        assert run.metrics[key].step_metric == SAMPLING_STEPS, key
        # The largest S of the consistency is what the others are compared with.
        assert [steps for steps, _ in run.curve(key)] == ([2] if key.startswith("consistency") else [2, 3]), key
    rows = list(csv.DictReader((evaluation.directory / "results.csv").open()))
    for eta, key in (("0.0", "eta0_000"), ("1.0", "eta1_000")):
        distances = [float(row["frechet_distance"]) for row in rows if row["eta"] == eta]
        assert [value for _, value in run.curve(f"grid/frechet_distance/{key}/linear")] == distances
        for steps, distance in zip((2, 3), distances, strict=True):
            assert run.summary[f"frechet_distance/{key}/linear/steps{steps:04d}"] == distance
    best = min(rows, key=lambda row: float(row["frechet_distance"]))
    assert run.summary["best/frechet_distance"] == float(best["frechet_distance"])
    assert (float(run.summary["best/eta"]), run.summary["best/steps"]) == (float(best["eta"]), int(best["steps"]))
    for name in (SAMPLING_STEPS, "nfe", "grid/frechet_distance/eta0_000/linear"):
        assert name not in run.summary, "the last point of a curve is no column"
    assert all("nfe" in row for row in run.history if SAMPLING_STEPS in row)


def test_a_run_says_what_it_is(runs):
    training, evaluation = (part.run.run for part in runs)
    assert (training.job_type, training.display_name, training.run_group) == ("train", "a run", "a run")
    assert (evaluation.job_type, evaluation.display_name, evaluation.run_group) == ("evaluate", "a grid", "a run")
    assert (list(training.tags), training.notes, training.project) == (
        ["tiny", "first"],
        "a note, with a comma",
        "ddim",
    )
    for part in runs:
        assert part.run.exit_code == 0
        assert {"proc.memory.rssMB", "proc.cpu.threads"} <= part.run.system, "system metrics"
    assert runs[0].run.config["tags"] == ["tiny", "first"]
    assert runs[0].run.config["optimizer"]["lr"] > 0 and runs[0].run.config["parameters"] > 1000


def test_media_and_tables_are_in_the_run(runs):
    for part in runs:
        media = [value for row in part.run.history for value in row.values() if isinstance(value, dict)]
        paths = [value["path"] for value in media if "path" in value]
        paths += [name for value in media for name in value.get("filenames", [])]
        assert len(paths) >= (2 if part is runs[0] else 20)
        for path in paths:
            assert (part.files / path).stat().st_size > 0 and path in part.run.files, path
    evaluation = runs[1]
    for key in FIGURES:
        assert evaluation.run.series(key)[0]["_type"] in ("images/separated", "image-file"), key
    rows = list(csv.reader((evaluation.directory / "results.csv").open()))
    table = evaluation.table("grid/results")
    assert table["columns"] == rows[0] and len(table["data"]) == len(rows) - 1 == 4
    # The file beside the run has only names of pictures; the artifact, from which W&B draws the table, has them.
    (artifact,) = (artifact for artifact in evaluation.run.artifacts if "gridpictures" in artifact.name)
    contents = {entry.path: Path(entry.local_path) for entry in artifact.manifest.contents}
    pictures = json.loads(contents["grid/pictures.table.json"].read_text())
    assert pictures["columns"][:3] == ["eta", "tau", "steps"]
    assert [row[:3] for row in pictures["data"]] == [
        ["0", "linear", 2],
        ["0", "linear", 3],
        ["1", "linear", 2],
        ["1", "linear", 3],
    ]
    for row in pictures["data"]:
        assert row[-1]["_type"] == "image-file" and contents[row[-1]["path"]].read_bytes().startswith(b"\x89PNG")
    (caption, _) = (value["caption"] for value in evaluation.run.series("samples/eta1_000/linear"))
    assert caption.startswith("eta 1, S 2: FD (digits-cnn) ") or caption[0].startswith("eta 1, S 2: FD (digits-cnn) ")


def test_the_charts_have_a_line_per_eta(runs):
    evaluation = runs[1]
    for key in ("grid/distance_chart", "grid/time_chart"):
        panel = evaluation.run.config["_wandb"]["visualize"][key]["panel_config"]
        assert panel["panelDefId"] == "wandb/lineseries/v0"
        table = evaluation.table(f"{key}_table")
        x, y, line = (panel["fieldSettings"][name] for name in ("step", "lineVal", "lineKey"))
        assert table["columns"] == [x, y, line] and x == "steps"
        assert [(row[0], row[2]) for row in table["data"]] == [(2, "η = 0"), (3, "η = 0"), (2, "η = 1"), (3, "η = 1")]
        assert "digits" in panel["stringSettings"]["title"] and "N = 40" in panel["stringSettings"]["title"]
        # The data come from the runs that are selected, whichever and however many they are.
        assert "${runSets}" in json.dumps(panel["userQuery"])


def test_the_checkpoints_are_an_artifact_and_the_evaluation_names_it(runs):
    training, evaluation = runs
    found = [artifact for _, run in training.attempts for artifact in run.artifacts if artifact.type == "model"]
    assert [sorted(artifact.aliases) for artifact in found] == [["latest", "step-4"], ["latest", "step-6"]]
    name = f"model-{training.run.run.run_id}"
    for artifact in found:
        assert artifact.name == name
        contents = {entry.path: entry for entry in artifact.manifest.contents}
        assert set(contents) == {"best.ckpt", "last.ckpt"}
        for entry in contents.values():
            assert Path(entry.local_path).stat().st_size == entry.size
            assert training.directory in Path(entry.local_path).parents, "nothing outside the run directory"
    metadata = json.loads(found[-1].metadata)
    assert metadata["step"] == 6 and metadata["dataset"] == "digits" and metadata["val/loss"] > 0
    subject = evaluation.run.config["subject"]
    assert subject["artifact"] == f"ddim/{name}:step-6"
    assert subject["checkpoint"].endswith("last.ckpt") and len(subject["weights_hash"]) == 16


def test_a_checkpoint_that_has_changed_since_is_not_the_artifact(runs, tmp_path):
    directory = runs[0].directory
    (tmp_path / "checkpoints").mkdir()
    checkpoint = tmp_path / "checkpoints" / "last.ckpt"
    checkpoint.write_bytes((directory / "checkpoints" / "last.ckpt").read_bytes())
    assert artifact_of(checkpoint) is None, "no note"
    note = (directory / ARTIFACT_FILE).read_text()
    (tmp_path / ARTIFACT_FILE).write_text(note)
    assert artifact_of(checkpoint) == json.loads(note)["artifact"]
    checkpoint.write_bytes(checkpoint.read_bytes() + b"x")
    assert artifact_of(checkpoint) is None
    for damaged in ("", "[]", "{}", '{"artifact": 1, "md5": 2}'):
        (tmp_path / ARTIFACT_FILE).write_text(damaged)
        assert artifact_of(checkpoint) is None


def test_a_resumed_offline_run_goes_on_where_it_was(runs):
    (_, first), (_, second) = runs[0].attempts
    assert first.run.run_id == second.run.run_id and first.run.resume and second.run.resume
    numbers = [[row["_step"] for row in run.history] for run in (first, second)]
    assert numbers[0] == list(range(len(numbers[0])))
    assert numbers[1] == list(range(len(numbers[0]), len(numbers[0]) + len(numbers[1])))
    assert [step for run in (first, second) for step, _ in run.curve("train/loss")] == [0, 1, 2, 3, 4, 5]
    assert list(second.metrics)[: len(AXES)] == list(AXES), "each attempt defines its axes"


class FakeRun:
    def __init__(self, offline: bool, error: Exception | None = None) -> None:
        self.offline, self.error, self.used = offline, error, []

    def use_artifact(self, name: str) -> None:
        if self.error is not None:
            raise self.error
        self.used.append(name)


def test_the_artifact_is_used_where_there_is_a_server(tmp_path, caplog):
    def logger_of(run: FakeRun) -> DashboardLogger:
        logger = DashboardLogger(job=EVALUATE, dir=tmp_path, project="ddim")
        logger._experiment = run
        return logger

    online, offline, failing = FakeRun(False), FakeRun(True), FakeRun(False, ValueError("not found"))
    for run in (online, offline):
        logger_of(run).use_checkpoint("team/ddim/model-x:step-4")
    assert (online.used, offline.used) == (["team/ddim/model-x:step-4"], [])
    with caplog.at_level(logging.WARNING):
        logger_of(failing).use_checkpoint("team/ddim/model-x:step-4")
    assert "team/ddim/model-x:step-4" in caplog.text and "not found" in caplog.text


def test_axes_are_defined_once_and_before_their_first_row(tmp_path):
    events: list[tuple[str, Any]] = []
    logger = DashboardLogger(job=EVALUATE, dir=tmp_path, project="ddim")
    logger._experiment = SimpleNamespace(
        define_metric=lambda name, **settings: events.append((name, settings["step_metric"])),
        log=lambda row: events.append(("log", sorted(row))),
    )
    for steps in (5, 10):
        logger.log_point(steps, steps, {"grid/frechet_distance/eta0.500/linear": 1.0})
    row = ("log", ["grid/frechet_distance/eta0_500/linear", "nfe", "steps"])
    assert events == [("grid/frechet_distance/eta0_500/linear", "steps"), row, row]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("a run", "a run"),
        ("google/ddpm-cifar10-32@1:2", "google-ddpm-cifar10-32@1-2"),
        ("///", "ddim"),
        ("x" * 200, "x" * 128),
    ],
)
def test_a_group_has_a_name_that_wandb_takes(text, name):
    assert group_name(text) == name


@pytest.mark.parametrize("job", [TRAIN, EVALUATE])
def test_the_page_has_the_list_of_keys(job):
    page = (REPOSITORY / "docs" / "wandb.md").read_text()
    assert as_markdown(job) in page, f"put this into docs/wandb.md:\n{as_markdown(job)}"


def test_names_in_the_list_are_unique_and_have_axes():
    keys = all_keys()
    assert len({(entry.name, entry.job, entry.kind) for entry in keys}) == len(keys)
    assert all(entry.axis in AXES for entry in keys if entry.kind == CURVE)
    assert all(entry.axis == TRAINING_STEP for entry in keys if entry.job == TRAIN and entry.kind in (CURVE, PICTURE))
