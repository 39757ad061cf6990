"""What happens around training: the evaluation grid, sample pictures, checkpoints, progress, throughput."""

from ddim.callbacks.averaging import WeightEma
from ddim.callbacks.checkpointing import LastCheckpoint
from ddim.callbacks.evaluation import EvaluationGrid
from ddim.callbacks.generation import Sampling
from ddim.callbacks.measure import Measure, features_name
from ddim.callbacks.progress import GridProgress, TrainingProgress, track
from ddim.callbacks.sample_grid import SampleGrid
from ddim.callbacks.study import Study
from ddim.callbacks.throughput import Throughput
from ddim.callbacks.training_evaluation import TrainingEvaluation

__all__ = [
    "EvaluationGrid",
    "GridProgress",
    "LastCheckpoint",
    "Measure",
    "SampleGrid",
    "Sampling",
    "Study",
    "Throughput",
    "TrainingEvaluation",
    "TrainingProgress",
    "WeightEma",
    "features_name",
    "track",
]
