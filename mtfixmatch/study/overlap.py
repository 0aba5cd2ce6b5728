"""The number of images with the labels of all tasks (Tables 2, 3): ours, expected, paper's."""

import math
from collections import defaultdict
from collections.abc import Iterable
from statistics import fmean

from .cells import Block, Label, column_of
from .figures import OVERLAP, SEED, Figure, StudyResults
from .layout import matches
from .plan import Value
from .tables import label, pipe_table


def overlap_table(block: Block, results: StudyResults) -> str:
    """Write the overlaps of a block as Markdown; "" if its label subsets are not random."""
    images = block.layout.overlap_of
    if not images:
        return ""
    rows = {
        "ours": _ours(block, results),
        "expected": {c: f"{expected_overlap(c, images):.1f}" for c in block.columns},
        "paper": {column: f"{f.value:g}" for column, f in _overlaps(block, results.paper)},
    }
    lines = [
        [name, *(texts.get(column, "-") for column in block.columns)]
        for name, texts in rows.items()
        if texts or name != "paper"
    ]
    return pipe_table([["images with all labels", *map(label, block.columns)], *lines])


def expected_overlap(counts: Label, images: int) -> float:
    """Return the mean overlap of two random subsets.

    Args:
        counts: the sizes of the subsets; one count stands for two equal ones.
        images: that they are drawn from.

    >>> expected_overlap((744,), 2975)  # 744 * 744 / 2975
    186.06...
    """
    numbers = [int(count) for count in counts]
    pair = numbers if len(numbers) > 1 else numbers * 2
    return math.prod(pair) / images ** (len(pair) - 1)


def _overlaps(block: Block, figures: Iterable[Figure]) -> list[tuple[Label, Figure]]:
    """Return the overlaps that belong to a block, each with its column."""
    layout = block.layout
    return [
        (column_of(figure.factors, layout.columns), figure)
        for figure in figures
        if figure.metric.name == OVERLAP and matches(figure.factors, layout.where)
    ]


def _ours(block: Block, results: StudyResults) -> dict[Label, str]:
    """Average over the seeds; a seed gives all methods the same label subsets."""
    columns: dict[Label, dict[Value | None, float]] = defaultdict(dict)
    for column, figure in _overlaps(block, results.ours):
        columns[column][figure.factors.get(SEED)] = figure.value
    return {column: f"{fmean(by_seed.values()):.1f}" for column, by_seed in columns.items()}
