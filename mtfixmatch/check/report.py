"""The findings of a data check as Markdown."""

from collections.abc import Iterable, Sequence
from typing import Any

from tabulate import tabulate

from ..tasks import Task
from .findings import SHEET, Findings, Side

MOST_SIZES = 10  # image sizes that are listed


def check_report(found: Findings, said: Sequence[str]) -> str:
    """The report of a check, ready for a file and for a terminal.

    Args:
        found: by the check.
        said: warnings of the readers.
    """
    parts = [
        "# Data check",
        _list(f"error: {text}" for text in found.errors),
        _list(f"warning: {text}" for text in found.warnings),
        f"Of {sum(side.images for side in found.sides)} images {found.decoded} were decoded.",
        "## Images and labels\n\n" + _labels(found),
        "## A batch\n\n" + _batch(found) if found.pools else "",
        *(_classes(found.sides, task) for task in found.tasks),
        _missing(found),
        "## Image sizes\n\n" + _sizes(found.sides),
        "## The readers ignored\n\n" + _ignored(found) if any(found.ignored.values()) else "",
        "## The readers said\n\n" + _list(said) if said else "",
        f"## Samples\n\n![samples as the training draws them]({SHEET})",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _table(rows: Iterable[Sequence[Any]], headers: Sequence[str]) -> str:
    # Shown as given: tabulate would write sizes and shares anew.
    right = ("left", *["right"] * (len(headers) - 1))
    return tabulate(rows, headers, tablefmt="pipe", disable_numparse=True, colalign=right)


def _list(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _labels(found: Findings) -> str:
    rows: list[list] = [["images", *(side.images for side in found.sides)]]
    for task in found.tasks:
        key = task.label_key
        rows.append([f"labeled for {task.name}", *(side.labels[key] for side in found.sides)])
        if any(side.hidden[key] for side in found.sides):
            rows.append(
                [f"label hidden for {task.name}", *(side.hidden[key] for side in found.sides)]
            )
    for key, text in (("all", "labeled for all tasks"), ("none", "labeled for no task")):
        rows.append([text, *(side.labels[key] for side in found.sides)])
    return _table(rows, ["", *(f"{s.name}: {', '.join(s.datasets)}" for s in found.sides)])


def _batch(found: Findings) -> str:
    keys = [task.label_key for task in found.tasks]
    rows = [
        [
            pool.name,
            pool.per_batch,
            len(pool.indices),
            f"{len(pool.indices) / pool.per_batch:.1f}",
            *(counts[key] for key in [*keys, "none"]),
        ]
        for pool, counts in found.pools
    ]
    tasks = [f"labeled for {task.name}" for task in found.tasks]
    headers = ["drawn from", "in a batch", "images", "steps for all", *tasks, "for no task"]
    return _table(rows, headers)


def _classes(sides: Sequence[Side], task: Task) -> str:
    statistics = [side.statistics[task.name] for side in sides]
    rows: list[list] = []
    for name in task.class_names:
        row: list = [name]
        for found in statistics:
            total = sum(found.counts.values())
            row += [found.counts[name], f"{100 * found.counts[name] / max(total, 1):.2f}"]
        rows.append(row)
    rows.append(["all", *(x for s in statistics for x in (sum(s.counts.values()), ""))])
    headers = ["class", *(text for side in sides for text in (side.name, "%"))]
    figures = [
        [name, *(found.figures.get(name, "") for found in statistics)]
        for name in dict.fromkeys(name for found in statistics for name in found.figures)
    ]
    return "\n\n".join(
        [
            f"## {task.name.capitalize()}: {task.counted} of each class",
            _table(rows, headers),
            _table(figures, ["", *(side.name for side in sides)]),
        ]
    )


def _missing(found: Findings) -> str:
    lines = []
    for side in found.sides:
        names = [
            f"{name} ({task})"
            for task, statistics in side.statistics.items()
            for name, count in statistics.counts.items()
            if not count
        ]
        if names:
            lines.append(f"never occurs in {side.name}: {', '.join(names)}")
    return _list(lines)


def _sizes(sides: Sequence[Side]) -> str:
    total = sum((side.sizes for side in sides), start=type(sides[0].sizes)())
    rows = [
        [f"{width} x {height}", *(side.sizes[width, height] for side in sides)]
        for (width, height), _ in total.most_common(MOST_SIZES)
    ]
    rows.append([f"all (sizes: {len(total)})", *(side.images for side in sides)])
    return _table(rows, ["width x height", *(side.name for side in sides)])


def _ignored(found: Findings) -> str:
    reasons = dict.fromkeys(reason for counts in found.ignored.values() for reason in counts)
    rows = [[reason, *(counts[reason] for counts in found.ignored.values())] for reason in reasons]
    return _table(rows, ["", *found.ignored])
