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
    """Images from which a part of each batch is drawn."""

    name: str
    per_batch: int
    indices: list[int]  # of the records


@dataclass
class Split:
    """The images and labels of training or validation."""

    name: str  # "training" or "validation"
    datasets: list[str]
    images: int  # number of them
    labels: dict[str, int]  # label key -> labeled images, and "all" or "none" of the keys
    hidden: dict[str, int]  # label key -> images whose label is hidden from training
    sizes: Counter  # (width, height) in pixels -> images
    statistics: dict[str, Statistics]  # by task, of the images that batches are drawn from


@dataclass
class Findings:
    """All findings of a check: warnings may be mistakes, errors must be corrected."""

    tasks: list[Task]
    splits: list[Split] = field(default_factory=list)  # training, validation
    pools: list[tuple[Pool, dict[str, int]]] = field(default_factory=list)  # with `count_labels`
    ignored: dict[str, Counter] = field(default_factory=dict)  # dataset -> reason -> objects
    num_decoded: int = 0  # images
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
