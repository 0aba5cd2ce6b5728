"""Curves over the columns of a block: ours with error bars, the paper's dashed."""

import math
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from .cells import Block, Cell, Position
from .figures import OURS, PAPER, Metric
from .tables import label

matplotlib.use("Agg")
from matplotlib import pyplot as plt


def draw_curves(block: Block, title: str, path: Path) -> bool:
    """Draw a panel per metric of a block with a line per row; return False if no run is done."""
    if not any(cell.values for cell in block.cells.values()):
        return False
    metrics = block.layout.metrics
    figure, axes = plt.subplots(1, len(metrics), figsize=(5.2 * len(metrics), 4.6), squeeze=False)
    for axis, metric in zip(axes[0], metrics, strict=True):
        _draw_panel(axis, block, metric)
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


def _draw_panel(axis: Axes, block: Block, metric: Metric) -> None:
    measured = {position.column for position in block.cells if position.metric == metric}
    columns = [column for column in block.columns if column in measured]
    # Single label counts stand at their logarithms, other columns at equal distances.
    positions = np.arange(len(columns), dtype=float)
    if all(len(column) == 1 and isinstance(column[0], int) for column in columns):
        positions = np.array([math.log2(float(column[0])) for column in columns])
    for index, row in enumerate(block.rows):
        shift = 0.03 * (index - (len(block.rows) - 1) / 2)  # puts the error bars side by side
        cells = [block.cells.get(Position(row, column, metric), Cell()) for column in columns]
        for source, style, alpha in ((PAPER, "x--", 0.45), (OURS, "o-", 1.0)):
            y = np.array([cell.value(source) for cell in cells], dtype=float)  # None becomes nan
            spreads = [cell.spread or 0.0 for cell in cells] if source == OURS else None
            axis.errorbar(
                positions + shift, y, yerr=spreads, fmt=f"C{index % 10}{style}", alpha=alpha,
                markersize=4, capsize=3, linewidth=1.3,
            )  # fmt: skip
    axis.set_title(metric.name)
    axis.set_xlabel(label(block.layout.columns), fontsize=9)
    axis.set_xticks(positions, [label(column) for column in columns], fontsize=9)
    axis.grid(alpha=0.3)
