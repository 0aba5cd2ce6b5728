"""The report of a finished training: results.json, curves.png, labels.png, report.md."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from operator import attrgetter
from pathlib import Path

import matplotlib
from detectron2.config import CfgNode
from tabulate import tabulate

from ..data.partial_labels import count_labels
from ..tasks import Task
from ..utils.files import write_atomically
from .evaluation import (
    DETECTRON2,
    class_notes,
    detectron2_table,
    evaluated_tasks,
    mean_name,
    metric_names,
    per_class_table,
)
from .label_sets import LABEL_SETS, draw_label_sets, label_sets
from .step import loss_name

matplotlib.use("Agg")

# Config keys that the report shows; config.yaml has all of them.
SHOWN_KEYS = (
    "MODEL.TASKS", "MODEL.BACKBONE.NAME", "MODEL.RESNETS.DEPTH", "MODEL.TIMM.NAME",
    "MODEL.TIMM.WEIGHTS", "MODEL.WEIGHTS", "DATASETS.TRAIN", "DATASETS.TEST",
    "DATASETS.LABEL_SUBSETS", "DATASETS.LABEL_SEED", "DATALOADER.SAMPLING", "DATALOADER.LABELED",
    "DATALOADER.LABELED_PER_BATCH", "FIXMATCH.METHOD", "FIXMATCH.UNSUPERVISED_ON",
    "FIXMATCH.RAMP_UP", "FIXMATCH.EMA_DECAY", "INPUT.TRAIN_SIZE", "SOLVER.IMS_PER_BATCH",
    "SOLVER.BASE_LR", "SOLVER.MAX_ITER", "SEED",
)  # fmt: skip


def write_json(data: Mapping, path: str) -> None:
    """Write a mapping as JSON; nan becomes null."""
    write_atomically(path, json.dumps(_without_nan(data), indent=2) + "\n")


def _without_nan(value):
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value


def write_report(
    cfg: CfgNode,
    tasks: Sequence[Task],
    records: Sequence[dict],
    results: Mapping[str, Mapping],
    broken: Mapping[str, str],
) -> None:
    """Write results.json, report.md, its pictures curves.png and labels.png into OUTPUT_DIR.

    `records` are those of the training images, `results` {"teacher": ..., "student": ...} of the
    last evaluation, {} without one; `broken` tells for each file left out of the training what is
    wrong with it. The report also shows the pictures that are there already.
    """
    folder = cfg.OUTPUT_DIR
    if results:
        write_json(results, os.path.join(folder, "results.json"))
    history = read_history(os.path.join(folder, "metrics.json"))
    draw_curves(history, tasks, os.path.join(folder, "curves.png"))
    labels = label_sets("training", records, {task.name: task.label_key for task in tasks})
    draw_label_sets([labels], os.path.join(folder, LABEL_SETS))
    parts = [
        "# Report",
        "## Results\n\n" + _results(results, tasks),
        f"## Labels\n\n{_label_table(tasks, records)}\n\n![labeled images]({LABEL_SETS})",
        *(["## Broken files\n\n" + _broken_list(broken)] if broken else []),
        *_task_tables(results.get("teacher", {}), tasks),
        "## Curves\n\n![curves](curves.png)",
        *_pictures(folder),
        "## Configuration\n\n" + _config_table(cfg),
    ]
    write_atomically(os.path.join(folder, "report.md"), "\n\n".join(parts) + "\n")


def _results(results: Mapping[str, Mapping], tasks: Sequence[Task]) -> str:
    """Return the table of the metrics, and what they are not over."""
    if not results:
        return "DATASETS.TEST is empty: there was no evaluation."
    teacher = results["teacher"]
    evaluated = evaluated_tasks(teacher, tasks)
    rows = [
        [network, *(figures[t.name][t.metric] for t in evaluated), figures["geometric_mean"]]
        for network, figures in results.items()
    ]
    headers = ["", *metric_names(evaluated), mean_name(teacher, tasks)]
    table = tabulate(rows, headers=headers, tablefmt="pipe", floatfmt=".3f")
    notes = [note for figures in results.values() for note in class_notes(figures, tasks)]
    missing = [task.name for task in tasks if task not in evaluated]
    if missing:
        notes.append(f"No image of DATASETS.TEST is labeled for {', '.join(missing)}")
    return "\n\n".join([table, *(f"{note}." for note in dict.fromkeys(notes))])


def _task_tables(results: Mapping, tasks: Sequence[Task]) -> list[str]:
    tables = []
    for task in evaluated_tasks(results, tasks):
        tables += [f"## {task.name.capitalize()}", per_class_table(results, task)]
        if table := detectron2_table(results, task):
            tables += ["Detectron2's figures, in percent:", table]
    return tables


def _label_table(tasks: Sequence[Task], records: Sequence[dict]) -> str:
    counts = count_labels(records, [task.label_key for task in tasks])
    names = {task.label_key: f"labeled for {task.name}" for task in tasks}
    rows = [["training images", len(records)]]
    rows += [[names.get(key, f"labeled for {key}"), count] for key, count in counts.items()]
    return tabulate(rows, headers=["", "images"], tablefmt="pipe")


def _broken_list(broken: Mapping[str, str]) -> str:
    lines = [f"- {broken[file]}" for file in sorted(broken)]
    return "\n".join([f"Left out of the training, {len(lines)} in all:\n", *lines])


def _config_table(cfg: CfgNode) -> str:
    names = [f"TASKS.{task.upper()}" for task in cfg.MODEL.TASKS]
    keys = [*SHOWN_KEYS, *(f"{x}.{key}" for x in names for key in attrgetter(x)(cfg))]
    rows = [[f"`{key}`", f"`{attrgetter(key)(cfg)}`"] for key in keys if "COLORS" not in key]
    return tabulate(rows, headers=["key", "value"], tablefmt="pipe")


def _pictures(folder: str) -> list[str]:
    names = ("predictions.png", "pseudo_labels.png")
    drawn = [name for name in names if os.path.isfile(os.path.join(folder, name))]
    return [f"## {name[:-4].replace('_', ' ').capitalize()}\n\n![]({name})" for name in drawn]


def read_history(path: str) -> list[dict]:
    """Read the lines of metrics.json, see `parse_history`; none without the file."""
    return parse_history(Path(path).read_text()) if os.path.isfile(path) else []


def parse_history(text: str) -> list[dict]:
    """Parse the text of metrics.json, one dict of scalars in each line."""
    return [json.loads(line) for line in text.splitlines() if line.strip()]


def training_seconds(history: list[dict]) -> float | None:
    """Return the duration of all steps in seconds, without evaluations; None without times.

    A line has the median time of the steps since the line before. If a step was repeated after a
    resume, its last time counts.
    """
    times = {line["iteration"]: line["time"] for line in history if "time" in line}
    total, previous = 0.0, -1
    for iteration, seconds in sorted(times.items()):
        total += seconds * (iteration - previous)
        previous = iteration
    return total or None


def draw_curves(history: Sequence[Mapping], tasks: Sequence[Task], path: str) -> None:
    """Plot losses, metrics and pseudo-label diagnostics of each task over the steps."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(len(tasks), 3, figsize=(15, 3.6 * len(tasks)), squeeze=False)
    for (losses, metrics, diagnostics), task in zip(axes, tasks, strict=True):
        _draw_axis(losses, history, loss_name(task, "", False), f"{task.name}: loss")
        _draw_axis(metrics, history, f"teacher/{task.name}/", f"{task.name}: metric")
        _draw_axis(diagnostics, history, f"[metric]{task.name}/", f"{task.name}: pseudo-labels")
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    plt.close(figure)


def _draw_axis(axis, history: Sequence[Mapping], prefix: str, title: str) -> None:
    """Plot the scalars whose keys start with a prefix, but none of a class or in percent."""
    keys = sorted({key for line in history for key in line if key.startswith(prefix)})
    for key in [key for key in keys if "/per_class/" not in key and DETECTRON2 not in key]:
        points = [(line["iteration"], line[key]) for line in history if key in line]
        marker = "o" if len(points) < 30 else None
        axis.plot(*zip(*points, strict=True), label=key[len(prefix) :], marker=marker, markersize=3)
    axis.set_title(title)
    axis.set_xlabel("step")
    axis.grid(alpha=0.3)
    if keys:
        axis.legend(fontsize=7)
