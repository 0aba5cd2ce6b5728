"""Evaluation of all tasks in one pass: geometric mean and per-class tables (paper Sec. 4)."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from detectron2.evaluation import DatasetEvaluators, inference_on_dataset
from detectron2.utils import comm
from detectron2.utils.logger import create_small_table
from tabulate import tabulate
from torch import Tensor, nn

from ..modeling import MultiTaskNet
from ..runtime.worker_watch import WatchedLoader
from ..tasks import Task

logger = logging.getLogger(__name__)


class _Named(DatasetEvaluators):
    """Several evaluators whose results are stored by the name of their task."""

    def __init__(self, evaluators: Mapping[str, object]):
        super().__init__(list(evaluators.values()))
        self._names = list(evaluators)

    def evaluate(self) -> dict | None:
        comm.synchronize()  # ranks that finish early wait here, where RankWatch sees them
        results = [evaluator.evaluate() for evaluator in self._evaluators]
        return None if results[0] is None else dict(zip(self._names, results, strict=True))


def geometric_mean(values: Sequence[float]) -> float:
    """Return the geometric mean of metrics in [0, 1]; nan if one is nan."""
    return math.prod(values) ** (1 / len(values))


def evaluate(
    model: nn.Module,
    loader: WatchedLoader,
    records: Sequence[dict],
    tasks: Sequence[Task],
    callbacks: Mapping[str, Callable[[], None]] | None = None,
) -> dict:
    """Evaluate a model on whole images, in a single pass.

    Args:
        model: a MultiTaskNet; its mode is restored.
        loader: of the images, split over the ranks.
        records: of all images; a task is measured on those labeled for it.
        tasks: to evaluate.
        callbacks: see Detectron2's `inference_on_dataset`.

    Returns:
        {task: {metric: value, "per_class": {name: value}, "mean", "std"}, "geometric_mean": value}
        on the main process, {} on others.
    """
    evaluators = _Named({task.name: task.evaluator(records) for task in tasks})
    with torch.no_grad():
        results = inference_on_dataset(model, loader, evaluators, callbacks)
    if not results:
        return {}
    for figures in results.values():
        if "per_class" in figures:
            values = [x for x in figures["per_class"].values() if not math.isnan(x)]
            figures["std"] = float(np.std(values)) if values else math.nan
    metrics = [results[task.name][task.metric] for task in tasks]
    return {**results, "geometric_mean": geometric_mean(metrics)}


@torch.no_grad()
def evaluate_losses(
    model: MultiTaskNet, loader: WatchedLoader, records: Sequence[dict], tasks: Sequence[Task]
) -> dict[str, dict[str, float]]:
    """Compute the supervised losses on whole images (Table 7), with the model in evaluation mode.

    Args:
        model: a MultiTaskNet; its mode is restored.
        loader: see `evaluate`.
        records: see `evaluate`.
        tasks: see `evaluate`.

    Returns:
        {task: {part: mean over the elements of all images}} on all processes; elements are those
        of the training loss: positive anchors, valid pixels.
    """
    by_id = {record["image_id"]: record for record in records}
    names = {task.name: ["count", *task.loss_parts] for task in tasks}
    sums = {name: dict.fromkeys(parts, 0.0) for name, parts in names.items()}
    training = model.training
    model.eval()
    for (inputs,) in loader:
        record = by_id[inputs["image_id"]]
        for name, found in _image_losses(model, inputs["image"], record, tasks).items():
            for part, value in found.items():
                sums[name][part] += value
    model.train(training)
    everywhere = comm.all_gather(sums)
    means = {}
    for task in tasks:
        total = {p: sum(found[task.name][p] for found in everywhere) for p in names[task.name]}
        means[task.name] = {part: total[part] / total["count"] for part in task.loss_parts}
    return means


def _image_losses(
    model: MultiTaskNet, image: Tensor, record: dict, tasks: Sequence[Task]
) -> dict[str, dict[str, float]]:
    """Return by labeled task each part of the loss, summed, and the count of elements."""
    divisor = model.backbone.size_divisibility
    height, width = image.shape[1:]
    size = (-(-height // divisor) * divisor, -(-width // divisor) * divisor)
    # Padding as in inference: normalization turns the mean into 0.
    padded = (model.pixel_mean / 255).repeat(1, *size)[None]
    padded[0, :, :height, :width] = image.to(model.device) / 255
    labeled = [task for task in tasks if task.label_key in record]
    outputs, _ = model(padded, {task.name: [True] for task in labeled})
    sums = {}
    for task in labeled:
        # Padding becomes ignored, because nothing of the image is moved there.
        target = task.warp_target(task.load_target(record), torch.eye(3), size)
        head = model.head(task.name)
        assigned = head.assign([target], [False], size)
        losses = head.losses(outputs[task.name], assigned, size)
        sums[task.name] = {part: float(value) for part, value in losses.items()}
        sums[task.name]["count"] = float(assigned[0].count)
    return sums


def flat_results(results: Mapping, prefix: str) -> dict[str, float]:
    """Return results by names such as teacher/detection/per_class/car, without nan."""
    flat: dict[str, float] = {}
    for key, value in results.items():
        if isinstance(value, Mapping):
            flat |= flat_results(value, f"{prefix}/{key}")
        elif not math.isnan(value):
            flat[f"{prefix}/{key}"] = value
    return flat


def per_class_table(results: Mapping, task: Task) -> str:
    """Return the figures of one task: of each class, if it has some, and their mean."""
    figures = results[task.name]
    rows = [[name, f"{value:.3f}"] for name, value in figures.get("per_class", {}).items()]
    spread = f" ± {figures['std']:.3f}" if rows else ""
    name = "mean ± std" if rows else task.metric
    rows.append([name, f"{figures[task.metric]:.3f}{spread}"])
    header = "class" if spread else "metric"
    return tabulate(rows, headers=[header, task.name], tablefmt="pipe", disable_numparse=True)


def metric_names(tasks: Sequence[Task]) -> list[str]:
    """Return the metric of each task, with the task's name where several have the same."""
    metrics = [task.metric for task in tasks]
    return [t.metric if metrics.count(t.metric) == 1 else f"{t.name} {t.metric}" for t in tasks]


def log_results(results: Mapping, tasks: Sequence[Task], network: str) -> None:
    """Log the figures of the student or the teacher."""
    values = [results[task.name][task.metric] for task in tasks]
    figures = dict(zip(metric_names(tasks), values, strict=True))
    figures["geometric mean"] = results["geometric_mean"]
    logger.info("Evaluation of the %s:\n%s", network, create_small_table(figures))
    for task in tasks:
        logger.info("%s of the %s:\n%s", task.name, network, per_class_table(results, task))
