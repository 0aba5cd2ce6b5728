"""Every figure of a study as one long table: ours, run by run, and those of its paper.csv."""

import ast
import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..tasks import TASK_REGISTRY
from ..utils.errors import InputError
from .plan import Run, Study, Value
from .state import results_of

OURS, PAPER = "ours", "paper"
PAPER_FILE = "paper.csv"
SUBSETS_FILE = "label_subsets.json"  # by train_net.py, when it starts
OVERLAP, STUDENT = "overlap", "student"
SEED = "seed"  # the factor that figures are averaged over


KINDS = {kind.default_name: kind for _, kind in TASK_REGISTRY}


@dataclass(frozen=True)
class Figure:
    """One number.

    Attributes:
        source: "ours" or "paper".
        factors: of the run, or of the paper's experiment.
        metric: <task>/<metric>, "geometric_mean" or "overlap"; of a student "student/..." before.
        value: as it was measured.
        class_name: where it is the figure of one class.
        table: of the paper, where it stands there.
        run: name of the run, where it is ours.
    """

    source: str
    factors: Mapping[str, Value]
    metric: str
    value: float
    class_name: str = ""
    table: str = ""
    run: str = ""


def tasks_of(run: Run) -> list[str]:
    """The tasks that a run trains; all of them if it does not say."""
    pairs = dict(zip(run.overrides[::2], run.overrides[1::2], strict=True))
    tasks = pairs.get("MODEL.TASKS")
    return list(ast.literal_eval(tasks)) if tasks else list(KINDS)


def task_of(metric: str) -> str:
    """The task that a metric belongs to."""
    return metric.removeprefix(f"{STUDENT}/").split("/")[0]


def main_metric(task: str) -> str:
    """The metric that counts for a task."""
    if task not in KINDS:
        raise InputError(f"there is no task {task!r}, expected one of {sorted(KINDS)}")
    return f"{task}/{KINDS[task].metric}"


def class_metric(task: str) -> str:
    """The same for one class: mAP is the mean of the classes' AP."""
    return f"{task}/{main_metric(task).split('/')[1].removeprefix('m')}"


def our_figures(run: Run) -> list[Figure]:
    """What a run has measured; nothing if it is not done, but for the overlap of its labels."""
    named = _named(results_of(run)) | {(OVERLAP, ""): overlap_of(run)}
    for (metric, class_name), value in _named(results_of(run, STUDENT)).items():
        named[f"{STUDENT}/{metric}", class_name] = value
    return [
        Figure(OURS, run.factors, metric, value, class_name, run=run.name)
        for (metric, class_name), value in named.items()
        if value is not None
    ]


def _named(results: Mapping) -> dict[tuple[str, str], float | None]:
    named = {("geometric_mean", ""): results.get("geometric_mean")}
    for task in KINDS:
        if task in results:
            named |= _of_task(task, results[task])
    return named


def _of_task(task: str, found: Mapping) -> dict[tuple[str, str], float | None]:
    each = class_metric(task)
    named = {
        (main_metric(task), ""): found.get(KINDS[task].metric),
        (f"{each}_std", ""): found.get("std"),
    }
    named |= {(f"{task}/loss_{part}", ""): x for part, x in found.get("losses", {}).items()}
    return named | {(each, name): x for name, x in found.get("per_class", {}).items()}


def overlap_of(run: Run) -> int | None:
    """Training images that a run has with the labels of all its tasks, if there are several."""
    path = run.folder / SUBSETS_FILE
    if not path.is_file():
        return None
    try:
        labels = json.loads(path.read_text())["labels"].values()
        images = [set(label["images"]) for label in labels]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: it has no lists of images ({error!r})") from None
    return len(set.intersection(*images)) if len(images) > 1 else None


def paper_figures(study: Study) -> list[Figure]:
    """The figures of paper.csv beside study.yaml; none if there is no such file."""
    path = study.folder / PAPER_FILE
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return [_paper_figure(row, study.content["factors"], path) for row in csv.DictReader(file)]


def _paper_figure(row: Mapping[str, str], factors: Iterable[str], path: Path) -> Figure:
    try:
        return Figure(
            PAPER,
            {name: _value(row[name]) for name in factors if row.get(name)},
            row["metric"],
            float(row["value"]),
            row["class"],
            row["table"],
        )
    except (KeyError, ValueError) as error:
        raise InputError(f"{path}: {dict(row)} is no figure ({error!r})") from None


def _value(text: str) -> Value:
    return int(text) if text.isdigit() else text


def write_figures(figures: Sequence[Figure], factors: Sequence[str], path: Path) -> None:
    """Write the long table, a line for each figure."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["source", "table", "run", *factors, "metric", "class", "value"])
        for f in figures:
            values = [f.factors.get(name, "") for name in factors]
            writer.writerow(
                [f.source, f.table, f.run, *values, f.metric, f.class_name, f"{f.value:.6g}"]
            )
