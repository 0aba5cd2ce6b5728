"""The cells of a block: the runs and the paper's figure that belong into each, and the best."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev

from ..engine.evaluation import geometric_mean
from ..utils.errors import InputError
from .figures import KINDS, PAPER, SEED, Figure, main_metric, task_of, tasks_of
from .layout import BlockLayout, Key, matches
from .plan import Run, Value
from .state import State, state_of

Label = tuple[Value, ...]  # values of the factors of a row or a column
Place = tuple[Label, Label, Key]  # row, column, figure

# A state of a run in the report's words; the other states are called what they are.
WORDS = {"interrupted": "unfinished"}
# What a cell without figures says: the first of these that one of its runs is.
SAID = ("failed", "unfinished", "submitted", "changed", "done")


@dataclass(frozen=True)
class Material:
    """All that a report is made from.

    Attributes:
        runs: to report.
        states: of the runs, by name.
        ours: figures of the runs.
        paper: figures of the paper.
    """

    runs: Sequence[Run]
    states: Mapping[str, State]
    ours: Sequence[Figure]
    paper: Sequence[Figure]


@dataclass
class Cell:
    """A place in a table.

    Attributes:
        runs: that belong here, one for each seed.
        values: of those that are done, by seed.
        states: of all of them, in words.
        paper: the paper's figure.
    """

    runs: list[Run] = field(default_factory=list)
    values: dict[Value | None, float] = field(default_factory=dict)
    states: list[str] = field(default_factory=list)
    paper: Figure | None = None

    def value(self, source: str) -> float | None:
        """The figure of the paper, or the mean of ours over the seeds."""
        if source == PAPER:
            return None if self.paper is None else self.paper.value
        return fmean(self.values.values()) if self.values else None

    def variant(self, source: str) -> dict[str, Value]:
        """The factors of what was trained, but for the seed."""
        factors: Mapping[str, Value] = self.runs[0].factors if self.runs else {}
        if source == PAPER:
            factors = {} if self.paper is None else self.paper.factors
        return {name: value for name, value in factors.items() if name != SEED}

    @property
    def spread(self) -> float | None:
        """The sample standard deviation over the seeds, if there are two of them."""
        return stdev(self.values.values()) if len(self.values) > 1 else None

    @property
    def difference(self) -> float | None:
        """Ours less the paper's."""
        if self.paper is None or not self.values:
            return None
        return fmean(self.values.values()) - self.paper.value

    @property
    def word(self) -> str:
        """What stands here instead of a figure."""
        said = next((state for state in SAID if state in self.states), "-")
        return "n/a" if said == "done" else said


class Block:
    """A block of a table with its cells."""

    def __init__(self, layout: BlockLayout, table: str, material: Material):
        """Sort runs and figures into cells.

        Raises:
            InputError: if runs that differ in more than the seed meet in a cell.
        """
        self.layout = layout
        self.title = layout.title
        self.keys = layout.keys
        self.cells: dict[Place, Cell] = {}
        # The paper's figures first: rows and columns stand in its order.
        for figure in material.paper:
            key = (figure.metric, figure.class_name)
            if figure.table == table and key in self.keys and matches(figure.factors, layout.where):
                self._cell(figure.factors, key).paper = figure
        values = {(f.run, f.metric, f.class_name): f.value for f in material.ours}
        for run in material.runs:
            if matches(run.factors, layout.where):
                self._add(run, material.states[run.name], values)
        self._check()

    def _cell(self, factors: Mapping[str, Value], key: Key) -> Cell:
        row = tuple(factors.get(name, "") for name in self.layout.rows)
        return self.cells.setdefault((row, column_of(factors, self.layout.columns), key), Cell())

    def _add(self, run: Run, state: State, values: Mapping[tuple[str, str, str], float]) -> None:
        tasks = tasks_of(run)
        for key in self.keys:
            if task_of(key[0]) not in tasks:
                continue
            cell = self._cell(run.factors, key)
            cell.runs.append(run)
            cell.states.append(WORDS.get(state.name, state.name))
            measured = (run.name, key[0], key[1])
            if measured in values:
                cell.values[run.factors.get(SEED)] = values[measured]

    def _check(self) -> None:
        for place, cell in self.cells.items():
            variants = {tuple(v for n, v in r.factors.items() if n != SEED) for r in cell.runs}
            if len(variants) > 1:
                names = ", ".join(run.name for run in cell.runs)
                raise InputError(f"several experiments meet in cell {place} of the report: {names}")

    @property
    def rows(self) -> list[Label]:
        """In the paper's order, then in that of the study's runs."""
        return list(dict.fromkeys(row for row, _, _ in self.cells))

    @property
    def columns(self) -> list[Label]:
        """Likewise, but numbers by size."""
        columns = list(dict.fromkeys(column for _, column, _ in self.cells))
        numbers = all(isinstance(value, int) for column in columns for value in column)
        return sorted(columns) if numbers else columns

    def best(self, source: str) -> set[Place]:
        """The places of the best figure of each column, where figures differ."""
        columns: dict[tuple[Label, Key], dict[Place, float]] = {}
        for place, cell in self.cells.items():
            value = cell.value(source)
            if value is not None:
                columns.setdefault(place[1:], {})[place] = value
        best: set[Place] = set()
        for (_, key), found in columns.items():
            wanted = min(found.values()) if _is_low(key) else max(found.values())
            if len(set(found.values())) > 1:
                best |= {place for place, value in found.items() if value == wanted}
        return best

    def best_joint(self, source: str) -> set[Place]:
        """The places of the network with the largest geometric mean in each column, of several."""
        keys = [key for key in self.keys if key in _main_keys()]
        means: dict[Label, dict[Label, float]] = {}
        for row in self.rows:
            for column in self.columns:
                cells = [self.cells.get((row, column, key)) for key in keys]
                mean = _joint_mean(cells, source) if len(keys) > 1 else None
                if mean is not None:
                    means.setdefault(column, {})[row] = mean
        competed = {column: found for column, found in means.items() if len(found) > 1}
        winners = [(max(found, key=found.__getitem__), c) for c, found in competed.items()]
        return {(row, column, key) for row, column in winners for key in keys}


def column_of(factors: Mapping[str, Value], columns: Iterable[str]) -> Label:
    """The values of those factors that apply; equal ones count once (372 labels for each task)."""
    return tuple(dict.fromkeys(factors[name] for name in columns if name in factors))


def _is_low(key: Key) -> bool:
    """Whether the lowest figure is the best one: losses, deviations."""
    return "/loss_" in key[0] or key[0].endswith("_std")


def _main_keys() -> set[Key]:
    return {(main_metric(task), "") for task in KINDS}


def _joint_mean(cells: Sequence[Cell | None], source: str) -> float | None:
    """The geometric mean of the figures of one network; None if they are not of the same."""
    there = [cell for cell in cells if cell is not None]
    values = [value for cell in there if (value := cell.value(source)) is not None]
    variants = [cell.variant(source) for cell in there]
    if len(values) < len(cells) or any(variant != variants[0] for variant in variants):
        return None
    return geometric_mean(values)


def collect_states(runs: Iterable[Run]) -> dict[str, State]:
    """How far each run is, by name."""
    return {run.name: state_of(run) for run in runs}
