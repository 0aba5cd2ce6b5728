"""All figures of a study as one long table: ours, run by run, and those of paper.csv."""

import ast
import csv
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from ..engine.report import parse_history
from ..engine.setup import resolve_config
from ..tasks import TASK_REGISTRY
from ..utils.errors import InputError
from .plan import Run, Study, Value
from .state import State, results_of, state_of

OURS, PAPER = "ours", "paper"
PAPER_FILE = "paper.csv"
HISTORY_FILE = "metrics.json"
DIAGNOSTIC = "[metric]"  # start of the diagnostics' names there
SUBSETS_FILE = "label_subsets.json"  # written by train_net.py when it starts
GEOMETRIC_MEAN, OVERLAP, STUDENT = "geometric_mean", "overlap", "student"
SEED = "seed"  # the factor that figures are averaged over


class Metric(NamedTuple):
    """What a figure measures."""

    name: str  # <task>/<metric>, GEOMETRIC_MEAN or OVERLAP; a student's starts with "student/"
    class_name: str = ""  # for the figure of one class


class Figure(NamedTuple):
    """One number."""

    source: str  # OURS or PAPER
    factors: Mapping[str, Value]  # of the run, or of the paper's experiment
    metric: Metric
    value: float  # not rounded
    table: str = ""  # number of the paper's table, for a figure of the paper
    run: str = ""  # name of the run, for one of ours
    remark: str = ""  # on a figure of the paper that is not to be compared with ours


class LabelLists(NamedTuple):
    """The training images of a run."""

    images: dict[str, set[str]]  # task -> ids of the images labeled for it
    num_images: int | None  # number of all images; None: not known


class StudyResults(NamedTuple):
    """Everything a report is made from."""

    runs: Sequence[Run]
    states: Mapping[str, State]  # by name of the run
    ours: Sequence[Figure]
    paper: Sequence[Figure]
    primary: Mapping[str, str]  # see `primary_metrics`


def collect_results(study: Study, runs: Sequence[Run]) -> StudyResults:
    """Read the states and figures of some runs, and the paper's figures."""
    primary = primary_metrics(study)
    states = {run.name: state_of(run) for run in runs}
    ours = [figure for run in runs for figure in our_figures(run, primary)]
    return StudyResults(runs, states, ours, paper_figures(study), primary)


def primary_metrics(study: Study) -> dict[str, str]:
    """Return the primary metric of each task of the config: {"detection": "detection/mAP"}."""
    tasks = {name.lower(): x for name, x in resolve_config(str(study.config), []).TASKS.items()}
    return {name: f"{name}/{TASK_REGISTRY.get(x.KIND).metric}" for name, x in tasks.items()}


def class_metric(primary: str) -> str:
    """Return the metric of one class: "detection/AP" for "detection/mAP", the mean over classes."""
    return primary.replace("/m", "/")


def task_of(metric: str) -> str:
    """Return the task that a metric belongs to."""
    return metric.removeprefix(f"{STUDENT}/").split("/")[0]


def tasks_of(run: Run, default: Iterable[str]) -> list[str]:
    """Return the tasks that a run trains: those of its overrides, or the default."""
    tasks = dict(zip(run.overrides[::2], run.overrides[1::2], strict=True)).get("MODEL.TASKS")
    return list(ast.literal_eval(tasks)) if tasks else list(default)


def our_figures(run: Run, primary: Mapping[str, str]) -> list[Figure]:
    """Return what a run measured; before it is done, at most the overlap of its labels."""
    values = _values(results_of(run), primary) | {Metric(OVERLAP): overlap_of(run)}
    values |= pseudo_label_figures(run)
    for (name, class_name), value in _values(results_of(run, STUDENT), primary).items():
        values[Metric(f"{STUDENT}/{name}", class_name)] = value
    return [
        Figure(OURS, run.factors, metric, value, run=run.name)
        for metric, value in values.items()
        if value is not None
    ]


def _values(results: Mapping, primary: Mapping[str, str]) -> dict[Metric, float | None]:
    """Name the figures of a network; a task without classes has neither "per_class" nor "std"."""
    values = {Metric(GEOMETRIC_MEAN): results.get(GEOMETRIC_MEAN)}
    for task, metric in primary.items():
        figures, per_class = results.get(task, {}), class_metric(metric)
        values[Metric(metric)] = figures.get(metric.split("/")[1])
        values[Metric(f"{per_class}_std")] = figures.get("std")
        for kind in ("loss", "image_loss"):
            for part, value in (figures.get(f"{kind}es") or {}).items():
                values[Metric(f"{task}/{kind}_{part}")] = value
        for name, value in (figures.get("per_class") or {}).items():
            values[Metric(per_class, name)] = value
    return values


def pseudo_label_figures(run: Run) -> dict[Metric, float]:
    """Return the means of the diagnostics of pseudo-labels over the last quarter of the steps."""
    if state_of(run).name != "done":
        return {}
    history = parse_history(run.read(HISTORY_FILE) or "")
    late = [x for x in history if x["iteration"] >= 0.75 * history[-1]["iteration"]]
    keys = sorted({key for line in late for key in line if key.startswith(DIAGNOSTIC)})
    return {
        Metric(key.removeprefix(DIAGNOSTIC)): fmean(line[key] for line in late if key in line)
        for key in keys
    }


def overlap_of(run: Run) -> int | None:
    """Count the training images with the labels of all tasks; None for a single task."""
    if (lists := label_lists(run)) is None or len(lists.images) < 2:
        return None
    return len(set.intersection(*lists.images.values()))


def label_lists(run: Run) -> LabelLists | None:
    """Read which training images of a run have labels; None before it has started."""
    if (text := run.read(SUBSETS_FILE)) is None:
        return None
    try:
        content = json.loads(text)
        images = {name: set(label["images"]) for name, label in content["labels"].items()}
        return LabelLists(images, content.get("num_images"))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{run.source}/{SUBSETS_FILE}: has no image lists ({error!r})") from None


def paper_figures(study: Study) -> list[Figure]:
    """Read the figures of paper.csv beside study.yaml; none without the file."""
    path = study.folder / PAPER_FILE
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return [_paper_figure(row, study.content["factors"], path) for row in csv.DictReader(file)]


def _paper_figure(row: Mapping[str, str], names: Iterable[str], path: Path) -> Figure:
    texts = {name: row[name] for name in names if row.get(name)}
    factors = {name: int(text) if text.isdigit() else text for name, text in texts.items()}
    try:
        metric, value = Metric(row["metric"], row["class"]), float(row["value"])
        return Figure(
            PAPER, factors, metric, value, table=row["table"], remark=row.get("remark") or ""
        )
    except (KeyError, ValueError) as error:
        raise InputError(f"{path}: {dict(row)} is no figure ({error!r})") from None


def write_figures(figures: Iterable[Figure], factors: Collection[str], path: Path) -> None:
    """Write the long table, one line per figure."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["source", "table", "run", *factors, "metric", "class", "value"])
        for f in figures:
            values = [f.factors.get(name, "") for name in factors]
            writer.writerow([f.source, f.table, f.run, *values, *f.metric, f"{f.value:.6g}"])
