"""The contract between a kind of task and the rest of the package, which never names one.

A kind of task has two classes. `Task` is light and picklable, and data workers hold it: config,
targets and their warp, evaluator. `TaskHead` is the `nn.Module` on top of the shared backbone:
outputs, losses, predictions. A task is a named instance of a kind: one network can have two
segmentation tasks with different classes.

A *target* is the label or pseudo-label of one image: boxes, a label map, or another type that only
its kind of task knows. The target of an image that is not labeled for a task is `None`. A *partial*
label covers a part of the image or of the classes, and the teacher labels the rest.
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
from ..utils.errors import check_choice
from .auto_labels import AutoLabeled
from .exported import ExportedTask, ExportingHead
from .own_labels import OwnLabelsReader
from .saving import SavedResults

Target = Any
# Predictions for N images before any threshold, indexed by image: boxes with scores, logits, ...
Predictions = Any
Threshold = float | Tensor  # least confidence in [0, 1], or one for each class (K,)
Outputs = tuple[Tensor, ...]  # outputs of a head, each (N, ...)
# Function of (paths or other picklable items, picklable function of one item) that returns the
# results of the latter for all items, None where it raised InputError.
Scan = Callable[[Sequence[Any], Callable[[Any], Any]], list[Any]]

TASK_REGISTRY = Registry("TASK")
TASK_REGISTRY.__doc__ = "Kinds of tasks by class name, for TASKS.<NAME>.KIND."


@dataclass
class Assigned:
    """The target of one image in the shape of the head's outputs.

    Attributes:
        tensors: arguments of the loss, without the batch dimension.
        count: scalar, the number of elements that the loss is a mean over: positive anchors, valid
            pixels.
    """

    tensors: tuple[Tensor, ...]
    count: Tensor


@dataclass
class Statistics:
    """Label statistics of a set of images.

    Attributes:
        counts: class name -> number of objects or pixels, see `Task.unit`; empty for a kind without
            classes.
        figures: description with its unit -> value of another figure.
        images: class name -> number of images labeled for it; empty if all are for all classes.
    """

    counts: dict[str, int]
    figures: dict[str, int | str] = field(default_factory=dict)
    images: dict[str, int] = field(default_factory=dict)


class Task(OwnLabelsReader, AutoLabeled, ExportedTask, SavedResults, ABC):
    """A task without its network.

    Attributes:
        default_name: name of the task of this kind that needs no configuration. Its record,
            metadata and result keys are Detectron2's; those of other tasks start with their name.
        label_field: key of the label in a record.
        partial_field: key of a record without which its label is not partial, see `is_partial`; "":
            unknown, so that each record is looked at.
        metadata_field: key of the class names in the metadata of a dataset; "": no classes.
        result_field: key of the task's output in the model's result for an image.
        metric: name of the primary metric, in [0, 1], higher is better.
        unit: unit of the label statistics, such as "objects" or "pixels".
        fills_pixels: whether its labels cover the whole image, so that other tasks are drawn last.
        tuning_keys: config keys of the task that a warning about its pseudo-labels names.
        target_types: classes of its targets, which the file of a step must be allowed to hold.
        normalizers: choices of TASKS.<NAME>.NORMALIZER, the default first.
        loss_parts: names of the loss terms.
    """

    default_name: ClassVar[str]
    label_field: ClassVar[str]
    partial_field: ClassVar[str] = ""
    metadata_field: ClassVar[str] = ""
    result_field: ClassVar[str]
    metric: ClassVar[str]
    unit: ClassVar[str]
    fills_pixels: ClassVar[bool] = False
    tuning_keys: ClassVar[tuple[str, ...]] = ("THRESHOLD", "UNSUPERVISED_WEIGHT")
    target_types: ClassVar[tuple[type, ...]] = ()
    normalizers: ClassVar[tuple[str, ...]] = ("image", "batch")
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
        normalizer: str = "image",
    ):
        """Set the attributes that every task has.

        Args:
            name: name in MODEL.TASKS, cfg.TASKS (upper case), losses and metrics.
            class_names: names of the K classes by id; empty for a kind without classes.
            colors: color of each class, RGB in 0-255; empty: Detectron2's palette.
            loss_weight: weight of the task in the total loss, gamma of Eq. 5.
            unsupervised_weight: weight of the unsupervised loss after the ramp-up, lambda of Eq. 5.
            num_labels: number of training images that keep their label; -1: all.
            normalizer: one of `normalizers`.
        """
        self.name = name
        self.class_names = list(class_names)
        self.colors = [list(color) for color in colors] or palette(len(self.class_names))
        self.loss_weight = loss_weight
        self.unsupervised_weight = unsupervised_weight
        self.num_labels = num_labels
        self.normalizer = normalizer

    @classmethod
    def from_config(cls, cfg: CfgNode, name: str) -> dict[str, Any]:
        """Read cfg.TASKS.<NAME>."""
        node = cfg.TASKS[name.upper()]
        check_choice(f"TASKS.{name.upper()}.NORMALIZER", node.NORMALIZER, cls.normalizers)
        return {
            "name": name,
            "class_names": node.CLASSES,
            "colors": node.COLORS,
            "loss_weight": node.LOSS_WEIGHT,
            "unsupervised_weight": node.UNSUPERVISED_WEIGHT,
            "num_labels": node.LABELS,
            "normalizer": node.NORMALIZER,
        }

    @classmethod
    def default_config(cls) -> CfgNode:
        """Return the config keys of a task of this kind with their default values."""
        node = CfgNode()
        # Kind of the task, a name in TASK_REGISTRY.
        node.KIND = cls.__name__
        # Names and RGB colors of the classes. Empty: a run fills in those of DATASETS.TRAIN, so
        # that its config and weights work without the dataset.
        node.CLASSES = []
        node.COLORS = []
        # Weight of the task in the total loss, gamma of Eq. 5.
        node.LOSS_WEIGHT = 1.0
        # Weight of the task's unsupervised loss after the ramp-up, lambda of Eq. 5.
        node.UNSUPERVISED_WEIGHT = 1.0
        # Least confidence of a pseudo-label, sigma of Sec. 3.
        node.THRESHOLD = 0.0
        # Number of training images that keep their label for this task, the others are hidden;
        # -1: all.
        node.LABELS = -1
        # What the losses are a mean over, Eq. 3-4: "image": over images, of the mean over an
        # image's positive anchors or valid pixels; "batch": over those of all images; "running",
        # for boxes only: divided by a running mean of their number, as in Detectron2's RetinaNet.
        node.NORMALIZER = cls.normalizers[0]
        return node

    @classmethod
    def add_config(cls, cfg: CfgNode) -> None:
        """Add the keys of the default task of this kind, and of its heads, to `cfg`."""
        cfg.TASKS[cls.default_name.upper()] = cls.default_config()

    @classmethod
    @abstractmethod
    def head_node(cls, cfg: CfgNode, name: str) -> str:
        """Name the head's node in cfg.MODEL, with IN_FEATURES and, with classes, NUM_CLASSES."""

    @classmethod
    def key_of(cls, field: str, name: str) -> str:
        """Return the key of a field in records, metadata or results for the task `name`."""
        return field if name == cls.default_name else f"{name}_{field}"

    @property
    def label_key(self) -> str:
        """Key of the label in a record; an image without it is not labeled for this task."""
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
        """Build the head for backbone features with these names and shapes."""

    @abstractmethod
    def load_target(self, record: dict) -> Target:
        """Read the label of a record that has one, in the coordinates of the whole image.

        Raises:
            InputError: the label cannot be read or does not fit the image.
        """

    def labeled_classes(self, record: dict) -> Sequence[int] | None:
        """Return the ids of the classes that a record's label is for; None: all.

        Raises:
            InputError: the record has a value that cannot be used.
        """
        return None

    def is_partial(self, record: dict) -> bool:
        """Whether a record's label is partial, so that the image needs a pseudo-label as well.

        Raises:
            InputError: the record has a value that cannot be used.
        """
        return self.labeled_classes(record) is not None

    def restrict_pseudo_label(self, pseudo: Target, label: Target) -> Target:
        """Restrict the pseudo-label of an image to what its partial label leaves.

        Args:
            pseudo: pseudo-label of the weak view.
            label: partial label of the same view.
        """
        raise NotImplementedError

    @abstractmethod
    def warp_target(
        self, target: Target, matrix: Tensor, size: Size, erased: Tensor | None = None
    ) -> Target:
        """Warp a target into another view of its image.

        Args:
            target: target of one image.
            matrix: (3, 3) affine, in corner coordinates, see augmentation.geometry.
            size: (height, width) of the view.
            erased: (H, W) bool, pixels of the view to ignore; None: none.
        """

    def warp_targets(
        self, targets: Sequence[Target], matrices: Tensor, size: Size, erased: Tensor | None = None
    ) -> list[Target]:
        """Warp N >= 1 targets by matrices (N, 3, 3); a kind may warp all at once on a GPU."""
        masks = [None] * len(targets) if erased is None else erased
        rows = zip(targets, matrices, masks, strict=True)
        return [self.warp_target(target, matrix, size, mask) for target, matrix, mask in rows]

    def least_score(self, threshold: Threshold) -> float:
        """Return the least score of predictions that pseudo-labels with this threshold need."""
        return float(threshold.min() if isinstance(threshold, Tensor) else threshold)

    @abstractmethod
    def pseudo_labels(
        self, predictions: Predictions, threshold: Threshold, valid: Tensor
    ) -> list[Target]:
        """Turn confident predictions for N weak views into targets (paper Sec. 3).

        Args:
            predictions: result of `TaskHead.predict`.
            threshold: least confidence in [0, 1], or one for each class (K,).
            valid: (N, 4) boxes, the part of each view that shows the image and not padding.
        """

    def evaluation_label(self, record: dict) -> Target | None:
        """Return what the evaluator needs of a label's file, for data workers to read; or None."""
        return None

    @abstractmethod
    def evaluator(self, records: Sequence[dict]) -> DatasetEvaluator:
        """Build the evaluator of this task on those of the records that are labeled for it.

        Its inputs are those of `EvalMapper`, its outputs those of `inference_for_evaluator`.
        On the main process its `evaluate` returns {metric: value} with values in [0, 1] and, for a
        kind with classes, "per_class": {name: value}, nan for a class that never occurs. It may add
        "detectron2": {name: value}, the figures of Detectron2's evaluator under its names.
        """

    @abstractmethod
    def statistics(self, records: Sequence[dict], scan: Scan) -> Statistics:
        """Compute label statistics.

        Args:
            records: records labeled for this task, maybe none.
            scan: function that reads many files in parallel and reports broken ones.
        """

    @abstractmethod
    def result_target(self, result: dict, threshold: float) -> Target:
        """Turn the model's result for an image into a target for `draw`; boxes over a threshold."""

    @abstractmethod
    def draw(self, image: np.ndarray, target: Target) -> np.ndarray:
        """Return an RGB image (H, W, 3) uint8 with a target drawn over it."""

    def count_classes(self, targets: Sequence[Target]) -> list[int]:
        """Count the objects or pixels of each class, (K,); [] for a kind without classes."""
        return []

    def count_images(self, targets: Sequence[Target]) -> list[int]:
        """Count the images whose target is for each class, (K,)."""
        return [len(targets)] * len(self.class_names)

    @abstractmethod
    def diagnose(
        self, pseudo: Sequence[Target], labels: Sequence[Target | None]
    ) -> dict[str, float]:
        """Measure pseudo-labels of N >= 1 images, against their labels where they have one."""


class TaskHead(nn.Module, ExportingHead, ABC):
    """The head of a task: outputs, losses and predictions.

    Attributes:
        in_features: names of the backbone features that the head reads.
        class_layers: names of the last layers that depend on the classes. Their tensors are
            (A * K, ...), A groups of one row for each of K classes; weights of other classes are
            adapted there.
    """

    in_features: Sequence[str]
    class_layers: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def forward(self, features: dict[str, Tensor]) -> Outputs:
        """Compute the outputs, each (N, ...), from the features of N images."""

    @abstractmethod
    def assign(
        self, targets: Sequence[Target], is_pseudo: Sequence[bool], size: Size
    ) -> list[Assigned]:
        """Bring the targets of N training images of `size` into the shape of the outputs."""

    @abstractmethod
    def losses(
        self, outputs: Outputs, assigned: Sequence[Assigned], size: Size, weights: Tensor
    ) -> dict[str, Tensor]:
        """Compute each of the task's `loss_parts` on N >= 1 images of `size`.

        A part is the sum over an image's elements, and over the images with their weights (N,).
        """

    @abstractmethod
    def predict(self, outputs: Outputs, size: Size, least_score: float) -> Predictions:
        """Decode the outputs for N training images.

        Args:
            outputs: outputs of the head, each (N, ...).
            size: (height, width) of the images.
            least_score: score in [0, 1] below which predictions may be left out.
        """

    @abstractmethod
    def inference(
        self, outputs: Outputs, size: Size, image_size: Size, output_sizes: Sequence[Size]
    ) -> list[Any]:
        """Compute the results of N images of one size, in Detectron2's format where it has one.

        Args:
            outputs: outputs of the head, each (N, ...).
            size: (height, width) of the images with padding.
            image_size: (height, width) without padding.
            output_sizes: (height, width) of each result.
        """

    def inference_for_evaluator(
        self, outputs: Outputs, size: Size, image_size: Size, output_sizes: Sequence[Size]
    ) -> list[Any]:
        """Compute what the evaluator needs of the results, with the arguments of `inference`."""
        return self.inference(outputs, size, image_size, output_sizes)

    @abstractmethod
    def agreement(self, outputs: Outputs, assigned: Sequence[Assigned]) -> float:
        """Return the share of elements whose most likely class is the target's; nan for none."""


def palette(count: int) -> list[list[int]]:
    """Return `count` RGB colors in 0-255, Detectron2's."""
    colors = colormap(rgb=True, maximum=255).astype(int).tolist()
    return [colors[i % len(colors)] for i in range(count)]
