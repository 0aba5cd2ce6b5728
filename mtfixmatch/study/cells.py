"""The cells of a block: the runs and the paper's figure that belong to each, and the best ones."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import NamedTuple

from ..engine.evaluation import geometric_mean
from ..utils.errors import InputError
from .figures import PAPER, SEED, Figure, Metric, StudyResults, task_of, tasks_of
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
    """One metric of one experiment, over its seeds.

    Attributes:
        runs: one for each seed.
        values: the metric by seed, for the runs that are done.
        states: names of the runs' states.
        paper: the paper's figure.
    """

    runs: list[Run] = field(default_factory=list)
    values: dict[Value | None, float] = field(default_factory=dict)
    states: list[str] = field(default_factory=list)
    paper: Figure | None = None

    def value(self, source: str) -> float | None:
        """Return the paper's figure, or the mean of ours over the seeds."""
        if source == PAPER:
            return None if self.paper is None else self.paper.value
        return fmean(self.values.values()) if self.values else None

    def experiment(self, source: str) -> dict[str, Value]:
        """Return the factors of the experiment, without the seed."""
        factors: Mapping[str, Value] = self.runs[0].factors if self.runs else {}
        if source == PAPER:
            factors = {} if self.paper is None else self.paper.factors
        return without_seed(factors)

    @property
    def spread(self) -> float | None:
        """The sample standard deviation over two or more seeds."""
        return stdev(self.values.values()) if len(self.values) > 1 else None

    @property
    def difference(self) -> float | None:
        """Our mean minus the paper's figure."""
        if self.paper is None or not self.values:
            return None
        return fmean(self.values.values()) - self.paper.value

    @property
    def placeholder(self) -> str:
        """The text of a cell without a value of ours."""
        state = next((state for state in SHOWN_STATES if state in self.states), "-")
        return "n/a" if state == "done" else state


class Block:
    """A block of a table with its cells.

    Args:
        layout: of the block.
        table: number of its table.
        results: to sort into cells.

    Raises:
        InputError: if a cell gets runs that differ in more than the seed.
    """

    def __init__(self, layout: BlockLayout, table: str, results: StudyResults):
        self.layout = layout
        self.cells: dict[Position, Cell] = {}
        self._primary = results.primary
        # The paper's figures come first, because they set the order of rows and columns.
        for figure in results.paper:
            shown = figure.table == table and figure.metric in layout.metrics
            if shown and matches(figure.factors, layout.where):
                self._cell(figure.factors, figure.metric).paper = figure
        values = {(figure.run, figure.metric): figure.value for figure in results.ours}
        for run in results.runs:
            if matches(run.factors, layout.where):
                self._add(run, results.states[run.name].name, values)
        self._check()

    def _cell(self, factors: Mapping[str, Value], metric: Metric) -> Cell:
        row = tuple(factors.get(name, "") for name in self.layout.rows)
        position = Position(row, column_of(factors, self.layout.columns), metric)
        return self.cells.setdefault(position, Cell())

    def _add(self, run: Run, state: str, values: Mapping[tuple[str, Metric], float]) -> None:
        tasks = tasks_of(run, self._primary)
        for metric in self.layout.metrics:
            if task_of(metric.name) not in tasks:
                continue
            cell = self._cell(run.factors, metric)
            cell.runs.append(run)
            cell.states.append(state)
            if (run.name, metric) in values:
                cell.values[run.factors.get(SEED)] = values[run.name, metric]

    def _check(self) -> None:
        for position, cell in self.cells.items():
            first, *others = [without_seed(run.factors) for run in cell.runs] or [{}]
            if any(other != first for other in others):
                names = ", ".join(run.name for run in cell.runs)
                where = tuple(map(tuple, position))
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
            value = cell.value(source)
            if value is not None:
                columns[position.column, position.metric][position] = value
        best: set[Position] = set()
        for (_, metric), values in columns.items():
            lowest, highest = min(values.values()), max(values.values())
            wanted = lowest if _lower_is_better(metric) else highest
            if lowest != highest:
                best |= {position for position, value in values.items() if value == wanted}
        return best

    def best_joint(self, source: str) -> set[Position]:
        """Return the positions of the network with the largest geometric mean in each column."""
        metrics = [m for m in self.layout.metrics if m in map(Metric, self._primary.values())]
        best: set[Position] = set()
        for column in self.columns if len(metrics) > 1 else []:
            means: dict[Label, float] = {}
            for row in self.rows:
                cells = [self.cells.get(Position(row, column, metric)) for metric in metrics]
                mean = _joint_mean(cells, source)
                if mean is not None:
                    means[row] = mean
            if len(means) > 1:
                row = max(means, key=means.__getitem__)
                best |= {Position(row, column, metric) for metric in metrics}
        return best


def column_of(factors: Mapping[str, Value], columns: Iterable[str]) -> Label:
    """Return the values of the factors that apply; equal ones count once (372 for each task)."""
    return tuple(dict.fromkeys(factors[name] for name in columns if name in factors))


def without_seed(factors: Mapping[str, Value]) -> dict[str, Value]:
    """Return the factors that tell experiments apart."""
    return {name: value for name, value in factors.items() if name != SEED}


def _lower_is_better(metric: Metric) -> bool:
    """Tell a loss or a deviation from the other metrics."""
    return "/loss_" in metric.name or metric.name.endswith("_std")


def _joint_mean(cells: Sequence[Cell | None], source: str) -> float | None:
    """Return the geometric mean of one network's figures; None if one is missing or of another."""
    present = [cell for cell in cells if cell is not None]
    values = [value for cell in present if (value := cell.value(source)) is not None]
    experiments = [cell.experiment(source) for cell in present]
    if len(values) < len(cells) or any(other != experiments[0] for other in experiments):
        return None
    return geometric_mean(values)
