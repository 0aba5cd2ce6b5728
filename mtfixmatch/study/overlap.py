"""How many images have the labels of all tasks: the paper's, expected, and ours (Tables 2, 3)."""

import math
from statistics import fmean

from .cells import Block, Label, Material, column_of
from .figures import OVERLAP, SEED
from .layout import BlockLayout, matches
from .tables import label, pipe_table


def overlap_table(block: Block, material: Material) -> str:
    """A Markdown table with the columns of a block; "" if its label subsets are not random."""
    layout = block.layout
    if not layout.overlap_of:
        return ""
    rows = {
        "ours": {c: _ours(layout, c, material) for c in block.columns},
        "expected": {c: f"{expected(c, layout.overlap_of):.1f}" for c in block.columns},
        "paper": {
            column_of(f.factors, layout.columns): f"{f.value:g}"
            for f in material.paper
            if f.metric == OVERLAP and matches(f.factors, layout.where)
        },
    }
    lines = [
        [name, *(found.get(c, "-") for c in block.columns)] for name, found in rows.items() if found
    ]
    return pipe_table([["images with all labels", *map(label, block.columns)], *lines])


def expected(counts: Label, images: int) -> float:
    """The mean overlap of two subsets of so many images each; one count stands for two equal ones.

    >>> expected((744,), 2975)  # 744 * 744 / 2975
    186.06...
    """
    numbers = [int(count) for count in counts]
    pair = numbers if len(numbers) > 1 else numbers * 2
    return math.prod(pair) / images ** (len(pair) - 1)


def _ours(layout: BlockLayout, column: Label, material: Material) -> str:
    """The mean over the seeds: a seed gives all methods the same subsets."""
    by_seed = {
        f.factors.get(SEED): f.value
        for f in material.ours
        if f.metric == OVERLAP
        and matches(f.factors, layout.where)
        and column_of(f.factors, layout.columns) == column
    }
    return f"{fmean(by_seed.values()):.1f}" if by_seed else "-"
