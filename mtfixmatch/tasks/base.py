"""The contract between a task and the rest of the package, which never names one.

A task has two sides. `Task` is light and picklable: its config, its targets and how they move, its
evaluator; data workers hold it. `TaskHead` is the `nn.Module` on top of the shared backbone: raw
outputs, losses, pseudo-labels, results.

A *target* is what one image should give: boxes, a label map, whatever the task decides; only its
own task looks inside. `None` stands for the target of an image that is not labeled for the task.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from ..augmentation.geometry import Size
from ..utils.errors import InputError

Target = Any
Raw = tuple[Tensor, ...]  # a head's outputs, each with the images of the batch first
# (paths, picklable function of one) -> its result on each; None where it raised InputError.
Scan = Callable[[Sequence[str], Callable[[str], Any]], list[Any]]


@dataclass
class Assigned:
    """Targets of some images, put into the shape of the head's raw outputs.

    Attributes:
        tensors: each with the images first, ready for the loss.
        count: elements that the loss is a mean over (positive anchors, valid pixels).
    """

    tensors: tuple[Tensor, ...]
    count: float

    def rows(self, rows: Sequence[int]) -> "Assigned":
        """The same for some of the images; `count` stays that of all of them."""
        return Assigned(tuple(tensor[list(rows)] for tensor in self.tensors), self.count)


@dataclass
class Statistics:
    """What the labels of some images hold, as people want to read it.

    Attributes:
        counts: by class, how many there are of what the task counts; 0 for one that never occurs.
        figures: whatever else tells of the labels, by its name with the unit.
    """

    counts: dict[str, int]
    figures: dict[str, int | str] = field(default_factory=dict)


class Task(ABC):
    """One task: everything about it that does not need the network.

    Attributes:
        name: in MODEL.TASKS, in cfg.TASKS (upper case) and in the names of losses and metrics.
        label_key: of the record; absent there: the image is not labeled for this task.
        metadata_key: of the dataset's metadata, where the class names are.
        head_config: node of cfg.MODEL that configures the head, with IN_FEATURES and NUM_CLASSES.
        metric: name of the one figure that enters the geometric mean.
        loss_parts: names of the terms of its loss.
        counted: what its labels are counted in, plural.
        fills_pixels: its labels cover the picture, so that others are drawn over them.
        teacher_keys: of its config, those to look at when its pseudo-labels go wrong.
    """

    name: ClassVar[str]
    label_key: ClassVar[str]
    metadata_key: ClassVar[str]
    head_config: ClassVar[str]
    metric: ClassVar[str]
    loss_parts: ClassVar[tuple[str, ...]]
    counted: ClassVar[str]
    fills_pixels: ClassVar[bool] = False
    teacher_keys: ClassVar[tuple[str, ...]] = ("THRESHOLD", "UNSUPERVISED_WEIGHT")

    def __init__(self, cfg: CfgNode):
        node = cfg.TASKS[self.name.upper()]
        self.loss_weight: float = node.LOSS_WEIGHT
        self.unsupervised_weight: float = node.UNSUPERVISED_WEIGHT
        self.threshold: float = node.THRESHOLD
        self.num_labels: int = node.LABELS
        # Class names and colors, of the first dataset: all of them have the same.
        self.metadata = MetadataCatalog.get([*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST][0])
        self.class_names: list[str] = list(getattr(self.metadata, self.metadata_key))

    @classmethod
    def add_config(cls, cfg: CfgNode) -> None:
        """Add the task's keys to `cfg`, those that every task has first."""
        node = cfg.TASKS[cls.name.upper()] = CfgNode()
        # Weight of the task in the total loss, gamma of Eq. 5.
        node.LOSS_WEIGHT = 1.0
        # Weight of its unsupervised loss after the ramp-up, lambda of Eq. 5.
        node.UNSUPERVISED_WEIGHT = 1.0
        # Least confidence of a pseudo-label, sigma of Sec. 3.
        node.THRESHOLD = 0.0
        # Training images that keep their label for this task; -1: all. Others are hidden.
        node.LABELS = -1

    @classmethod
    def set_num_classes(cls, cfg: CfgNode, num_classes: int) -> None:
        """Write the dataset's number of classes where the head reads it.

        Raises:
            InputError: if another number stands there.
        """
        node = cfg.MODEL[cls.head_config]
        if node.NUM_CLASSES not in (0, num_classes):
            raise InputError(
                f"MODEL.{cls.head_config}.NUM_CLASSES is {node.NUM_CLASSES}, but "
                f"{list(cfg.DATASETS.TRAIN)} has {num_classes} classes for {cls.name} "
                "(0 takes the number from the dataset)"
            )
        node.NUM_CLASSES = num_classes

    @classmethod
    def in_features(cls, cfg: CfgNode) -> list[str]:
        """Names of the backbone's features that the head reads (res2..res5, p3..p7)."""
        return list(cfg.MODEL[cls.head_config].IN_FEATURES)

    @abstractmethod
    def build_head(self, cfg: CfgNode, shapes: dict[str, ShapeSpec]) -> "TaskHead":
        """The head for features of the given shapes."""

    @abstractmethod
    def load_target(self, record: dict) -> Target:
        """Read the label of a record that has one, in the frame of the whole image."""

    @abstractmethod
    def move_target(
        self, target: Target, matrix: Tensor, size: Size, erased: Tensor | None = None
    ) -> Target:
        """Move a target by a (3, 3) matrix into an image of `size`.

        Args:
            target: of one image.
            matrix: in corner coordinates, see augmentation.geometry.
            size: (height, width) of the image it moves to.
            erased: (H, W) bool, pixels of that image that show nothing of the scene.
        """

    @abstractmethod
    def evaluator(self, records: Sequence[dict]) -> DatasetEvaluator:
        """An evaluator for the records that are labeled for this task.

        Its `evaluate` returns, on the main process, {metric: value, "per_class": {name: value}}
        with values in [0, 1] and nan for a class that never occurs.
        """

    @abstractmethod
    def statistics(self, records: Sequence[dict], scan: Scan) -> Statistics:
        """Count what the labels hold.

        Args:
            records: those labeled for this task; there may be none.
            scan: runs a function on many files, in parallel, and reports the bad ones itself.
        """

    @abstractmethod
    def result_target(self, result: dict, threshold: float) -> Target:
        """The model's output for one image as a target, to draw it."""

    @abstractmethod
    def draw(self, image: np.ndarray, target: Target) -> np.ndarray:
        """Draw a target over an RGB image (H, W, 3) uint8 and return the picture."""

    def count_classes(self, targets: Sequence[Target]) -> list[int]:
        """How many of what is `counted` there are in targets, by class; [] if it has no classes."""
        return []

    @abstractmethod
    def diagnose(
        self, pseudo: Sequence[Target], known: Sequence[Target | None]
    ) -> dict[str, float]:
        """Measure pseudo-labels, against hidden but known labels where there are any."""


class TaskHead(nn.Module, ABC):
    """The task's part of the network and what follows from its raw outputs.

    Attributes:
        in_features: names of the backbone's features that it reads.
    """

    in_features: Sequence[str]

    @abstractmethod
    def forward(self, features: dict[str, Tensor]) -> Raw:
        """Features of N images to raw outputs, each (N, ...)."""

    @abstractmethod
    def assign(self, targets: Sequence[Target], size: Size, *, unsupervised: bool) -> Assigned:
        """Targets of training images of `size` in the shape of the raw outputs."""

    @abstractmethod
    def normalizer(self, count: float, *, unsupervised: bool) -> float:
        """What the summed loss is divided by, from the count over the whole global batch.

        It may remember (a running mean), apart for the supervised and the unsupervised loss.
        """

    @abstractmethod
    def losses(self, raw: Raw, assigned: Assigned) -> dict[str, Tensor]:
        """Each of the task's `loss_parts`, summed over the images."""

    @abstractmethod
    def pseudo_labels(self, raw: Raw, size: Size, valid: Tensor) -> list[Target]:
        """The confident predictions as targets.

        Args:
            raw: of N weak views.
            size: of those views.
            valid: (N, 4) boxes, the part of each view that shows the image and not padding.
        """

    @abstractmethod
    def inference(
        self, raw: Raw, size: Size, image_sizes: Sequence[Size], output_sizes: Sequence[Size]
    ) -> list[dict]:
        """Results in Detectron2's output format.

        Args:
            raw: of N images.
            size: of the batch they came in, padding included.
            image_sizes: of the images without padding.
            output_sizes: that the results should have.
        """

    @abstractmethod
    def agreement(self, raw: Raw, assigned: Assigned) -> float:
        """Share of labeled elements on which the raw outputs name the assigned class."""


class _TaskRegistry(dict[str, type[Task]]):
    """Task classes by name; `register` is the class decorator."""

    def register(self, task: type[Task]) -> type[Task]:
        """Add a task class under its name."""
        self[task.name] = task
        return task


TASK_REGISTRY = _TaskRegistry()


def get_task_classes(cfg: CfgNode) -> list[type[Task]]:
    """The classes that MODEL.TASKS names.

    Raises:
        InputError: if MODEL.TASKS is empty, repeats a name or names an unknown task.
    """
    names = list(cfg.MODEL.TASKS)
    unknown = [name for name in names if name not in TASK_REGISTRY]
    if unknown or not names or len(set(names)) != len(names):
        raise InputError(
            f"MODEL.TASKS is {names}: it must name one or more of {sorted(TASK_REGISTRY)}, "
            "each of them once"
        )
    return [TASK_REGISTRY[name] for name in names]


def build_tasks(cfg: CfgNode) -> list[Task]:
    """The tasks that MODEL.TASKS names, in its order."""
    return [task(cfg) for task in get_task_classes(cfg)]
