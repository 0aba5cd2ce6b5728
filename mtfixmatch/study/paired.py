"""Differences from a baseline row, seed by seed.

Label subsets differ between seeds, often by more than methods do; pairing removes that variance.
"""

from statistics import fmean, stdev

from .cells import Block, Cell, Position
from .tables import lines_of, pipe_table

NO_DIFFERENCE = "-"  # fewer than two seeds to compare


def paired_table(block: Block) -> str:
    """Write the differences from a block's baseline as Markdown.

    A cell gives mean ± sample standard deviation over the seeds and the number of positive seeds.

    Returns:
        "" without a baseline, or if no row shares two seeds with it.
    """
    lines = lines_of(block)
    cells = [(names, [_cell(block, p) for p in positions.values()]) for names, positions in lines]
    rows = [[*names.values(), *texts] for names, texts in cells if set(texts) != {NO_DIFFERENCE}]
    if not rows:
        return ""
    names, positions = lines[0]
    baseline = " ".join(map(str, block.layout.baseline))
    title = f"Difference from {baseline}, seed by seed; in brackets, the seeds above it:"
    return f"{title}\n\n{pipe_table([[*names, *positions], *rows])}"


def _cell(block: Block, position: Position) -> str:
    values = differences(block, position)
    if len(values) < 2:
        return NO_DIFFERENCE
    above = sum(value > 0 for value in values)
    return f"{fmean(values):+.4f} ± {stdev(values):.4f} ({above} of {len(values)})"


def differences(block: Block, position: Position) -> list[float]:
    """Return a cell minus the baseline, for each seed that both have; none for the baseline."""
    if position.row == block.layout.baseline:
        return []
    baseline = position._replace(row=block.layout.baseline)
    base = block.cells.get(baseline, Cell()).values
    values = block.cells.get(position, Cell()).values
    return [value - base[seed] for seed, value in values.items() if seed in base]
