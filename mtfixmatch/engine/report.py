"""The report of a finished training: results.json, curves.png, report.md."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from operator import attrgetter

import matplotlib
from detectron2.config import CfgNode
from tabulate import tabulate

from ..data.partial_labels import count_labels
from ..tasks import Task
from ..utils.files import write_atomically
from .evaluation import metric_names, per_class_table

matplotlib.use("Agg")

# What the report shows of the configuration; all of it is in config.yaml.
SHOWN_KEYS = (
    "MODEL.TASKS", "MODEL.BACKBONE.NAME", "MODEL.RESNETS.DEPTH", "MODEL.TIMM.NAME",
    "MODEL.TIMM.WEIGHTS", "MODEL.WEIGHTS", "DATASETS.TRAIN", "DATASETS.TEST",
    "DATASETS.LABEL_SUBSETS", "DATASETS.LABEL_SEED", "DATALOADER.SAMPLING", "DATALOADER.LABELED",
    "DATALOADER.LABELED_PER_BATCH", "FIXMATCH.METHOD", "FIXMATCH.UNSUPERVISED_ON",
    "FIXMATCH.RAMP_UP", "FIXMATCH.EMA_DECAY", "INPUT.TRAIN_SIZE", "SOLVER.IMS_PER_BATCH",
    "SOLVER.BASE_LR", "SOLVER.MAX_ITER", "SEED",
)  # fmt: skip


def write_json(data: Mapping, path: str) -> None:
    """Write figures as JSON; nan becomes null."""
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
    """Write the three files into OUTPUT_DIR; report.md shows the pictures that are there.

    Args:
        cfg: of the run.
        tasks: that were trained.
        records: of the training images.
        results: {"teacher": ..., "student": ...} of the last evaluation.
        broken: file -> what is wrong with it, for the images left out of the training.
    """
    folder = cfg.OUTPUT_DIR
    write_json(results, os.path.join(folder, "results.json"))
    history = read_history(os.path.join(folder, "metrics.json"))
    draw_curves(history, tasks, os.path.join(folder, "curves.png"))
    parts = [
        "# Report",
        "## Results\n\n" + _figures(results, tasks),
        "## Labels\n\n" + _labels(tasks, records),
        *(["## Broken files\n\n" + _broken(broken)] if broken else []),
        *(f"## {t.name.capitalize()}\n\n{per_class_table(results['teacher'], t)}" for t in tasks),
        "## Curves\n\n![curves](curves.png)",
        *_pictures(folder),
        "## Configuration\n\n" + _configuration(cfg),
    ]
    write_atomically(os.path.join(folder, "report.md"), "\n\n".join(parts) + "\n")


def _figures(results: Mapping[str, Mapping], tasks: Sequence[Task]) -> str:
    rows = [
        [network, *(figures[t.name][t.metric] for t in tasks), figures["geometric_mean"]]
        for network, figures in results.items()
    ]
    headers = ["", *metric_names(tasks), "geometric mean"]
    return tabulate(rows, headers=headers, tablefmt="pipe", floatfmt=".3f")


def _labels(tasks: Sequence[Task], records: Sequence[dict]) -> str:
    counts = count_labels(records, [task.label_key for task in tasks])
    names = {task.label_key: f"labeled for {task.name}" for task in tasks}
    rows = [["training images", len(records)]]
    rows += [[names.get(key, f"labeled for {key}"), count] for key, count in counts.items()]
    return tabulate(rows, headers=["", "images"], tablefmt="pipe")


def _broken(broken: Mapping[str, str]) -> str:
    lines = [f"- {broken[file]}" for file in sorted(broken)]
    return "\n".join([f"Left out of the training, {len(lines)} in all:\n", *lines])


def _configuration(cfg: CfgNode) -> str:
    names = [f"TASKS.{task.upper()}" for task in cfg.MODEL.TASKS]
    keys = [*SHOWN_KEYS, *(f"{x}.{key}" for x in names for key in attrgetter(x)(cfg))]
    rows = [[f"`{key}`", f"`{attrgetter(key)(cfg)}`"] for key in keys if "COLORS" not in key]
    return tabulate(rows, headers=["key", "value"], tablefmt="pipe")


def _pictures(folder: str) -> list[str]:
    names = ("predictions.png", "pseudo_labels.png")
    drawn = [name for name in names if os.path.isfile(os.path.join(folder, name))]
    return [f"## {name[:-4].replace('_', ' ').capitalize()}\n\n![]({name})" for name in drawn]


def read_history(path: str) -> list[dict]:
    """Read metrics.json: one dict of scalars for each time it was written."""
    if not os.path.isfile(path):
        return []
    with open(path) as file:
        return parse_history(file.read())


def parse_history(text: str) -> list[dict]:
    """Return the scalars in each line of the text of metrics.json."""
    return [json.loads(line) for line in text.splitlines() if line.strip()]


def training_seconds(history: list[dict]) -> float | None:
    """Compute the duration of all steps, without evaluations, from the lines of metrics.json.

    Each line has the median time of the steps since the line before. If a step was repeated, the
    last time counts.
    """
    times = {line["iteration"]: line["time"] for line in history if "time" in line}
    total, before = 0.0, -1
    for iteration, seconds in sorted(times.items()):
        total += seconds * (iteration - before)
        before = iteration
    return total or None


def draw_curves(history: Sequence[Mapping], tasks: Sequence[Task], path: str) -> None:
    """Plot losses, metrics and pseudo-label figures of each task over the steps."""
    from matplotlib import pyplot as plt

    kinds = [("loss_{}_", "loss"), ("teacher/{}/", "metric"), ("[metric]{}/", "pseudo-labels")]
    size = (15, 3.6 * len(tasks))
    figure, axes = plt.subplots(len(tasks), len(kinds), figsize=size, squeeze=False)
    for row, task in zip(axes, tasks, strict=True):
        for axis, (prefix, title) in zip(row, kinds, strict=True):
            _draw_axis(axis, history, prefix.format(task.name), f"{task.name}: {title}")
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    plt.close(figure)


def _draw_axis(axis, history: Sequence[Mapping], prefix: str, title: str) -> None:
    keys = sorted({key for line in history for key in line if key.startswith(prefix)})
    for key in [key for key in keys if "/per_class/" not in key]:
        points = [(line["iteration"], line[key]) for line in history if key in line]
        marker = "o" if len(points) < 30 else None
        axis.plot(*zip(*points, strict=True), label=key[len(prefix) :], marker=marker, markersize=3)
    axis.set_title(title)
    axis.set_xlabel("step")
    axis.grid(alpha=0.3)
    if keys:
        axis.legend(fontsize=7)
