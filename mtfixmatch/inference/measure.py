"""Measure a network's scores on labeled images, and choose the thresholds of its labels."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from detectron2.config import CfgNode
from torch import nn

from ..data.loader import eval_records
from ..data.records import Record
from ..tasks import Task
from ..tasks.auto_labels import ScoreMeter, Thresholds
from ..utils.errors import InputError, check_choice
from ..utils.files import real_paths
from .results import network_results
from .thresholds import choose_threshold

TEST, HIDDEN = SOURCES = ("test", "hidden")
MOST_FOLDS = 100


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How thresholds are measured and chosen.

    Attributes:
        precision: share in (0, 1] of right ones that the labels of each class must have.
        lower: share from which on predictions are ignored and not background, at most `precision`.
        least: number of predictions, or of images for maps, that a precision must rest on.
        source: what is measured on, see `measured_records`.
        folds: parts of the labeled images, each of which is measured with the thresholds that the
            others choose; 1: all images choose the thresholds and are measured with them.
    """

    precision: float = 0.9
    lower: float = 0.3
    least: int = 10
    source: str = TEST
    folds: int = 5

    def __post_init__(self):
        """Raise InputError for values that cannot be used."""
        if not 0 < self.lower <= self.precision <= 1:
            values = f"precision {self.precision} and lower {self.lower}"
            raise InputError(f"{values}: expected 0 < lower <= precision <= 1")
        if self.least < 1:
            raise InputError(f"least {self.least}: expected 1 or more")
        if not 1 <= self.folds <= MOST_FOLDS:
            raise InputError(f"folds {self.folds}: expected 1 to {MOST_FOLDS}")
        check_choice("measure-on", self.source, SOURCES)


def measured_records(
    cfg: CfgNode, tasks: Sequence[Task], training: Sequence[Record], source: str
) -> Sequence[Record]:
    """Return labeled images that the network was not trained on.

    Args:
        cfg: config of the data.
        tasks: the tasks.
        training: training images, with labels hidden.
        source: "test": the images of DATASETS.TEST; "hidden": the training images whose label
            TASKS.<NAME>.LABELS or DATASETS.LABEL_MANIFEST hides, with this label alone.

    Raises:
        InputError: there is no such image, or one is labeled in the training.
    """
    records: Sequence[Record]
    if source == HIDDEN:
        records = [_only_hidden(record, tasks) for record in training if record.get("hidden")]
    else:
        records = eval_records(cfg, tasks)
        _check_apart(records, training, tasks)
    if not records:
        hint = "name a labeled dataset in DATASETS.TEST, or hide labels and measure on them"
        raise InputError(f"no labeled image to measure on ({source}): {hint}")
    return records


def with_hidden_labels(record: Record) -> Record:
    """Return a record with the labels that were hidden from the training."""
    shown = {key: value for key, value in record.items() if key != "hidden"}
    return shown | record.get("hidden", {})


def _only_hidden(record: Record, tasks: Sequence[Task]) -> Record:
    keys = {task.label_key for task in tasks}
    return {key: value for key, value in record.items() if key not in keys} | record["hidden"]


def _check_apart(
    measured: Sequence[Record], training: Sequence[Record], tasks: Sequence[Task]
) -> None:
    """Raise InputError if an image is measured on that the network has learned the label of."""
    labeled = (x for x in training if any(task.label_key in x for task in tasks))
    learned = set(real_paths(x["file_name"] for x in labeled))
    files = [x["file_name"] for x in measured]
    both = [x for x, real in zip(files, real_paths(files), strict=True) if real in learned]
    if both:
        what = f"{len(both)} images of DATASETS.TEST are labeled training images"
        raise InputError(f"{what}, such as {both[0]}: precision is measured on other images")


def measure_thresholds(
    model: nn.Module,
    cfg: CfgNode,
    tasks: Sequence[Task],
    records: Sequence[Record],
    settings: Settings,
) -> dict[str, Thresholds]:
    """Return the thresholds of the classes of each task; see `choose_threshold`.

    Raises:
        InputError: an image cannot be read, or no class of any task reaches the precision.
    """
    meters = {task.name: [task.score_meter() for _ in range(settings.folds)] for task in tasks}
    results = network_results(model, cfg, records, "measuring")
    for result, record in zip(results, records, strict=True):
        if isinstance(result, InputError):
            raise result
        for task in tasks:
            if task.label_key in record:
                meters[task.name][fold_of(record, settings.folds)].add(record, result)
    thresholds = {name: _thresholds(parts, settings) for name, parts in meters.items()}
    if not any(x for own in thresholds.values() for x in own):
        what = f"no class reaches a precision of {settings.precision} on {len(records)} images"
        least = f"with {settings.least} predictions or more"
        if settings.folds > 1:
            least += f", cross-fitted in {settings.folds} parts"
        raise InputError(f"{what} {least}: lower --precision or --least, or label more images")
    return thresholds


def fold_of(record: Record, folds: int) -> int:
    """Return the part of an image, 0 to `folds` - 1: a hash of its id, whatever the others are."""
    digest = hashlib.sha256(str(record["image_id"]).encode()).digest()
    return int.from_bytes(digest[:8], "big") % folds


def _thresholds(parts: Sequence[ScoreMeter], settings: Settings) -> Thresholds:
    lower = settings.lower if parts[0].has_lower else settings.precision
    limits = (settings.precision, lower, settings.least)
    classes = zip(*(part.scores() for part in parts), strict=True)
    return [choose_threshold(scores, *limits) for scores in classes]
