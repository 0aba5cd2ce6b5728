"""The tables of a report as Markdown and CSV, in the paper's layout."""

import csv
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean, stdev

from tabulate import tabulate

from .cells import Block, Cell, Label, Position, column_of
from .figures import OURS, OVERLAP, PAPER, SEED, Figure, StudyResults
from .layout import matches
from .plan import Value

# A row: its factors, then the positions of its cells by heading.
Line = tuple[dict[str, str], dict[str, Position]]
EMPTY = "No runs, no figures."
NO_DIFFERENCE = "-"  # fewer than two seeds to compare


def lines_of(block: Block) -> list[Line]:
    """Return the lines of a block, without empty ones.

    Where factors name the columns, each metric has a line of its own, else a column.
    """
    layout = block.layout
    lines: list[Line] = []
    for row in block.rows:
        names = {name: str(value) for name, value in zip(layout.rows, row, strict=True)}
        if not layout.columns:
            heads = {m.class_name or m.name: Position(row, (), m) for m in layout.metrics}
            lines.append((names, heads))
            continue
        for metric in layout.metrics:
            heads = {label(c): Position(row, c, metric) for c in block.columns}
            lines.append(({**names, "metric": metric.name}, heads))
    return [line for line in lines if not block.cells.keys().isdisjoint(line[1].values())]


def label(values: Iterable[Value]) -> str:
    """Return the heading of a column, such as "93 / 372"."""
    return " / ".join(map(str, values))


def markdown(block: Block) -> str:
    """Write a block as Markdown."""
    return pipe_table(_grid(block, digits=4)) if block.cells else EMPTY


def class_markdown(block: Block, shares: Sequence[Figure]) -> str:
    """Write a line per class, because a page is not wide enough, with its share of the data."""
    if not block.cells:
        return EMPTY
    grid = _grid(block, digits=3)
    if shares:
        title = shares[0].metric.name.split("/")[1].replace("_", " ")
        texts = {share.metric.class_name: f"{share.value:g}" for share in shares}
        names = [f"{title} (%)"] + [""] * (len(block.layout.rows) - 1)
        grid.insert(1, names + [texts.get(name, "") for name in grid[0][len(names) :]])
    return pipe_table(list(zip(*grid, strict=True)))


def pipe_table(grid: Sequence[Sequence[str]]) -> str:
    """Write rows of text as Markdown; the first row holds the headings."""
    return tabulate(grid[1:], headers=grid[0], tablefmt="pipe", disable_numparse=True)


def _grid(block: Block, digits: int) -> list[list[str]]:
    """Write each cell: our figure, and below it the paper's with the difference."""
    best = {source: block.best(source) for source in (OURS, PAPER)}
    joint = {source: block.best_joint(source) for source in (OURS, PAPER)}

    def marked(position: Position, text: str, source: str, more: str = "") -> str:
        text = f"**{text}**" if position in best[source] else text
        return text + more + (" □" if position in joint[source] else "")

    def write(position: Position) -> str:
        cell = block.cells.get(position)
        if cell is None:
            return ""
        text = cell.placeholder
        if cell.values:
            more = "" if cell.spread is None else f" ± {cell.spread:.{digits}f}"
            if len(cell.values) < len(cell.runs):
                more += f" ({len(cell.values)} of {len(cell.runs)})"
            text = marked(position, f"{cell.value(OURS):.{digits}f}", OURS, more)
        if cell.paper is not None:
            more = "" if cell.difference is None else f" ({cell.difference:+.{digits}f})"
            text += f"<br>{marked(position, f'{cell.paper.value:.{digits}f}', PAPER)}{more}"
        return text

    lines = lines_of(block)
    rows = [[*names.values(), *map(write, heads.values())] for names, heads in lines]
    return [[*lines[0][0], *lines[0][1]], *rows]


def paired_table(block: Block) -> str:
    """Write the differences from a block's baseline row, seed by seed; "" if there are none.

    Label subsets differ between seeds, often by more than methods do; pairing removes that
    variance. A cell gives mean ± sample standard deviation and the number of positive seeds.
    """
    lines = lines_of(block)
    cells = [(names, [_paired(block, p) for p in heads.values()]) for names, heads in lines]
    rows = [[*names.values(), *texts] for names, texts in cells if set(texts) != {NO_DIFFERENCE}]
    if not rows:
        return ""
    baseline = " ".join(map(str, block.layout.baseline))
    title = f"Difference from {baseline}, seed by seed; in brackets, the seeds above it:"
    return f"{title}\n\n{pipe_table([[*lines[0][0], *lines[0][1]], *rows])}"


def _paired(block: Block, position: Position) -> str:
    """Write a cell minus the baseline, over the seeds that both have."""
    baseline = position._replace(row=block.layout.baseline)
    base = block.cells.get(baseline, Cell()).values
    values = block.cells.get(position, Cell()).values
    differences = [value - base[seed] for seed, value in values.items() if seed in base]
    if position == baseline or len(differences) < 2:
        return NO_DIFFERENCE
    count = f"{sum(x > 0 for x in differences)} of {len(differences)}"
    return f"{fmean(differences):+.4f} ± {stdev(differences):.4f} ({count})"


def overlap_table(block: Block, results: StudyResults) -> str:
    """Write the overlaps of a block as Markdown; "" if its label subsets are not random."""
    images = block.layout.overlap_of
    if not images:
        return ""
    ours: dict[Label, dict[Value | None, float]] = defaultdict(dict)
    paper = {}
    for figure in [*results.ours, *results.paper]:
        if figure.metric.name == OVERLAP and matches(figure.factors, block.layout.where):
            column = column_of(figure.factors, block.layout.columns)
            if figure.source == PAPER:
                paper[column] = f"{figure.value:g}"
            else:  # a seed gives all methods the same label subsets
                ours[column][figure.factors.get(SEED)] = figure.value
    rows = {
        "ours": {column: f"{fmean(by_seed.values()):.1f}" for column, by_seed in ours.items()},
        "expected": {c: f"{expected_overlap(c, images):.1f}" for c in block.columns},
    }
    if paper:
        rows["paper"] = paper
    lines = [[name, *(x.get(c, "-") for c in block.columns)] for name, x in rows.items()]
    return pipe_table([["images with all labels", *map(label, block.columns)], *lines])


def expected_overlap(counts: Label, images: int) -> float:
    """Return the mean overlap of two random subsets; one count stands for two of the same size."""
    sizes = [int(count) for count in counts] * (2 if len(counts) == 1 else 1)
    return math.prod(sizes) / images ** (len(sizes) - 1)


def write_csv(blocks: Sequence[Block], path: Path) -> None:
    """Write the blocks of a table as CSV, five columns for each column of the table."""
    rows: list[dict[str, str | int]] = []
    for block in blocks:
        for names, heads in lines_of(block):
            rows.append({"block": block.layout.title, **names})
            for heading, position in heads.items():
                cell = block.cells.get(position, Cell())
                rows[-1] |= {
                    heading: _number(cell.value(OURS)) or (cell.placeholder if cell.runs else ""),
                    f"{heading} spread": _number(cell.spread),
                    f"{heading} seeds": len(cell.values),
                    f"{heading} paper": _number(cell.value(PAPER)),
                    f"{heading} difference": _number(cell.difference),
                }
    fields = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fields)
        writer.writeheader()
        writer.writerows(rows)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"
