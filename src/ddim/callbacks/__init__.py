"""What happens around training: the evaluation grid, sample pictures, checkpoints, progress, throughput."""

from ddim.callbacks.averaging import WeightEma
from ddim.callbacks.best_checkpoint import BestCheckpoint
from ddim.callbacks.checkpointing import LastCheckpoint
from ddim.callbacks.consistency import Consistency
from ddim.callbacks.divergence import StopOnDivergence
from ddim.callbacks.diversity import Diversity
from ddim.callbacks.evaluation import EvaluationGrid
from ddim.callbacks.generation import Sampling
from ddim.callbacks.interpolation import Interpolation
from ddim.callbacks.measure import Measure, features_name
from ddim.callbacks.progress import GridProgress, TrainingProgress, track
from ddim.callbacks.reconstruction import Reconstruction
from ddim.callbacks.resumption import Resumption
from ddim.callbacks.sample_grid import SampleGrid
from ddim.callbacks.stopping import SignalHandlers
from ddim.callbacks.study import Study
from ddim.callbacks.throughput import Throughput
from ddim.callbacks.training_evaluation import TrainingEvaluation
from ddim.callbacks.trajectory import Trajectory

__all__ = [
    "BestCheckpoint",
    "Consistency",
    "Diversity",
    "EvaluationGrid",
    "GridProgress",
    "Interpolation",
    "LastCheckpoint",
    "Measure",
    "Reconstruction",
    "Resumption",
    "SampleGrid",
    "Sampling",
    "SignalHandlers",
    "StopOnDivergence",
    "Study",
    "Throughput",
    "TrainingEvaluation",
    "TrainingProgress",
    "Trajectory",
    "WeightEma",
    "features_name",
    "track",
]
