"""Training: the step, the trainer around it, and how a run is set up."""

from .setup import load_config
from .trainer import MultiTaskTrainer, evaluate_checkpoint

__all__ = ["MultiTaskTrainer", "evaluate_checkpoint", "load_config"]
