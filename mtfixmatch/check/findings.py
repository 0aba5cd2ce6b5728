"""The findings of a data check."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ..tasks import Task
from ..tasks.base import Statistics
from ..utils.errors import InputError

MAX_LINES = 20  # errors or warnings of one kind


class Pool(NamedTuple):
    """Images from which a part of each batch is drawn.

    Attributes:
        name: description of the images.
        per_batch: number of images in a batch.
        indices: indices of the records.
    """

    name: str
    per_batch: int
    indices: list[int]


@dataclass
class Split:
    """The images and labels of training or validation.

    Attributes:
        name: "training" or "validation".
        datasets: names of the datasets.
        images: number of images.
        labels: label key -> labeled images; also "all" -> images with all labels and "none".
        hidden: label key -> images whose label is hidden from training.
        sizes: (width, height) in pixels -> images.
        statistics: task name -> label statistics of the images that batches are drawn from.
    """

    name: str
    datasets: list[str]
    images: int
    labels: dict[str, int]
    hidden: dict[str, int]
    sizes: Counter
    statistics: dict[str, Statistics]


@dataclass
class Findings:
    """All findings of a check.

    Attributes:
        tasks: tasks of MODEL.TASKS.
        splits: training, validation.
        pools: pools of the training batches, each with its `count_labels`.
        ignored: dataset -> reason -> number of objects that its reader ignored.
        num_decoded: number of decoded images.
        warnings: lines about what may be a mistake.
        errors: lines about what must be corrected.
    """

    tasks: list[Task]
    splits: list[Split] = field(default_factory=list)
    pools: list[tuple[Pool, dict[str, int]]] = field(default_factory=list)
    ignored: dict[str, Counter] = field(default_factory=dict)
    num_decoded: int = 0
    warnings: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def attempt(self, function: Callable[..., Any], *args: Any) -> Any:
        """Return the result of a function, or None after an InputError, which is added."""
        try:
            return function(*args)
        except InputError as error:
            self.errors.append(str(error))
            return None


def limit_lines(lines: Sequence[str]) -> list[str]:
    """Return the first MAX_LINES lines and, if there are more, a line with their number."""
    more = len(lines) - MAX_LINES
    return [*lines[:MAX_LINES], *([f"and {more} more like the last one"] if more > 0 else [])]
