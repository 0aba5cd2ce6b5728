"""Training: the step, the trainer around it, and how a run is set up."""

from .setup import load_config
from .testing import evaluate_checkpoint
from .trainer import MultiTaskTrainer

__all__ = ["MultiTaskTrainer", "evaluate_checkpoint", "load_config"]
