"""Blocks as Markdown and CSV, in the paper's layout."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from tabulate import tabulate

from .cells import Block, Cell, Label, Place
from .figures import OURS, PAPER

Line = tuple[dict[str, str], dict[str, Place]]  # what names a row; heading -> place of its cell


def lines_of(block: Block) -> list[Line]:
    """The rows of a block: one for each figure where factors are the columns, else with all."""
    lines: list[Line] = []
    for row in block.rows:
        names = {n: str(value) for n, value in zip(block.layout.rows, row, strict=True)}
        if block.layout.columns:
            lines += [
                ({**names, "metric": key[0]}, {label(c): (row, c, key) for c in block.columns})
                for key in block.keys
            ]
        else:
            lines.append((names, {key[1] or key[0]: (row, (), key) for key in block.keys}))
    return [line for line in lines if any(place in block.cells for place in line[1].values())]


def label(values: Label) -> str:
    """The heading of a column: 93 / 372."""
    return " / ".join(map(str, values))


def axis_title(block: Block) -> str:
    """What the headings of the columns are."""
    return " / ".join(block.layout.columns)


def markdown(block: Block) -> str:
    """A block as a table."""
    lines = lines_of(block)
    if not lines:
        return "No runs, no figures."
    return pipe_table(_grid(block, lines, digits=4))


def class_markdown(block: Block, shares: Mapping[str, str], title: str) -> str:
    """A block of classes as a table, turned: twenty of them side by side are too wide for a page.

    Args:
        block: with its cells.
        shares: of the classes in the data, in percent; none if nobody gives them.
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
    """Rows of text, the first one the headings, in Markdown."""
    return tabulate(grid[1:], headers=grid[0], tablefmt="pipe", disable_numparse=True)


def _grid(block: Block, lines: Sequence[Line], digits: int) -> list[list[str]]:
    write = _Writer(block, digits)
    cells = [[*names.values(), *map(write, places.values())] for names, places in lines]
    return [[*lines[0][0], *lines[0][1]], *cells]


class _Writer:
    """Writes cells of a block: ours, below it the paper's and the difference."""

    def __init__(self, block: Block, digits: int):
        self.block = block
        self.digits = digits
        self.best = {source: block.best(source) for source in (OURS, PAPER)}
        self.joint = {source: block.best_joint(source) for source in (OURS, PAPER)}

    def __call__(self, place: Place) -> str:
        cell = self.block.cells.get(place)
        if cell is None:
            return ""
        ours = self._marked(place, cell, OURS) if cell.values else cell.word
        if cell.paper is None:
            return ours
        paper = self._marked(place, cell, PAPER)
        difference = "" if cell.difference is None else f" ({cell.difference:+.{self.digits}f})"
        return f"{ours}<br>{paper}{difference}"

    def _marked(self, place: Place, cell: Cell, source: str) -> str:
        text = f"{cell.value(source):.{self.digits}f}"
        if place in self.best[source]:
            text = f"**{text}**"
        if source == OURS and cell.spread is not None:
            text += f" ± {cell.spread:.{self.digits}f}"
        if source == OURS and len(cell.values) < len(cell.runs):
            text += f" ({len(cell.values)} of {len(cell.runs)})"
        return f"{text} □" if place in self.joint[source] else text


def write_csv(blocks: Sequence[Block], path: Path) -> None:
    """Write the blocks of a table, five columns for each of the table's."""
    rows: list[dict[str, str | int]] = []
    for block in blocks:
        for names, places in lines_of(block):
            row: dict[str, str | int] = {"block": block.title, **names}
            for heading, place in places.items():
                row |= _csv_cells(heading, block.cells.get(place))
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
        heading: _number(ours) or (cell.word if cell.runs else ""),
        f"{heading} spread": _number(cell.spread),
        f"{heading} seeds": len(cell.values),
        f"{heading} paper": _number(cell.value(PAPER)),
        f"{heading} difference": _number(cell.difference),
    }


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"
