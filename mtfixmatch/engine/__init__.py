"""Training and evaluation: config, step, trainer, hooks, report."""

from .setup import load_config
from .testing import evaluate_checkpoint
from .trainer import MultiTaskTrainer

__all__ = ["MultiTaskTrainer", "evaluate_checkpoint", "load_config"]
