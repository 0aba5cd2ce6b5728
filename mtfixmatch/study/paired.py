"""Rows less a baseline on the same labels: seeds differ in their labels more than methods do."""

from statistics import fmean, stdev

from .cells import Block, Cell, Place
from .tables import lines_of, pipe_table

NONE = "-"  # fewer than two seeds to compare


def paired_table(block: Block) -> str:
    """A Markdown table with the columns of a block; "" without a baseline or two seeds of a row.

    A cell gives mean ± sample standard deviation of the differences, and how many are positive.
    """
    lines = lines_of(block)
    cells = [(names, [_cell(block, place) for place in places.values()]) for names, places in lines]
    rows = [[*names.values(), *texts] for names, texts in cells if set(texts) != {NONE}]
    if not rows:
        return ""
    names, places = lines[0]
    baseline = " ".join(map(str, block.layout.baseline))
    told = f"Less {baseline}, seed by seed; in brackets, how many are above it:"
    return f"{told}\n\n{pipe_table([[*names, *places], *rows])}"


def _cell(block: Block, place: Place) -> str:
    less = differences(block, place)
    if len(less) < 2:
        return NONE
    above = sum(value > 0 for value in less)
    return f"{fmean(less):+.4f} ± {stdev(less):.4f} ({above} of {len(less)})"


def differences(block: Block, place: Place) -> list[float]:
    """A cell less the baseline's, for each seed that both have; none in the baseline's own row."""
    row, column, key = place
    if row == block.layout.baseline:
        return []
    base = block.cells.get((block.layout.baseline, column, key), Cell()).values
    values = block.cells.get(place, Cell()).values
    return [value - base[seed] for seed, value in values.items() if seed in base]
