"""Evaluation of all tasks in one pass: metrics, geometric mean, tables (paper Sec. 4)."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import numpy as np
import torch
from detectron2.evaluation import DatasetEvaluators, inference_on_dataset
from detectron2.evaluation.evaluator import inference_context
from detectron2.evaluation.testing import flatten_results_dict, print_csv_format
from detectron2.utils import comm
from detectron2.utils.logger import create_small_table
from tabulate import tabulate
from torch import Tensor, nn

from ..modeling import MultiTaskNet
from ..runtime.worker_watch import WatchedLoader
from ..tasks import Task

logger = logging.getLogger(__name__)

DETECTRON2 = "/detectron2/"  # part of the flat keys of Detectron2's figures


class _TaskEvaluators(DatasetEvaluators):
    """The evaluators of all tasks; results are by name of the task."""

    def __init__(self, evaluators: Mapping[str, object]):
        super().__init__(list(evaluators.values()))
        self._names = list(evaluators)

    def evaluate(self) -> dict | None:
        comm.synchronize()  # ranks that finish early wait here, where RankWatch sees them
        results = {}
        for name, evaluator in zip(self._names, self._evaluators, strict=True):
            logger.info("Computing the metrics of %s", name)
            results[name] = evaluator.evaluate()
        return results if comm.is_main_process() else None


def geometric_mean(values: Sequence[float]) -> float:
    """Return the geometric mean of metrics in [0, 1], nan if one of them is nan."""
    return math.prod(values) ** (1 / len(values))


def evaluate(
    model: nn.Module,
    loader: WatchedLoader,
    records: Sequence[dict],
    tasks: Sequence[Task],
    callbacks: Mapping[str, Callable[[], None]] | None = None,
    precision: torch.dtype = torch.float32,
) -> dict:
    """Evaluate a model on whole images, in a single pass.

    Args:
        model: a MultiTaskNet; its mode is restored.
        loader: loader of whole images, split over the ranks.
        records: records of all images; a task is evaluated on those labeled for it.
        tasks: tasks to evaluate, each with a label in the records.
        callbacks: hooks around batches, see Detectron2's `inference_on_dataset`.
        precision: data type of the forward passes of a MultiTaskNet.

    Returns:
        {task: {metric: value, "per_class": {name: value}, "std": value, "detectron2": {name:
        value}}, "geometric_mean": value} on the main process, {} on others; all values but "std"
        are in [0, 1], those of "detectron2" in [0, 100]. "std" is the standard deviation over the
        classes, the population's as in the paper (Tables 5, 6, 8, 9).
    """
    evaluators = _TaskEvaluators({task.name: task.evaluator(records) for task in tasks})
    run: Callable = model
    mixed: AbstractContextManager = nullcontext()
    if isinstance(model, MultiTaskNet):
        run, mixed = partial(model.inference, for_evaluators=True), model.autocast(precision)
    with torch.no_grad(), inference_context(model), mixed:
        results = inference_on_dataset(run, loader, evaluators, callbacks)
    if not results:
        return {}
    for metrics in results.values():
        if "per_class" in metrics:
            values = [x for x in metrics["per_class"].values() if not math.isnan(x)]
            metrics["std"] = float(np.std(values)) if values else math.nan
    primary = [results[task.name][task.metric] for task in tasks]
    return {**results, "geometric_mean": geometric_mean(primary)}


@torch.no_grad()
def evaluate_losses(
    model: MultiTaskNet,
    loader: WatchedLoader,
    records: Sequence[dict],
    tasks: Sequence[Task],
    num_images: int,
    precision: torch.dtype = torch.float32,
) -> dict[str, dict[str, dict[str, float]]]:
    """Compute the supervised losses on whole images in evaluation mode (paper Table 7).

    The paper does not say what its losses are means over. A segmentation loss of .0253 at an mIoU
    of .61 is too low for a mean over pixels; 11 times that, for the share of BDD100K's validation
    images with maps, is not. So the second mean counts an unlabeled image as 0.

    Args:
        model: as that of `evaluate`, like the next three.
        loader: loader of whole images.
        records: records of all these images.
        tasks: tasks with a loss.
        num_images: number of all images of DATASETS.TEST, labeled or not.
        precision: as that of `evaluate`.

    Returns:
        On all processes, {task: {"losses": {loss part: mean over the positive anchors or valid
        pixels of all images}, "image_losses": {loss part: mean over `num_images`, where the loss of
        an image is its mean over these elements, or its sum without any}}}.
    """
    by_id = {record["image_id"]: record for record in records}
    names = {task.name: ["count", *task.loss_parts] for task in tasks}
    sums, means = ({x: dict.fromkeys(names[x], 0.0) for x in names} for _ in range(2))
    training = model.training
    model.eval()
    for (inputs,) in loader:
        record = by_id[inputs["image_id"]]
        image_losses = _image_losses(model, inputs["image"], record, tasks, precision)
        for name, losses in image_losses.items():
            for part, value in losses.items():
                sums[name][part] += value
                means[name][part] += value / max(losses["count"], 1.0)
    model.train(training)
    all_sums, all_means = comm.all_gather(sums), comm.all_gather(means)
    results = {}
    for task in tasks:
        total = {part: sum(x[task.name][part] for x in all_sums) for part in names[task.name]}
        of_images = {p: sum(x[task.name][p] for x in all_means) for p in task.loss_parts}
        results[task.name] = {
            "losses": {part: total[part] / max(total["count"], 1) for part in task.loss_parts},
            "image_losses": {part: of_images[part] / num_images for part in task.loss_parts},
        }
    return results


def _image_losses(
    model: MultiTaskNet,
    image: Tensor,
    record: dict,
    tasks: Sequence[Task],
    precision: torch.dtype = torch.float32,
) -> dict[str, dict[str, float]]:
    """Return for each labeled task the summed loss parts and the "count" of elements."""
    divisor = model.backbone.size_divisibility
    height, width = image.shape[1:]
    size = (-(-height // divisor) * divisor, -(-width // divisor) * divisor)
    # Pad with the mean, as inference does: normalization makes it 0.
    padded = (model.pixel_mean / 255).repeat(1, *size)[None]
    padded[0, :, :height, :width] = image.to(model.device) / 255
    labeled = [task for task in tasks if task.label_key in record]
    with model.autocast(precision):
        outputs, _ = model(padded, {task.name: [True] for task in labeled})
    sums = {}
    for task in labeled:
        # The warp makes the padding ignored, because it is outside the label.
        target = task.warp_target(task.load_target(record), torch.eye(3), size)
        head = model.head(task.name)
        assigned = head.assign([target], [False], size)
        losses = head.losses(outputs[task.name], assigned, size, padded.new_ones(1))
        sums[task.name] = {part: float(value) for part, value in losses.items()}
        sums[task.name]["count"] = float(assigned[0].count)
    return sums


def flat_results(results: Mapping, prefix: str) -> dict[str, float]:
    """Return results by key, such as teacher/detection/per_class/car, without nan.

    Of Detectron2's figures it returns the means only: "per_class" has those of the classes.
    """
    flat = flatten_results_dict({prefix: results})
    means = {key: value for key, value in flat.items() if "-" not in key.partition(DETECTRON2)[2]}
    return {key: value for key, value in means.items() if not math.isnan(value)}


def mean_name(results: Mapping, tasks: Sequence[Task]) -> str:
    """Name the geometric mean, with the tasks that it is over unless these are all."""
    evaluated = evaluated_tasks(results, tasks)
    names = ", ".join(task.name for task in evaluated)
    return "geometric mean" + (f" of {names} alone" if len(evaluated) < len(tasks) else "")


def evaluated_tasks(results: Mapping, tasks: Sequence[Task]) -> list[Task]:
    """Return the tasks that have results: those with a label in DATASETS.TEST."""
    return [task for task in tasks if task.name in results]


def class_notes(results: Mapping, tasks: Sequence[Task]) -> list[str]:
    """Return a line for each metric that is a mean over fewer classes than its task has."""
    evaluated = evaluated_tasks(results, tasks)
    notes = [
        class_note(metric, results[task.name])
        for task, metric in zip(evaluated, metric_names(evaluated), strict=True)
    ]
    return [note for note in notes if note]


def class_note(metric: str, figures: Mapping) -> str:
    """Say that a metric in the figures of a task, maybe from JSON, is over fewer classes, or ""."""
    per_class = figures.get("per_class") or {}
    absent = [name for name, value in per_class.items() if value is None or math.isnan(value)]
    if not absent:
        return ""
    count = f"{len(per_class) - len(absent)} of {len(per_class)} classes"
    verb = "occurs" if len(absent) == 1 else "occur"
    where = f"{', '.join(absent)} never {verb} in DATASETS.TEST"
    return f"{metric} is a mean over {count}: {where}"


def per_class_table(results: Mapping, task: Task) -> str:
    """Return a table of one task's metric: of each class, if it has classes, and the mean."""
    metrics = results[task.name]
    rows = [[name, f"{value:.3f}"] for name, value in metrics.get("per_class", {}).items()]
    spread = f" ± {metrics['std']:.3f}" if rows else ""
    name = "mean ± std" if rows else task.metric
    rows.append([name, f"{metrics[task.metric]:.3f}{spread}"])
    header = "class" if spread else "metric"
    return tabulate(rows, headers=[header, task.name], tablefmt="pipe", disable_numparse=True)


def detectron2_table(results: Mapping, task: Task) -> str:
    """Return a table of one task's means by Detectron2's evaluator; "" if it has none."""
    figures = results[task.name].get("detectron2", {})
    # In Detectron2's names, a hyphen is before the name of a class.
    means = {name: value for name, value in figures.items() if "-" not in name}
    return create_small_table(means) if means else ""


def metric_names(tasks: Sequence[Task]) -> list[str]:
    """Return the name of each task's metric, after the task's name if tasks share it."""
    metrics = [task.metric for task in tasks]
    return [t.metric if metrics.count(t.metric) == 1 else f"{t.name} {t.metric}" for t in tasks]


def log_results(results: Mapping, tasks: Sequence[Task], network: str) -> None:
    """Log the results of the student or the teacher, of each evaluated task and class."""
    evaluated = evaluated_tasks(results, tasks)
    values = [results[task.name][task.metric] for task in evaluated]
    table = dict(zip(metric_names(evaluated), values, strict=True))
    table[mean_name(results, tasks)] = results["geometric_mean"]
    text = "\n".join([create_small_table(table), *class_notes(results, tasks)])
    logger.info("Evaluation of the %s:\n%s", network, text)
    for task in evaluated:
        logger.info("%s of the %s:\n%s", task.name, network, per_class_table(results, task))
        if figures := results[task.name].get("detectron2"):
            print_csv_format({f"{network}/{task.name}": figures})
