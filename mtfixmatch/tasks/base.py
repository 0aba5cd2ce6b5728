"""The contract between a kind of task and the rest of the package, which never names one.

A kind of task has two sides. `Task` is light and picklable: its config, its targets and how they
move, its evaluator; data workers hold it. `TaskHead` is the `nn.Module` on top of the shared
backbone: outputs, losses, predictions. A task is a named instance of a kind: two segmentation tasks
with classes of their own can live in one network.

A *target* is what one image should give: boxes, a label map, whatever the kind decides; only its
own kind looks inside. `None` stands for the target of an image that is not labeled for the task.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from detectron2.config import CfgNode, configurable
from detectron2.evaluation import DatasetEvaluator
from detectron2.layers import ShapeSpec
from detectron2.utils.colormap import colormap
from fvcore.common.registry import Registry
from torch import Tensor, nn

from ..augmentation.geometry import Size
from ..utils.errors import InputError

Target = Any
# The predictions for N images before any threshold, one per index: boxes with scores, logits, ...
Predictions = Any
Threshold = float | Tensor  # the least confidence, or one for each class (K,)
Outputs = tuple[Tensor, ...]  # of a head, each (N, ...) with the images first
# (paths, picklable function of one path) -> its results; None where it raised InputError.
Scan = Callable[[Sequence[str], Callable[[str], Any]], list[Any]]

TASK_REGISTRY = Registry("TASK")
TASK_REGISTRY.__doc__ = "Kinds of tasks by class name, for TASKS.<NAME>.KIND."


@dataclass
class Assigned:
    """The target of one image in the shape of the head's outputs.

    Attributes:
        tensors: ready for the loss, without the dimension of the images.
        count: scalar, number of elements that the loss is a mean over (positive anchors, pixels).
    """

    tensors: tuple[Tensor, ...]
    count: Tensor


@dataclass
class Statistics:
    """Label statistics of some images, as people want to read them.

    Attributes:
        counts: by class, the number of what the task counts; empty for a kind without classes.
        figures: other figures by their name with the unit.
    """

    counts: dict[str, int]
    figures: dict[str, int | str] = field(default_factory=dict)


class Task(ABC):
    """A task without its network.

    Attributes:
        default_name: the task of this kind that needs no configuration. Its record, metadata and
            result keys are Detectron2's; those of other tasks have their name in front.
        label_field: key of the label in a record.
        metadata_field: key of the class names in the metadata of a dataset; "": no classes.
        result_field: key of the model's output for an image.
        metric: name of the one figure in [0, 1] that enters the geometric mean.
        unit: unit of the label statistics, plural.
        fills_pixels: its labels cover the picture, so other tasks are drawn over them.
        tuning_keys: keys of its config to look at when its pseudo-labels go wrong.
        target_types: classes in its targets that a file of tensors must be allowed to hold.
        loss_parts: names of the terms of its loss.
    """

    default_name: ClassVar[str]
    label_field: ClassVar[str]
    metadata_field: ClassVar[str] = ""
    result_field: ClassVar[str]
    metric: ClassVar[str]
    unit: ClassVar[str]
    fills_pixels: ClassVar[bool] = False
    tuning_keys: ClassVar[tuple[str, ...]] = ("THRESHOLD", "UNSUPERVISED_WEIGHT")
    target_types: ClassVar[tuple[type, ...]] = ()
    loss_parts: tuple[str, ...]

    @configurable
    def __init__(
        self,
        *,
        name: str,
        class_names: Sequence[str] = (),
        colors: Sequence[Sequence[int]] = (),
        loss_weight: float = 1.0,
        unsupervised_weight: float = 1.0,
        num_labels: int = -1,
    ):
        """Set what every task has.

        Args:
            name: in MODEL.TASKS, cfg.TASKS (upper case) and the names of losses and metrics.
            class_names: in the order of their ids; empty for a kind without classes.
            colors: RGB in 0-255 of each class; empty: a palette.
            loss_weight: gamma of Eq. 5.
            unsupervised_weight: lambda of Eq. 5 after the ramp-up.
            num_labels: training images that keep their label; -1: all.
        """
        self.name = name
        self.class_names = list(class_names)
        self.colors = [list(color) for color in colors] or palette(len(self.class_names))
        self.loss_weight = loss_weight
        self.unsupervised_weight = unsupervised_weight
        self.num_labels = num_labels

    @classmethod
    def from_config(cls, cfg: CfgNode, name: str) -> dict[str, Any]:
        """Read cfg.TASKS.<NAME>."""
        node = cfg.TASKS[name.upper()]
        return {
            "name": name,
            "class_names": node.CLASSES,
            "colors": node.COLORS,
            "loss_weight": node.LOSS_WEIGHT,
            "unsupervised_weight": node.UNSUPERVISED_WEIGHT,
            "num_labels": node.LABELS,
        }

    @classmethod
    def default_config(cls) -> CfgNode:
        """The keys of a task of this kind, those that every task has first."""
        node = CfgNode()
        # Kind of the task, a name in TASK_REGISTRY.
        node.KIND = cls.__name__
        # Names and RGB colors of the classes. Empty: those of DATASETS.TRAIN, which a run writes
        # here, so that its config and weights can be used without the dataset.
        node.CLASSES = []
        node.COLORS = []
        # Weight of the task in the total loss, gamma of Eq. 5.
        node.LOSS_WEIGHT = 1.0
        # Weight of its unsupervised loss after the ramp-up, lambda of Eq. 5.
        node.UNSUPERVISED_WEIGHT = 1.0
        # Least confidence of a pseudo-label, sigma of Sec. 3.
        node.THRESHOLD = 0.0
        # Training images that keep their label for this task; -1: all. Others are hidden.
        node.LABELS = -1
        return node

    @classmethod
    def add_config(cls, cfg: CfgNode) -> None:
        """Add the keys of the task of this kind's default name, and of its heads, to `cfg`."""
        cfg.TASKS[cls.default_name.upper()] = cls.default_config()

    @classmethod
    @abstractmethod
    def head_node(cls, cfg: CfgNode, name: str) -> str:
        """Name the node of cfg.MODEL with the head's IN_FEATURES and, with classes, NUM_CLASSES."""

    @classmethod
    def key_of(cls, field: str, name: str) -> str:
        """A key of records, metadata or results for the task `name` of this kind."""
        return field if name == cls.default_name else f"{name}_{field}"

    @property
    def label_key(self) -> str:
        """Key of a record; if it is absent, the image is not labeled for this task."""
        return self.key_of(self.label_field, self.name)

    @property
    def metadata_key(self) -> str:
        """Key of the class names in the metadata of a dataset."""
        return self.key_of(self.metadata_field, self.name)

    @property
    def result_key(self) -> str:
        """Key of the task's output in the model's result for an image."""
        return self.key_of(self.result_field, self.name)

    @abstractmethod
    def build_head(self, cfg: CfgNode, shapes: dict[str, ShapeSpec]) -> "TaskHead":
        """Build the head for features of the given shapes."""

    @abstractmethod
    def load_target(self, record: dict) -> Target:
        """Read the label of a record that has one, in the frame of the whole image."""

    @abstractmethod
    def warp_target(
        self, target: Target, matrix: Tensor, size: Size, erased: Tensor | None = None
    ) -> Target:
        """Move a target by a (3, 3) matrix into an image of `size`.

        Args:
            target: of one image.
            matrix: in corner coordinates, see augmentation.geometry.
            size: (height, width) of the image it moves to.
            erased: (H, W) bool, pixels of that image that show nothing of the scene.
        """

    def least_score(self, threshold: Threshold) -> float:
        """The score from which on predictions matter to pseudo-labels with this threshold."""
        return float(threshold.min() if isinstance(threshold, Tensor) else threshold)

    @abstractmethod
    def pseudo_labels(
        self, predictions: Predictions, threshold: Threshold, valid: Tensor
    ) -> list[Target]:
        """Turn confident predictions for N weak views into targets.

        Args:
            predictions: of `TaskHead.predict`.
            threshold: the least confidence.
            valid: (N, 4) boxes, the part of each view that shows the image and not padding.
        """

    @abstractmethod
    def evaluator(self, records: Sequence[dict]) -> DatasetEvaluator:
        """Build an evaluator for the records that are labeled for this task.

        Its `evaluate` returns, on the main process, {metric: value} with values in [0, 1] and, for
        a kind with classes, "per_class": {name: value}, nan for a class that never occurs.
        """

    @abstractmethod
    def statistics(self, records: Sequence[dict], scan: Scan) -> Statistics:
        """Compute label statistics.

        Args:
            records: those labeled for this task; there may be none.
            scan: runs a function on many files, in parallel, and reports bad files itself.
        """

    @abstractmethod
    def result_target(self, result: dict, threshold: float) -> Target:
        """Turn the model's output for one image into a target, to draw it."""

    @abstractmethod
    def draw(self, image: np.ndarray, target: Target) -> np.ndarray:
        """Draw a target over an RGB image (H, W, 3) uint8 and return the picture."""

    def count_classes(self, targets: Sequence[Target]) -> list[int]:
        """Count what is `counted` in targets, by class; [] for a kind without classes."""
        return []

    @abstractmethod
    def diagnose(
        self, pseudo: Sequence[Target], labels: Sequence[Target | None]
    ) -> dict[str, float]:
        """Measure pseudo-labels, against labels hidden from training where there are any."""


class TaskHead(nn.Module, ABC):
    """The task's part of the network and what follows from its outputs.

    Attributes:
        in_features: names of the backbone's features that it reads.
    """

    in_features: Sequence[str]

    @abstractmethod
    def forward(self, features: dict[str, Tensor]) -> Outputs:
        """Features of N images to outputs, each (N, ...)."""

    @abstractmethod
    def assign(
        self, targets: Sequence[Target], is_pseudo: Sequence[bool], size: Size
    ) -> list[Assigned]:
        """Bring the targets of training images of `size` into the shape of the outputs."""

    @abstractmethod
    def normalizer(self, count: float, *, is_pseudo: bool) -> float:
        """Return what the summed loss is divided by, from the count over the global batch.

        It may keep a running mean, apart for the supervised and the unsupervised loss.
        """

    @abstractmethod
    def losses(
        self, outputs: Outputs, assigned: Sequence[Assigned], size: Size
    ) -> dict[str, Tensor]:
        """Compute each of the task's `loss_parts`, summed over N >= 1 images of `size`."""

    @abstractmethod
    def predict(self, outputs: Outputs, size: Size, least_score: float) -> Predictions:
        """Decode the outputs for N training images of `size`.

        Args:
            outputs: of the head.
            size: (height, width) of the images.
            least_score: predictions with a lower score may be left out.
        """

    @abstractmethod
    def inference(
        self, outputs: Outputs, size: Size, image_size: Size, output_sizes: Sequence[Size]
    ) -> list[Any]:
        """Compute the results of N images of one size, in Detectron2's format where it has one.

        Args:
            outputs: of the head.
            size: (height, width) of the images with padding.
            image_size: without padding.
            output_sizes: of the results.
        """

    @abstractmethod
    def agreement(self, outputs: Outputs, assigned: Sequence[Assigned]) -> float:
        """Return the share of labeled elements for which the outputs agree with the target."""


def palette(count: int) -> list[list[int]]:
    """Return `count` RGB colors in 0-255, Detectron2's."""
    colors = colormap(rgb=True, maximum=255).astype(int).tolist()
    return [colors[i % len(colors)] for i in range(count)]


def add_task_config(cfg: CfgNode) -> None:
    """Add MODEL.TASKS and, for each registered kind, a task of its default name to `cfg`."""
    kinds = [kind for _, kind in TASK_REGISTRY]
    # The tasks to train: names of nodes in cfg.TASKS, in lower case.
    cfg.MODEL.TASKS = sorted(kind.default_name for kind in kinds)
    # A config file may add tasks: a node with the key KIND.
    cfg.TASKS = CfgNode(new_allowed=True)
    for kind in kinds:
        kind.add_config(cfg)


def complete_task_config(cfg: CfgNode) -> None:
    """Give the tasks that a config file has added the default values of their kind.

    Raises:
        InputError: for a task without a registered kind or with a key that its kind does not have.
    """
    for name, given in cfg.TASKS.items():
        kind = given.get("KIND", "") if isinstance(given, CfgNode) else ""
        if kind not in TASK_REGISTRY:
            kinds = ", ".join(name for name, _ in TASK_REGISTRY)
            raise InputError(f"TASKS.{name}.KIND is {kind!r}: it must be one of {kinds}")
        node = TASK_REGISTRY.get(kind).default_config()
        try:
            node.merge_from_other_cfg(given)
        except (KeyError, ValueError) as error:
            raise InputError(f"TASKS.{name}: {error.args[0]}") from None
        cfg.TASKS[name] = node


def task_kinds(cfg: CfgNode) -> dict[str, type[Task]]:
    """Return the tasks of MODEL.TASKS in their order, name -> kind.

    Raises:
        InputError: if MODEL.TASKS is empty, repeats a name or names an unknown task.
    """
    names = list(cfg.MODEL.TASKS)
    unknown = [name for name in names if name.upper() not in cfg.TASKS]
    if unknown or not names or len(set(names)) != len(names):
        known = sorted(name.lower() for name in cfg.TASKS)
        raise InputError(
            f"MODEL.TASKS is {names}: it must name one or more of {known}, each of them once"
        )
    return {name: TASK_REGISTRY.get(cfg.TASKS[name.upper()].KIND) for name in names}


def build_tasks(cfg: CfgNode) -> list[Task]:
    """Build the tasks that MODEL.TASKS names, in its order."""
    return [kind(cfg, name) for name, kind in task_kinds(cfg).items()]


def in_features(cfg: CfgNode) -> set[str]:
    """Return the names of the backbone's features that the heads of MODEL.TASKS read."""
    nodes = [kind.head_node(cfg, name) for name, kind in task_kinds(cfg).items()]
    return {feature for node in nodes for feature in cfg.MODEL[node].IN_FEATURES}


def set_classes(cfg: CfgNode, name: str, class_names: Sequence[str], colors: Sequence = ()) -> None:
    """Write the classes of a task into its config.

    Raises:
        InputError: if the config names other classes, or another number of them.
    """
    node = cfg.TASKS[name.upper()]
    if node.CLASSES and list(node.CLASSES) != list(class_names):
        raise InputError(
            f"TASKS.{name.upper()}.CLASSES is {list(node.CLASSES)}, but "
            f"{list(cfg.DATASETS.TRAIN)} has {list(class_names)} (an empty list takes them)"
        )
    head = task_kinds(cfg)[name].head_node(cfg, name)
    if cfg.MODEL[head].NUM_CLASSES not in (0, len(class_names)):
        raise InputError(
            f"MODEL.{head}.NUM_CLASSES is {cfg.MODEL[head].NUM_CLASSES}, but "
            f"{list(cfg.DATASETS.TRAIN)} has {len(class_names)} classes for {name} (0 takes them)"
        )
    node.CLASSES = list(class_names)
    node.COLORS = node.COLORS or [list(map(int, color)) for color in colors]
