"""The cells of a block: the runs and the paper's figure that belong to each, and the best ones."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import NamedTuple

from ..engine.evaluation import geometric_mean
from ..utils.errors import InputError
from .figures import OURS, PAPER, SEED, Figure, Metric, StudyResults, task_of, tasks_of
from .layout import BlockLayout, matches
from .plan import Run, Value

Label = tuple[Value, ...]  # values of the factors that name a row or a column

# An empty cell shows the first of these states that one of its runs has.
SHOWN_STATES = ("failed", "unfinished", "submitted", "changed", "done")


class Position(NamedTuple):
    """The position of a cell in its block."""

    row: Label
    column: Label
    metric: Metric


@dataclass
class Cell:
    """One metric of one experiment, over its seeds."""

    runs: list[Run] = field(default_factory=list)  # one for each seed
    values: dict[Value | None, float] = field(default_factory=dict)  # by seed, of the runs done
    states: list[str] = field(default_factory=list)  # names of the runs' states
    paper: Figure | None = None
    experiments: dict[str, dict[str, Value]] = field(default_factory=dict)  # factors by source

    def value(self, source: str) -> float | None:
        """Return the paper's figure, or the mean of ours over the seeds."""
        if source == PAPER:
            return None if self.paper is None else self.paper.value
        return fmean(self.values.values()) if self.values else None

    @property
    def spread(self) -> float | None:
        """The sample standard deviation over two or more seeds."""
        return stdev(self.values.values()) if len(self.values) > 1 else None

    @property
    def difference(self) -> float | None:
        """Our mean minus the paper's figure, unless that has a remark."""
        ours = self.value(OURS)
        if self.paper is None or self.paper.remark or ours is None:
            return None
        return ours - self.paper.value

    @property
    def placeholder(self) -> str:
        """The text of a cell without a value of ours."""
        state = next((state for state in SHOWN_STATES if state in self.states), "-")
        return "n/a" if state == "done" else state


class Block:
    """A block of a table, its results in cells; raise InputError if two experiments meet in one."""

    def __init__(self, layout: BlockLayout, table: str, results: StudyResults):
        self.layout = layout
        self.cells: dict[Position, Cell] = {}
        self._primary = results.primary
        # The paper's figures come first, because they set the order of rows and columns.
        for figure in results.paper:
            shown = figure.table == table and figure.metric in layout.metrics
            if shown and matches(figure.factors, layout.where):
                position = self._position(figure.factors, figure.metric)
                cell = self.cells.setdefault(position, Cell())
                cell.paper, cell.experiments[PAPER] = figure, without_seed(figure.factors)
        values = {(figure.run, figure.metric): figure.value for figure in results.ours}
        for run in results.runs:
            if matches(run.factors, layout.where):
                self._add(run, results.states[run.name].name, values)

    def _position(self, factors: Mapping[str, Value], metric: Metric) -> Position:
        row = tuple(factors.get(name, "") for name in self.layout.rows)
        return Position(row, column_of(factors, self.layout.columns), metric)

    def _add(self, run: Run, state: str, values: Mapping[tuple[str, Metric], float]) -> None:
        tasks, experiment = tasks_of(run, self._primary), without_seed(run.factors)
        for metric in (m for m in self.layout.metrics if task_of(m.name) in tasks):
            position = self._position(run.factors, metric)
            cell = self.cells.setdefault(position, Cell())
            cell.runs.append(run)
            cell.states.append(state)
            if (run.name, metric) in values:
                cell.values[run.factors.get(SEED)] = values[run.name, metric]
            if cell.experiments.setdefault(OURS, experiment) != experiment:
                where = tuple(map(tuple, position))
                names = ", ".join(run.name for run in cell.runs)
                raise InputError(f"several experiments meet in cell {where} of the report: {names}")

    @property
    def rows(self) -> list[Label]:
        """The rows in the paper's order, then in the order of the runs."""
        return list(dict.fromkeys(position.row for position in self.cells))

    @property
    def columns(self) -> list[Label]:
        """The columns in the same order, but numbers sorted."""
        columns = list(dict.fromkeys(position.column for position in self.cells))
        numbers = all(isinstance(value, int) for column in columns for value in column)
        return sorted(columns) if numbers else columns

    def best(self, source: str) -> set[Position]:
        """Return the positions of the best figure of each column, if its figures differ."""
        columns: dict[tuple[Label, Metric], dict[Position, float]] = defaultdict(dict)
        for position, cell in self.cells.items():
            if (value := cell.value(source)) is not None:
                columns[position.column, position.metric][position] = value
        best: set[Position] = set()
        for (_, metric), values in columns.items():
            lower_is_better = "loss_" in metric.name or metric.name.endswith("_std")
            wanted = (min if lower_is_better else max)(values.values())
            if len(set(values.values())) > 1:
                best |= {position for position, value in values.items() if value == wanted}
        return best

    def best_joint(self, source: str) -> set[Position]:
        """Return the positions of the network with the largest geometric mean in each column."""
        metrics = [m for m in self.layout.metrics if m in map(Metric, self._primary.values())]
        best: set[Position] = set()
        for column in self.columns if len(metrics) > 1 else []:
            networks = [[Position(row, column, m) for m in metrics] for row in self.rows]
            means = [self._joint_mean(positions, source) for positions in networks]
            if len(means) - means.count(None) > 1:
                mean = max(mean for mean in means if mean is not None)
                best |= set(networks[means.index(mean)])
        return best

    def _joint_mean(self, positions: Sequence[Position], source: str) -> float | None:
        """Return the geometric mean of one network's figures; None if one is missing."""
        cells = [self.cells.get(position, Cell()) for position in positions]
        values = [value for cell in cells if (value := cell.value(source)) is not None]
        experiments = [cell.experiments.get(source) for cell in cells]
        if len(values) < len(cells) or any(other != experiments[0] for other in experiments):
            return None
        return geometric_mean(values)


def column_of(factors: Mapping[str, Value], columns: Iterable[str]) -> Label:
    """Return the values of the factors that apply; equal ones count once (372 for each task)."""
    return tuple(dict.fromkeys(factors[name] for name in columns if name in factors))


def without_seed(factors: Mapping[str, Value]) -> dict[str, Value]:
    """Return the factors that tell experiments apart."""
    return {name: value for name, value in factors.items() if name != SEED}
