"""The tables of a report as Markdown and CSV, in the paper's layout."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from tabulate import tabulate

from .cells import Block, Cell, Label, Position
from .figures import OURS, PAPER

# A row: its factors, then the positions of its cells by heading.
Line = tuple[dict[str, str], dict[str, Position]]


def lines_of(block: Block) -> list[Line]:
    """Return the lines of a block, without empty ones.

    Where factors name the columns, each metric has a line of its own, else a column.
    """
    layout = block.layout
    lines: list[Line] = []
    for row in block.rows:
        names = {name: str(value) for name, value in zip(layout.rows, row, strict=True)}
        if layout.columns:
            for metric in layout.metrics:
                positions = {label(c): Position(row, c, metric) for c in block.columns}
                lines.append(({**names, "metric": metric.name}, positions))
        else:
            positions = {m.class_name or m.name: Position(row, (), m) for m in layout.metrics}
            lines.append((names, positions))
    return [line for line in lines if any(p in block.cells for p in line[1].values())]


def label(values: Label) -> str:
    """Return the heading of a column, such as "93 / 372"."""
    return " / ".join(map(str, values))


def axis_title(block: Block) -> str:
    """Return the names of the factors in the headings."""
    return " / ".join(block.layout.columns)


def markdown(block: Block) -> str:
    """Write a block as Markdown."""
    lines = lines_of(block)
    if not lines:
        return "No runs, no figures."
    return pipe_table(_grid(block, lines, digits=4))


def class_markdown(block: Block, shares: Mapping[str, str], title: str) -> str:
    """Write a block of classes as Markdown, a line per class, because a page is not wide enough.

    Args:
        block: with the classes as metrics.
        shares: class -> its share of the data in percent; may be empty.
        title: of the shares.
    """
    lines = lines_of(block)
    if not lines:
        return "No runs, no figures."
    grid = _grid(block, lines, digits=3)
    if shares:
        names = [title] + [""] * (len(lines[0][0]) - 1)
        grid.insert(1, names + [shares.get(name, "") for name in lines[0][1]])
    return pipe_table([list(row) for row in zip(*grid, strict=True)])


def pipe_table(grid: Sequence[Sequence[str]]) -> str:
    """Write rows of text as Markdown; the first row holds the headings."""
    return tabulate(grid[1:], headers=grid[0], tablefmt="pipe", disable_numparse=True)


def _grid(block: Block, lines: Sequence[Line], digits: int) -> list[list[str]]:
    write = _CellWriter(block, digits)
    rows = [[*names.values(), *map(write, positions.values())] for names, positions in lines]
    return [[*lines[0][0], *lines[0][1]], *rows]


class _CellWriter:
    """Write a cell as text: ours, and below it the paper's figure with the difference."""

    def __init__(self, block: Block, digits: int):
        self.block = block
        self.digits = digits
        self.best = {source: block.best(source) for source in (OURS, PAPER)}
        self.joint = {source: block.best_joint(source) for source in (OURS, PAPER)}

    def __call__(self, position: Position) -> str:
        cell = self.block.cells.get(position)
        if cell is None:
            return ""
        ours = self._marked(position, cell, OURS) if cell.values else cell.placeholder
        if cell.paper is None:
            return ours
        paper = self._marked(position, cell, PAPER)
        difference = "" if cell.difference is None else f" ({cell.difference:+.{self.digits}f})"
        return f"{ours}<br>{paper}{difference}"

    def _marked(self, position: Position, cell: Cell, source: str) -> str:
        text = f"{cell.value(source):.{self.digits}f}"
        if position in self.best[source]:
            text = f"**{text}**"
        if source == OURS and cell.spread is not None:
            text += f" ± {cell.spread:.{self.digits}f}"
        if source == OURS and len(cell.values) < len(cell.runs):
            text += f" ({len(cell.values)} of {len(cell.runs)})"
        return f"{text} □" if position in self.joint[source] else text


def write_csv(blocks: Sequence[Block], path: Path) -> None:
    """Write the blocks of a table as CSV, five columns for each column of the table."""
    rows: list[dict[str, str | int]] = []
    for block in blocks:
        for names, positions in lines_of(block):
            row: dict[str, str | int] = {"block": block.layout.title, **names}
            for heading, position in positions.items():
                row |= _csv_cells(heading, block.cells.get(position))
            rows.append(row)
    fields = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fields)
        writer.writeheader()
        writer.writerows(rows)


def _csv_cells(heading: str, cell: Cell | None) -> dict[str, str | int]:
    cell = cell or Cell()
    ours = cell.value(OURS)
    return {
        heading: _number(ours) or (cell.placeholder if cell.runs else ""),
        f"{heading} spread": _number(cell.spread),
        f"{heading} seeds": len(cell.values),
        f"{heading} paper": _number(cell.value(PAPER)),
        f"{heading} difference": _number(cell.difference),
    }


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"
