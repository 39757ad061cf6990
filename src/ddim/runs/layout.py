"""What the files of a run are called."""

from __future__ import annotations

from pathlib import Path

LAST, BEST = "last.ckpt", "best.ckpt"
# The command line of a run, written when its work starts: a resumption that is refused must not change it.
OVERRIDES_FILE = "overrides.yaml"
LAST_CHECKPOINT = Path("checkpoints", "last.ckpt")
CONFIG_FILE = "config.yaml"
CSV_NAME, JSON_NAME = "results.csv", "results.json"
# Written by the sweeper; and by each job, how it ended.
SWEEP_FILE, JOB_FILE = "multirun.yaml", "job.json"
HYDRA_FILE = Path(".hydra", "hydra.yaml")
# Statistics of the training images beside an exported network, by the name of the features.
STATISTICS_FILE = "reference-{}.npz"
