"""The findings of a data check as Markdown."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from tabulate import tabulate

from ..engine.label_sets import LABEL_SETS
from ..tasks import Task
from .findings import NOTES, Findings, Split
from .sheet import SHEET

MAX_SIZES = 10  # listed image sizes


def check_report(findings: Findings, reader_warnings: Sequence[str]) -> str:
    """Return the report of a check as Markdown, for a file and for a terminal."""
    splits = findings.splits
    num_images = sum(split.images for split in splits)
    parts = [
        "# Data check",
        _list(f"error: {text}" for text in findings.errors),
        _list(f"warning: {text}" for text in findings.warnings),
        f"Of {num_images} images {findings.num_decoded} were decoded.",
        "## Images and labels\n\n" + _labels(findings),
        "## A batch\n\n" + _batch(findings) if findings.pools else "",
        *(_statistics(splits, task) for task in findings.tasks),
        _missing_classes(splits),
        "## Image sizes\n\n" + _sizes(splits),
        _ignored(findings.ignored),
        "## Warnings of the readers\n\n" + _list(reader_warnings) if reader_warnings else "",
        f"All cases are listed in [{NOTES}]({NOTES})." if findings.noted else "",
        f"## Samples\n\n![samples as the training draws them]({SHEET})",
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def _table(rows: Iterable[Sequence[Any]], headers: Sequence[str]) -> str:
    # Keep the cells as they are: tabulate would reformat numbers.
    align = ("left", *["right"] * (len(headers) - 1))
    return tabulate(rows, headers, tablefmt="pipe", disable_numparse=True, colalign=align)


def _list(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _labels(findings: Findings) -> str:
    splits = findings.splits
    rows: list[list] = [["images", *(x.images for x in splits)]]
    for task in findings.tasks:
        key = task.label_key
        rows.append([f"labeled for {task.name}", *(x.labels[key] for x in splits)])
        if any(x.hidden[key] for x in splits):
            rows.append([f"label hidden for {task.name}", *(x.hidden[key] for x in splits)])
    rows.append(["labeled for all tasks", *(x.labels["all"] for x in splits)])
    rows.append(["labeled for no task", *(x.labels["none"] for x in splits)])
    table = _table(rows, ["", *(f"{x.name}: {', '.join(x.datasets)}" for x in splits)])
    return f"{table}\n\n![which images are labeled for what]({LABEL_SETS})"


def _batch(findings: Findings) -> str:
    keys = [*(task.label_key for task in findings.tasks), "none"]
    rows: list[list] = []
    for (name, per_batch, indices), counts in findings.pools:
        steps = f"{len(indices) / per_batch:.1f}"
        rows.append([name, per_batch, len(indices), steps, *(counts[key] for key in keys)])
    tasks = [f"labeled for {task.name}" for task in findings.tasks]
    headers = ["drawn from", "in a batch", "images", "steps for all", *tasks, "for no task"]
    return _table(rows, headers)


def _statistics(splits: Sequence[Split], task: Task) -> str:
    """Return the label statistics of a task; the class table only if the task has classes."""
    heading = f"## {task.name.capitalize()}: {task.unit}"
    parts = [heading, _figures(splits, task)]
    if task.class_names:
        parts = [f"{heading} of each class", _classes(splits, task), parts[1]]
    return "\n\n".join(filter(None, parts))


def _classes(splits: Sequence[Split], task: Task) -> str:
    """Return the class table; with the images of each class, where some are not for all classes."""
    headers: list[str] = ["class"]
    columns: list[list] = [[*task.class_names, "all"]]
    for split in splits:
        statistics = split.statistics[task.name]
        numbers = [statistics.counts[name] for name in task.class_names]
        total = sum(numbers)
        headers += [split.name, "%"]
        columns += [[*numbers, total], [*(f"{100 * n / max(total, 1):.2f}" for n in numbers), ""]]
        if statistics.images:
            headers.append("labeled images")
            columns.append([*(statistics.images[name] for name in task.class_names), ""])
    return _table(zip(*columns, strict=True), headers)


def _figures(splits: Sequence[Split], task: Task) -> str:
    figures = [split.statistics[task.name].figures for split in splits]
    names = dict.fromkeys(name for x in figures for name in x)
    rows = [[name, *(x.get(name, "") for x in figures)] for name in names]
    return _table(rows, ["", *(split.name for split in splits)]) if rows else ""


def _missing_classes(splits: Sequence[Split]) -> str:
    lines = []
    for split in splits:
        counts = {task: x.counts for task, x in split.statistics.items()}
        names = [f"{name} ({task})" for task, x in counts.items() for name in x if not x[name]]
        if names:
            lines.append(f"never occurs in {split.name}: {', '.join(names)}")
    return _list(lines)


def _sizes(splits: Sequence[Split]) -> str:
    total = sum((split.sizes for split in splits), start=Counter())
    rows = [
        [f"{width} x {height}", *(split.sizes[width, height] for split in splits)]
        for (width, height), _ in total.most_common(MAX_SIZES)
    ]
    rows.append([f"all (sizes: {len(total)})", *(split.images for split in splits)])
    return _table(rows, ["width x height", *(split.name for split in splits)])


def _ignored(ignored: dict[str, Counter]) -> str:
    reasons = dict.fromkeys(reason for counts in ignored.values() for reason in counts)
    if not reasons:
        return ""
    rows = [[reason, *(counts[reason] for counts in ignored.values())] for reason in reasons]
    return "## Ignored by the readers\n\n" + _table(rows, ["", *ignored])
