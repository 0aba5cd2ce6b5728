"""What study.yaml says of its report: tables and the blocks that they consist of."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..utils.errors import InputError
from .figures import Figure, class_metric, main_metric, task_of
from .plan import STUDY_FILE, Study, Value

Key = tuple[str, str]  # metric, class ("" for none)
Filter = list[dict[str, list[Value]]]  # any of these; a mapping asks for all its factors

BLOCK_KEYS = {"where", "rows", "columns", "metrics", "overlap_of", "baseline"}
TABLE_KEYS = BLOCK_KEYS | {"table", "caption", "blocks"}
CLASS_KEYS = {"table", "caption", "where", "rows", "task"}


@dataclass(frozen=True)
class BlockLayout:
    """A part of a table in which figures compete.

    Attributes:
        title: of the block, "" where a table has only one.
        where: the runs that belong to it.
        rows: factors that name a row.
        columns: factors that name a column; none: the figures are the columns.
        keys: the figures.
        overlap_of: images that label subsets were drawn from at random; 0: they were not.
        baseline: the row that the others are compared with seed by seed; none: they are not.
    """

    title: str
    where: Filter
    rows: list[str]
    columns: list[str]
    keys: list[Key]
    overlap_of: int = 0
    baseline: tuple[Value, ...] = ()


@dataclass(frozen=True)
class TableLayout:
    """A table.

    Attributes:
        name: number of the table, in the paper if there is one.
        caption: what it shows.
        blocks: its parts.
        per_class: its figures are those of the classes of one task.
    """

    name: str
    caption: str
    blocks: list[BlockLayout]
    per_class: bool = False


def matches(factors: Mapping[str, Value], where: Filter) -> bool:
    """Whether factors have the values that a filter asks for."""
    return not where or any(
        all(factors.get(name) in values for name, values in wanted.items()) for wanted in where
    )


def read_layout(study: Study, figures: Sequence[Figure]) -> list[TableLayout]:
    """The tables of a study, those of its classes after the others.

    Args:
        study: with the keys of the report.
        figures: all there are, in which the classes are found.

    Raises:
        InputError: for a key that is missing, unknown or names no factor.
    """
    found = []
    for index, entry in enumerate(study.content.get("tables") or []):
        where = f"{study.folder / STUDY_FILE}: tables[{index}]"
        _check_keys(entry, TABLE_KEYS, {"table", "rows"}, where)
        blocks = _blocks(entry, study, where)
        found.append(TableLayout(str(entry["table"]), entry.get("caption", ""), blocks))
    for index, entry in enumerate(study.content.get("per_class") or []):
        where = f"{study.folder / STUDY_FILE}: per_class[{index}]"
        _check_keys(entry, CLASS_KEYS, {"table", "rows", "task"}, where)
        block = _block("", {**entry, "metrics": []}, study, where)
        block.keys.extend(_class_keys(entry["task"], figures))
        table = TableLayout(str(entry["table"]), entry.get("caption", ""), [block], per_class=True)
        found.append(table)
    return found


def _class_keys(task: str, figures: Iterable[Figure]) -> list[Key]:
    each = class_metric(task)
    classes = dict.fromkeys(f.class_name for f in figures if f.metric == each)
    return [*((each, name) for name in classes), (main_metric(task), ""), (f"{each}_std", "")]


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
    used = {*rows, *columns, *(name for wanted in selection for name in wanted)}
    unknown = sorted(used - set(study.content["factors"]))
    if unknown:
        raise InputError(f"{where}: {unknown[0]!r} is no factor of the study")
    keys = [(metric, "") for metric in entry["metrics"]]
    for metric, _ in keys:
        main_metric(task_of(metric))  # it knows the tasks
    baseline = tuple(entry.get("baseline", ()))
    factors = [study.content["factors"][name] for name in rows]
    if baseline and not _is_row(baseline, factors):
        raise InputError(f"{where}.baseline: expected a value of each of {', '.join(rows)}")
    overlap_of = entry.get("overlap_of", 0)
    return BlockLayout(title, selection, rows, columns, keys, overlap_of, baseline)


def _is_row(values: Sequence[Value], factors: Sequence[Any]) -> bool:
    """Whether there is one for each factor, and one of its own where it names them."""
    pairs = zip(values, factors, strict=False)
    known = all(value in f for value, f in pairs if isinstance(f, Mapping))
    return len(values) == len(factors) and known


def read_filter(where: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> Filter:
    """A mapping or a list of them, {factor: value or list of values}."""
    return [
        {name: x if isinstance(x, list) else [x] for name, x in wanted.items()}
        for wanted in ([where] if isinstance(where, Mapping) else where)
    ]


def _check_keys(entry: Any, known: set[str], needed: set[str], where: str) -> None:
    if not isinstance(entry, Mapping):
        raise InputError(f"{where}: expected a mapping with {', '.join(sorted(known))}")
    missing, unknown = sorted(needed - set(entry)), sorted(set(entry) - known)
    if missing or unknown:
        raise InputError(f"{where}: missing keys {missing}, unknown keys {unknown}")
