"""All tasks' evaluators in one pass, their geometric mean, per-class tables (paper Sec. 4)."""

import logging
import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from detectron2.evaluation import DatasetEvaluators, inference_on_dataset
from detectron2.utils.logger import create_small_table
from tabulate import tabulate
from torch import nn
from torch.utils.data import DataLoader

from .tasks import Task

logger = logging.getLogger(__name__)


class _Named(DatasetEvaluators):
    """Evaluators side by side, whose results stand under their tasks' names."""

    def __init__(self, evaluators: Mapping[str, object]):
        super().__init__(list(evaluators.values()))
        self._names = list(evaluators)

    def evaluate(self) -> dict | None:
        results = [evaluator.evaluate() for evaluator in self._evaluators]
        return None if results[0] is None else dict(zip(self._names, results, strict=True))


def geometric_mean(values: Sequence[float]) -> float:
    """The geometric mean of metrics in [0, 1]; nan if one is nan."""
    return math.prod(values) ** (1 / len(values))


def evaluate(
    model: nn.Module, loader: DataLoader, records: Sequence[dict], tasks: Sequence[Task]
) -> dict:
    """Evaluate a model on whole images, in a single pass.

    Args:
        model: a MultiTaskNet, in whatever mode; it comes back in the same.
        loader: of the images, split over the ranks.
        records: of all of them; a task measures those labeled for it.
        tasks: to evaluate.

    Returns:
        {task: {metric: value, "per_class": {name: value}, "mean", "std"}, "geometric_mean": value}
        on the main process, {} on others.
    """
    evaluators = _Named({task.name: task.evaluator(records) for task in tasks})
    with torch.no_grad():
        results = inference_on_dataset(model, loader, evaluators)
    if not results:
        return {}
    for found in results.values():
        values = list(found["per_class"].values())
        known = [value for value in values if not math.isnan(value)]
        found["std"] = float(np.std(known)) if known else math.nan
    figures = [results[task.name][task.metric] for task in tasks]
    return {**results, "geometric_mean": geometric_mean(figures)}


def flat_results(results: Mapping, prefix: str) -> dict[str, float]:
    """Results as scalars under names such as teacher/detection/per_class/car, no nan."""
    flat: dict[str, float] = {}
    for key, value in results.items():
        if isinstance(value, Mapping):
            flat |= flat_results(value, f"{prefix}/{key}")
        elif not math.isnan(value):
            flat[f"{prefix}/{key}"] = value
    return flat


def per_class_table(results: Mapping, task: Task) -> str:
    """The classes of one task and their figures, with mean and standard deviation."""
    found = results[task.name]
    rows = [[name, f"{value:.3f}"] for name, value in found["per_class"].items()]
    rows.append(["mean ± std", f"{found[task.metric]:.3f} ± {found['std']:.3f}"])
    return tabulate(rows, headers=["class", task.name], tablefmt="pipe", disable_numparse=True)


def log_results(results: Mapping, tasks: Sequence[Task], who: str) -> None:
    """Print the figures of the student or the teacher."""
    figures = {task.metric: results[task.name][task.metric] for task in tasks}
    figures["geometric mean"] = results["geometric_mean"]
    logger.info("Evaluation of the %s:\n%s", who, create_small_table(figures))
    for task in tasks:
        logger.info("%s of the %s:\n%s", task.name, who, per_class_table(results, task))
