"""Training: the time and memory of a step, and the long run."""

from trivet.cloud.training.job import Overlap, Split, TrainingJob
from trivet.cloud.training.step import StepResult, train_step

__all__ = ["Overlap", "Split", "StepResult", "TrainingJob", "train_step"]
