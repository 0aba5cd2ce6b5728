"""What a kind of task does to label images by a network's results (projects/autolabel.py).

A kind measures first: how often its predictions are right on labeled images, by class and score.
Then it labels what nobody has labeled, with a threshold for each class. A label has three states:
the class is there, it is not there, or it is unsure and to be ignored.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import numpy as np

from ..utils.errors import InputError

HUMAN = "human"  # provenance of a label that a network did not make


@dataclass(frozen=True, kw_only=True)
class ClassScores:
    """The predictions of a class on labeled images, by their scores.

    Attributes:
        scores: scores in [0, 1], (N,).
        total: number of predictions with each score, (N,).
        right: number of those that are right, (N,).
        reached: what is reached with each score, (N,), see `whole`.
        whole: what `reached` is a part of: the labeled objects, or all predicted pixels.
        support: number of labeled objects or images that the measurement rests on.
        trials: number of independent trials among the predictions; None: all are independent.
    """

    scores: np.ndarray
    total: np.ndarray
    right: np.ndarray
    reached: np.ndarray
    whole: int
    support: int
    trials: int | None = None


@dataclass(frozen=True, kw_only=True)
class ClassThreshold:
    """The threshold of a class, and what was measured with it.

    Attributes:
        upper: least score in [0, 1] of what is labeled.
        lower: least score in [0, 1] of what is ignored.
        precision: share of right predictions from `upper` on.
        interval: 95 % interval of the precision.
        share: share that is reached, see `ClassScores.whole`.
        support: see `ClassScores`.
    """

    upper: float
    lower: float
    precision: float
    interval: tuple[float, float]
    share: float
    support: int


Thresholds = Sequence[ClassThreshold | None]  # of each class; None: the class is left out


class Review(NamedTuple):
    """How unsure the label of a class in an image is.

    Attributes:
        class_name: name of the class.
        unsure: share in [0, 1] of what was predicted that is ignored.
        score: least or mean score in [0, 1] of what was predicted.
    """

    class_name: str
    unsure: float
    score: float


@dataclass(frozen=True, kw_only=True)
class AutoLabel:
    """The label of an image for one task.

    Attributes:
        keys: the keys of the record that hold it; empty: the image stays without a label.
        review: a row for each class that was predicted.
        boxes: its boxes as annotations of a record, with "provenance" and, of a network, "score";
            None: it has no boxes.
        num_classes: number of classes that the boxes are for.
        map_file: path of its map, a PNG of class ids; "": it has no map.
        provenance: who made the map.
    """

    keys: dict[str, Any] = field(default_factory=dict)
    review: Sequence[Review] = ()
    boxes: list[dict[str, Any]] | None = None
    num_classes: int = 0
    map_file: str = ""
    provenance: str = ""


@dataclass(frozen=True, kw_only=True)
class LabeledImage:
    """An image of the new dataset.

    Attributes:
        record: its record with the labels that were there.
        path: absolute path of its file.
        name: path below the folder that all images share.
        size: (height, width) in pixels.
        labels: task name -> label.
    """

    record: dict[str, Any]
    path: str
    name: str
    size: tuple[int, int]
    labels: dict[str, AutoLabel]


@dataclass(frozen=True, kw_only=True)
class WrittenLabels:
    """The label files of a task, for a config.

    Attributes:
        files: names of files and folders in the folder of the dataset.
        options: values of the task's keys in DATASETS.COCO_STYLE, see `own_config`.
        config: values of keys in TASKS.<NAME>.
    """

    files: list[str]
    options: dict[str, Any]
    config: dict[str, Any] = field(default_factory=dict)


class ScoreMeter(ABC):
    """Collects the scores of predictions on labeled images.

    Attributes:
        share_name: name of the share in `ClassScores.whole`.
        support_name: unit of `ClassScores.support`.
        has_lower: whether predictions between two thresholds are labeled as unsure.
    """

    share_name: ClassVar[str]
    support_name: ClassVar[str]
    has_lower: ClassVar[bool] = False

    @abstractmethod
    def add(self, record: dict, result: dict) -> None:
        """Add an image that is labeled for the task, and the network's result for it."""

    @abstractmethod
    def scores(self) -> list[ClassScores]:
        """Return the scores of each of the K classes."""


class AutoLabeler(ABC):
    """Labels the images of a dataset for one task."""

    @abstractmethod
    def label(self, record: dict, result: dict | None, name: str) -> AutoLabel:
        """Label an image; what a human has labeled is copied.

        Args:
            record: record of the image.
            result: the network's result for it; None: copy the human label alone.
            name: path of the image below the folder that all images share.
        """

    @abstractmethod
    def write(self, images: Sequence[LabeledImage]) -> WrittenLabels:
        """Write the labels of all images into the folder, as this project reads them."""


class AutoLabeled:
    """The part of a kind of task that labels images; a kind may be without it."""

    name: str

    def score_meter(self) -> ScoreMeter:
        """Return what measures the scores of this task.

        Raises:
            InputError: the kind of task does not label images.
        """
        raise self._refusal()

    def auto_labeler(self, thresholds: Thresholds, folder: str, provenance: str) -> AutoLabeler:
        """Return what labels images for this task.

        Args:
            thresholds: thresholds of the K classes.
            folder: existing folder of the new dataset.
            provenance: name of the network, for its labels.

        Raises:
            InputError: the kind of task does not label images.
        """
        raise self._refusal()

    def _refusal(self) -> InputError:
        kind = type(self).__name__
        hint = "leave it out of MODEL.TASKS"
        return InputError(f"{self.name}: tasks of the kind {kind} cannot be autolabeled; {hint}")
