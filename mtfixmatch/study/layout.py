"""The layout of a report in study.yaml: its tables and the blocks that they consist of."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..utils.errors import InputError
from .figures import Metric, StudyResults, class_metric, task_of
from .plan import STUDY_FILE, Study, Value

Filter = list[dict[str, list[Value]]]  # one mapping must match, in all its factors

BLOCK_KEYS = {"where", "rows", "columns", "metrics", "overlap_of", "baseline"}
TABLE_KEYS = BLOCK_KEYS | {"table", "caption", "blocks"}
CLASS_KEYS = {"table", "caption", "where", "rows", "task"}


@dataclass(frozen=True)
class BlockLayout:
    """A part of a table; the best figures are marked within it.

    Attributes:
        title: of the block, "" if its table has only one.
        where: selects its runs.
        rows: factors that name a row.
        columns: factors that name a column; if empty, the metrics are the columns.
        metrics: to show.
        overlap_of: number of images that random label subsets are drawn from; 0 for other subsets.
        baseline: the row that the others are compared with seed by seed; empty for no comparison.
    """

    title: str
    where: Filter
    rows: list[str]
    columns: list[str]
    metrics: list[Metric]
    overlap_of: int = 0
    baseline: tuple[Value, ...] = ()


@dataclass(frozen=True)
class TableLayout:
    """A table of the report.

    Attributes:
        name: its number, in the paper if there is one.
        caption: what it shows.
        blocks: its parts.
        per_class: whether it shows the classes of one task.
    """

    name: str
    caption: str
    blocks: list[BlockLayout]
    per_class: bool = False


def matches(factors: Mapping[str, Value], where: Filter) -> bool:
    """Tell whether factors have the values that a filter asks for."""
    return not where or any(
        all(factors.get(name) in values for name, values in wanted.items()) for wanted in where
    )


def read_layout(study: Study, results: StudyResults) -> list[TableLayout]:
    """Read the tables of a study, those of its classes last.

    Args:
        study: with the keys of the report.
        results: name the tasks, their primary metrics and their classes.

    Raises:
        InputError: for a key that is missing, unknown, or names no factor or task.
    """
    tables = []
    for index, entry in enumerate(study.content.get("tables") or []):
        where = f"{study.folder / STUDY_FILE}: tables[{index}]"
        _check_keys(entry, TABLE_KEYS, {"table", "rows"}, where)
        blocks = _blocks(entry, study, where)
        _check_tasks((metric.name for block in blocks for metric in block.metrics), results, where)
        tables.append(TableLayout(str(entry["table"]), entry.get("caption", ""), blocks))
    for index, entry in enumerate(study.content.get("per_class") or []):
        where = f"{study.folder / STUDY_FILE}: per_class[{index}]"
        _check_keys(entry, CLASS_KEYS, {"table", "rows", "task"}, where)
        _check_tasks([entry["task"]], results, where)
        block = _block("", {**entry, "metrics": []}, study, where)
        block.metrics.extend(_class_metrics(results.primary[entry["task"]], results))
        table = TableLayout(str(entry["table"]), entry.get("caption", ""), [block], per_class=True)
        tables.append(table)
    return tables


def _check_tasks(metrics: Iterable[str], results: StudyResults, where: str) -> None:
    for task in map(task_of, metrics):
        if task not in results.primary:
            expected = ", ".join(sorted(results.primary))
            raise InputError(f"{where}: there is no task {task!r}, expected one of {expected}")


def _class_metrics(primary: str, results: StudyResults) -> list[Metric]:
    """Return the metric of each class in the figures, the mean and the standard deviation."""
    per_class = class_metric(primary)
    figures = [*results.paper, *results.ours]
    classes = dict.fromkeys(f.metric.class_name for f in figures if f.metric.name == per_class)
    of_classes = [Metric(per_class, name) for name in classes]
    return [*of_classes, Metric(primary), Metric(f"{per_class}_std")]


def _blocks(entry: Mapping[str, Any], study: Study, where: str) -> list[BlockLayout]:
    shared = {key: value for key, value in entry.items() if key in BLOCK_KEYS}
    blocks = entry.get("blocks") or {"": {}}
    for title, own in blocks.items():
        _check_keys(own, BLOCK_KEYS, set(), f"{where}.blocks.{title}")
    return [
        _block(str(title), shared | own, study, f"{where}.blocks.{title}" if title else where)
        for title, own in blocks.items()
    ]


def _block(title: str, entry: Mapping[str, Any], study: Study, where: str) -> BlockLayout:
    _check_keys(entry, TABLE_KEYS | CLASS_KEYS, {"metrics"}, where)
    rows, columns = list(entry["rows"]), list(entry.get("columns", []))
    selection = read_filter(entry.get("where", []))
    used = {*rows, *columns, *(name for factors in selection for name in factors)}
    unknown = sorted(used - set(study.content["factors"]))
    if unknown:
        raise InputError(f"{where}: {unknown[0]!r} is no factor of the study")
    metrics = [Metric(name) for name in entry["metrics"]]
    baseline = tuple(entry.get("baseline", ()))
    factors = [study.content["factors"][name] for name in rows]
    if baseline and not _is_row(baseline, factors):
        raise InputError(f"{where}.baseline: expected a value of each of {', '.join(rows)}")
    overlap_of = entry.get("overlap_of", 0)
    return BlockLayout(title, selection, rows, columns, metrics, overlap_of, baseline)


def _is_row(values: Sequence[Value], factors: Sequence[Any]) -> bool:
    """Tell whether each factor has a value, and a mapped factor one of its own."""
    return len(values) == len(factors) and all(
        value in factor
        for value, factor in zip(values, factors, strict=True)
        if isinstance(factor, Mapping)
    )


def read_filter(where: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> Filter:
    """Read {factor: value or list of values}, or a list of such mappings."""
    return [
        {name: x if isinstance(x, list) else [x] for name, x in factors.items()}
        for factors in ([where] if isinstance(where, Mapping) else where)
    ]


def _check_keys(entry: Any, known: set[str], needed: set[str], where: str) -> None:
    if not isinstance(entry, Mapping):
        raise InputError(f"{where}: expected a mapping with {', '.join(sorted(known))}")
    missing, unknown = sorted(needed - set(entry)), sorted(set(entry) - known)
    if missing or unknown:
        raise InputError(f"{where}: missing keys {missing}, unknown keys {unknown}")
