"""What happens around training: the evaluation grid, sample pictures, checkpoints, progress, throughput."""

from ddim.callbacks.averaging import WeightEma
from ddim.callbacks.checkpointing import LastCheckpoint
from ddim.callbacks.evaluation import EvaluationGrid, Measure, TrainingEvaluation, features_name
from ddim.callbacks.progress import GridProgress, TrainingProgress, track
from ddim.callbacks.sample_grid import SampleGrid
from ddim.callbacks.throughput import Throughput

__all__ = [
    "EvaluationGrid",
    "GridProgress",
    "LastCheckpoint",
    "Measure",
    "SampleGrid",
    "Throughput",
    "TrainingEvaluation",
    "TrainingProgress",
    "WeightEma",
    "features_name",
    "track",
]
