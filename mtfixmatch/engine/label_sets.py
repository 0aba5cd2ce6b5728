"""A picture of which images are labeled for which tasks (paper Fig. 1)."""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..data.record_table import has_labels
from ..data.records import Record

LABEL_SETS = "labels.png"  # of a training and of a data check
Combination = tuple[bool, ...]  # for each task, whether it is labeled

WIDTH = 9.0  # of the picture in inches
BAR = 0.34  # height of a task's bar in inches
MARGIN = 0.5  # height of a panel's title and of the gap below it in inches
# A number of five digits fits into this share of the width; many combinations get less.
MIN_SHARE = 0.075


class LabelSets(NamedTuple):
    """The labels of a set of images: a panel of the picture."""

    title: str
    tasks: list[str]
    groups: dict[Combination, int]  # images with each combination of labels, in drawing order

    @property
    def num_images(self) -> int:
        """Number of all images, labeled or not."""
        return sum(self.groups.values())


def label_sets(title: str, records: Iterable[Record], keys: Mapping[str, str]) -> LabelSets:
    """Group images by their labels; a hidden label counts as none.

    The `keys` are task name -> label key. Neighboring groups differ in as few tasks as possible, so
    that with one or two tasks the labeled images of each form one piece.
    """
    rows, counts = np.unique(has_labels(records, [*keys.values()]), axis=0, return_counts=True)
    groups = dict(zip(map(tuple, rows.tolist()), counts.tolist(), strict=True))
    ordered = sorted(groups, key=_gray_rank, reverse=True)
    return LabelSets(title, list(keys), {labels: groups[labels] for labels in ordered})


def _gray_rank(labels: Combination) -> tuple[bool, ...]:
    """Return the binary digits of the position in the Gray code, where no label is the first."""
    return tuple(np.logical_xor.accumulate(labels).tolist())


def group_widths(counts: Sequence[int]) -> np.ndarray:
    """Return the share of the width for each group, (G,), which add up to 1.

    Each group has MIN_SHARE or less, so that its number can be read, and the rest is in proportion
    to the counts. So 8 of 1,200 images are seen as well as 143 of 73,570.
    """
    share = min(MIN_SHARE, 0.8 / len(counts))
    return share + (1 - share * len(counts)) * np.array(counts) / sum(counts)


def draw_label_sets(panels: Sequence[LabelSets], path: str | os.PathLike) -> None:
    """Write the picture of `label_figure` as a PNG."""
    label_figure(panels).savefig(path, dpi=100)


def label_figure(panels: Sequence[LabelSets]) -> Figure:
    """Draw a panel for each set of images: a bar per task, colored where its images are labeled.

    Each part of a bar has the number of its images, and each set has one image or more.
    """
    names = dict.fromkeys(task for panel in panels for task in panel.tasks)
    colors = {task: f"C{i % 10}" for i, task in enumerate(names)}
    heights = [BAR * len(panel.tasks) + MARGIN for panel in panels]
    figure = Figure(figsize=(WIDTH, sum(heights)), layout="constrained")
    axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)
    for axis, panel in zip(axes[:, 0], panels, strict=True):
        _draw_panel(axis, panel, colors)
    return figure


def _draw_panel(axis: Axes, panel: LabelSets, colors: Mapping[str, str]) -> None:
    widths = group_widths(list(panel.groups.values()))
    lefts = np.cumsum(widths) - widths
    names = []
    for row, task in enumerate(panel.tasks):
        parts = [(labels[row], count) for labels, count in panel.groups.items()]
        fill = [colors[task] if labeled else "0.9" for labeled, _ in parts]
        axis.barh(row, widths, left=lefts, height=0.86, color=fill, edgecolor="white")
        for x, (labeled, count) in zip(lefts + widths / 2, parts, strict=True):
            text = axis.text(x, row, f"{count:,}", ha="center", va="center", fontsize=9)
            text.set(color="white" if labeled else "0.45", weight="bold" if labeled else "normal")
        names.append(f"{task}: {sum(count for labeled, count in parts if labeled):,}")
    axis.set_yticks(range(len(names)), names, fontsize=9)
    axis.set_title(f"{panel.title}: {panel.num_images:,} images", fontsize=10, loc="left")
    axis.set_xlim(0, 1)
    axis.invert_yaxis()
    axis.set_xticks([])
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
