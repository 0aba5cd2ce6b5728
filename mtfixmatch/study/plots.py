"""The figures of a block as curves over its columns: ours with error bars, the paper's dashed."""

import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from .cells import Block, Cell, Label
from .figures import OURS, PAPER
from .layout import Key
from .tables import axis_title, label

matplotlib.use("Agg")
from matplotlib import pyplot as plt


def draw_curves(block: Block, title: str, path: Path) -> bool:
    """Write a panel for each figure of a block, a line for each of its rows.

    Args:
        block: with factors as columns.
        title: of the picture.
        path: of the PNG.

    Returns:
        Whether there was something of ours to draw.
    """
    if not any(cell.values for cell in block.cells.values()):
        return False
    count = len(block.keys)
    figure, axes = plt.subplots(1, count, figsize=(5.2 * count, 4.6), squeeze=False)
    for axis, key in zip(axes[0], block.keys, strict=True):
        _draw_panel(axis, block, key)
    handles = [Line2D([], [], color=f"C{i % 10}", marker="o") for i in range(len(block.rows))]
    names = [" ".join(str(value) for value in row if value != "") for row in block.rows]
    if any(cell.paper for cell in block.cells.values()):
        handles.append(Line2D([], [], color="gray", linestyle="--", marker="x"))
        names.append("paper")
    figure.suptitle(title)
    figure.legend(handles, names, loc="lower center", ncols=3, fontsize=9, frameon=False)
    figure.tight_layout(rect=(0, 0.05 + 0.045 * ((len(names) + 2) // 3), 1, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    plt.close(figure)
    return True


def _draw_panel(axis: Axes, block: Block, key: Key) -> None:
    columns = [c for c in block.columns if any((r, c, key) in block.cells for r in block.rows)]
    positions = _positions(columns)
    for index, row in enumerate(block.rows):
        shift = 0.03 * (index - (len(block.rows) - 1) / 2)  # bars beside each other
        cells = [block.cells.get((row, column, key), Cell()) for column in columns]
        for source, style in ((PAPER, "x--"), (OURS, "o-")):
            axis.errorbar(
                [position + shift for position in positions],
                [_or_nan(cell.value(source)) for cell in cells],
                yerr=[cell.spread or 0.0 for cell in cells] if source == OURS else None,
                fmt=f"C{index % 10}{style}",
                alpha=1.0 if source == OURS else 0.45,
                markersize=4,
                capsize=3,
                linewidth=1.3,
            )
    axis.set_title(key[0])
    axis.set_xlabel(axis_title(block), fontsize=9)
    axis.set_xticks(positions, [label(column) for column in columns], fontsize=9)
    axis.grid(alpha=0.3)


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


def _positions(columns: Sequence[Label]) -> list[float]:
    """Label counts on a logarithmic axis; whatever is no single number at equal distances."""
    if all(len(column) == 1 and isinstance(column[0], int) for column in columns):
        return [math.log2(float(column[0])) for column in columns]
    return [float(i) for i in range(len(columns))]
