"""The layout of a report in study.yaml: its tables and the blocks that they consist of."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ..utils.errors import InputError
from .figures import Metric, StudyResults, class_metric, task_of
from .plan import STUDY_FILE, Study, Value, check_keys

Filter = list[dict[str, list[Value]]]  # one mapping must match, in all its factors

BLOCK_KEYS = {"where", "rows", "columns", "metrics", "overlap_of", "baseline"}
# Known and needed keys of the entries in each list of tables.
TABLE_KEYS = {
    "tables": (BLOCK_KEYS | {"table", "caption", "blocks"}, {"table", "rows"}),
    "per_class": ({"table", "caption", "where", "rows", "task"}, {"table", "rows", "task"}),
}


class BlockLayout(NamedTuple):
    """A part of a table; the best figures are marked within it."""

    title: str  # "" if its table has only one block
    where: Filter  # selects its runs
    rows: list[str]  # factors that name a row
    columns: list[str]  # factors that name a column; if empty, the metrics are the columns
    metrics: list[Metric]
    overlap_of: int  # images that random label subsets are drawn from; 0 for other subsets
    baseline: tuple[Value, ...]  # the row that others are compared with seed by seed, or empty


class TableLayout(NamedTuple):
    """A table of the report."""

    name: str  # its number, in the paper if there is one
    caption: str
    blocks: list[BlockLayout]
    per_class: bool  # whether it shows the classes of one task


def matches(factors: Mapping[str, Value], where: Filter) -> bool:
    """Tell whether factors have the values that a filter asks for."""
    return not where or any(
        all(factors.get(name) in values for name, values in wanted.items()) for wanted in where
    )


def read_layout(study: Study, results: StudyResults) -> list[TableLayout]:
    """Read the tables of a study, those of its classes last; raise InputError for a wrong key."""
    tables = []
    for kind, (known, needed) in TABLE_KEYS.items():
        for index, entry in enumerate(study.content.get(kind) or []):
            where = f"{study.folder / STUDY_FILE}: {kind}[{index}]"
            check_keys(entry, known, needed, where)
            if per_class := kind == "per_class":
                _check_tasks([entry["task"]], results, where)
                entry = {**entry, "metrics": _class_metrics(entry["task"], results)}
            blocks = _blocks(entry, study, where)
            _check_tasks((metric.name for x in blocks for metric in x.metrics), results, where)
            name, caption = str(entry["table"]), entry.get("caption", "")
            tables.append(TableLayout(name, caption, blocks, per_class))
    return tables


def _check_tasks(metrics: Iterable[str], results: StudyResults, where: str) -> None:
    for task in map(task_of, metrics):
        if task not in results.primary:
            raise InputError(f"{where}: there is no task {task!r}, only {sorted(results.primary)}")


def _class_metrics(task: str, results: StudyResults) -> list[Metric]:
    """Return the metric of each class in the figures, the mean and the standard deviation."""
    primary = results.primary[task]
    per_class = class_metric(primary)
    figures = [*results.paper, *results.ours]
    classes = dict.fromkeys(f.metric for f in figures if f.metric.name == per_class)
    return [*classes, Metric(primary), Metric(f"{per_class}_std")]


def _blocks(entry: Mapping[str, Any], study: Study, where: str) -> list[BlockLayout]:
    shared = {key: value for key, value in entry.items() if key in BLOCK_KEYS}
    blocks = []
    for title, own in (entry.get("blocks") or {"": {}}).items():
        place = f"{where}.blocks.{title}" if title else where
        check_keys(own, BLOCK_KEYS, (), place)
        blocks.append(_block(str(title), shared | own, study.content["factors"], place))
    return blocks


def _block(title: str, entry: Mapping[str, Any], factors: Mapping, where: str) -> BlockLayout:
    check_keys(entry, BLOCK_KEYS, {"metrics"}, where)
    rows, columns = list(entry["rows"]), list(entry.get("columns", []))
    selection = read_filter(entry.get("where", []))
    used = {*rows, *columns, *(name for wanted in selection for name in wanted)}
    if unknown := sorted(used - set(factors)):
        raise InputError(f"{where}: {unknown[0]!r} is no factor of the study")
    metrics = [Metric(x) if isinstance(x, str) else x for x in entry["metrics"]]
    baseline = tuple(entry.get("baseline", ()))
    # A mapped factor has the values that it maps; another one may have any.
    choices = [factors[name] if isinstance(factors[name], Mapping) else baseline for name in rows]
    fits = all(value in choice for value, choice in zip(baseline, choices, strict=False))
    if baseline and not (fits and len(baseline) == len(rows)):
        raise InputError(f"{where}.baseline: expected a value of each of {', '.join(rows)}")
    overlap_of = entry.get("overlap_of", 0)
    return BlockLayout(title, selection, rows, columns, metrics, overlap_of, baseline)


def read_filter(where: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> Filter:
    """Read {factor: value or list of values}, or a list of such mappings."""
    return [
        {name: x if isinstance(x, list) else [x] for name, x in factors.items()}
        for factors in ([where] if isinstance(where, Mapping) else where)
    ]
