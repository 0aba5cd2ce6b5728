"""The findings of a data check, and the warnings of the dataset readers during it."""

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from ..tasks import Task
from ..tasks.base import Statistics
from ..utils.errors import InputError
from ..utils.files import write_atomically
from ..utils.notes import Notes

MAX_LINES = 20  # errors or warnings of one kind
NOTES = "left_out.txt"  # file in the folder of a check
READERS = "mtfixmatch.data"  # parent of the loggers of the readers and of the loader


class Pool(NamedTuple):
    """Images from which a part of each batch is drawn."""

    name: str
    per_batch: int
    indices: np.ndarray  # of the records


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
    noted: bool = False  # whether there is a file of all that the readers noted
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


def write_notes(notes: Mapping[str, Notes], path: str) -> bool:
    """Write a line for each case that the readers noted, and return whether there is one."""
    lines = [
        f"{dataset}: {kind}: {line}\n"
        for dataset, x in notes.items()
        for kind, cases in x.lines.items()
        for line in cases
    ]
    if lines:
        write_atomically(path, "".join(lines))
    return bool(lines)


def limit_lines(lines: Sequence[str]) -> list[str]:
    """Return the first MAX_LINES lines and, if there are more, a line with their number."""
    more = len(lines) - MAX_LINES
    return [*lines[:MAX_LINES], *([f"and {more} more like the last one"] if more > 0 else [])]


class ReaderWarnings(logging.Handler):
    """Context manager that collects each reader warning once and drops the other log lines."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a warning once, however often the files are read."""
        if (message := record.getMessage()) not in self.messages:
            self.messages.append(message)

    def __enter__(self) -> "ReaderWarnings":
        logging.getLogger(READERS).addHandler(self)
        logging.getLogger(READERS).propagate = False
        return self

    def __exit__(self, *_) -> None:
        logging.getLogger(READERS).removeHandler(self)
        logging.getLogger(READERS).propagate = True
