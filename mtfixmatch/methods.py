"""The semi-supervised methods: one class is one method (paper Sec. 3).

A method decides which images get a pseudo-label for a task, how predictions of the teacher become
pseudo-labels, the strong augmentation, the flip of the weak view, and the weight of the
unsupervised loss over time. It is a module, and its state is in its buffers: checkpoints store
them, and a step with non-finite values rolls them back.
"""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

from detectron2.config import CfgNode, configurable
from fvcore.common.registry import Registry
from torch import Tensor, nn

from .augmentation.geometry import Size
from .augmentation.strong import StrongAugmentation
from .tasks import Task, TaskHead
from .tasks.base import Outputs, Target, Threshold
from .utils.errors import InputError, check_choice

METHOD_REGISTRY = Registry("METHOD")
METHOD_REGISTRY.__doc__ = "Methods by class name, see FIXMATCH.METHOD."

UNSUPERVISED_ON = ("unlabeled", "all")


@METHOD_REGISTRY.register()
class Supervised(nn.Module):
    """The supervised baseline: no pseudo-labels. Base class of all methods.

    Attributes:
        strong_augmentation: augmentation of images with pseudo-labels; None: the method has no
            unsupervised loss.
        weak_flip_prob: probability of a horizontal flip in the weak view.
    """

    strong_augmentation: StrongAugmentation | None = None

    @configurable
    def __init__(self, *, weak_flip_prob: float):
        """Set the probability of a horizontal flip in the weak view."""
        super().__init__()
        self.weak_flip_prob = weak_flip_prob

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Read INPUT.FLIP_PROB."""
        return {"weak_flip_prob": cfg.INPUT.FLIP_PROB}

    @property
    def is_semi_supervised(self) -> bool:
        """Whether the method has an unsupervised loss."""
        return self.strong_augmentation is not None

    def needs_pseudo_label(self, task: Task, *, labeled: bool, step: int) -> bool:
        """Decide whether an image gets a pseudo-label for a task at this step.

        Args:
            task: task of the pseudo-label.
            labeled: whether the image is labeled for the task; one with a partial label is not, and
                its pseudo-label is restricted to what the label leaves.
            step: training step, from 0.
        """
        return False

    def pseudo_labels(
        self, task: Task, head: TaskHead, outputs: Outputs, size: Size, valid: Tensor
    ) -> list[Target]:
        """Turn the teacher's outputs for N weak views into pseudo-labels for a task.

        Args:
            task: task of the pseudo-labels.
            head: the teacher's head for the task.
            outputs: outputs of the head, each (N, ...).
            size: (height, width) of the views.
            valid: (N, 4) boxes, the part of each view that shows the image and not padding.
        """
        raise NotImplementedError

    def unsupervised_weight(self, task: Task, step: int) -> float:
        """Return the weight of a task's unsupervised loss, lambda_t(step) of Eq. 5."""
        return 0.0


@METHOD_REGISTRY.register()
class FixMatch(Supervised):
    """FixMatch* (invariant): both views show the same pixels in other colors.

    Attributes:
        geometric: whether views are flipped and the strong view is warped.
    """

    geometric: ClassVar[bool] = False

    @configurable
    def __init__(
        self,
        *,
        strong_augmentation: StrongAugmentation,
        thresholds: Mapping[str, float],
        unsupervised_on: str,
        burn_in_steps: int,
        ramp_up_steps: float,
        **kwargs: Any,
    ):
        """Set up the method.

        Args:
            strong_augmentation: augmentation from weak to strong views.
            thresholds: task name -> least confidence of a pseudo-label, in [0, 1].
            unsupervised_on: images that get a pseudo-label for a task: "unlabeled" or "all".
            burn_in_steps: number of steps at the start that are trained on labels alone.
            ramp_up_steps: number of steps after the burn-in in which the unsupervised weight grows.
            kwargs: arguments of the base class.
        """
        super().__init__(**kwargs)
        self.strong_augmentation = strong_augmentation
        self.thresholds = dict(thresholds)
        self.unsupervised_on = unsupervised_on
        self.burn_in_steps = burn_in_steps
        self.ramp_up_steps = ramp_up_steps

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Read FIXMATCH and the THRESHOLD of each task.

        Raises:
            InputError: UNSUPERVISED_ON or BURN_IN has a value that cannot work.
        """
        _check(cfg)
        return {
            "weak_flip_prob": cfg.INPUT.FLIP_PROB if cls.geometric else 0.0,
            "strong_augmentation": StrongAugmentation(cfg, geometric=cls.geometric),
            "thresholds": {name: cfg.TASKS[name.upper()].THRESHOLD for name in cfg.MODEL.TASKS},
            "unsupervised_on": cfg.FIXMATCH.UNSUPERVISED_ON,
            "burn_in_steps": cfg.FIXMATCH.BURN_IN,
            "ramp_up_steps": cfg.FIXMATCH.RAMP_UP * cfg.SOLVER.MAX_ITER,
        }

    def needs_pseudo_label(self, task: Task, *, labeled: bool, step: int) -> bool:
        """See base class; after the burn-in, images without a label for the task, or all images."""
        return step >= self.burn_in_steps and (self.unsupervised_on == "all" or not labeled)

    def threshold(self, task: Task) -> Threshold:
        """Return the least confidence of a pseudo-label, or one for each class."""
        return self.thresholds[task.name]

    def pseudo_labels(
        self, task: Task, head: TaskHead, outputs: Outputs, size: Size, valid: Tensor
    ) -> list[Target]:
        """See base class; predictions over the threshold become pseudo-labels."""
        threshold = self.threshold(task)
        predictions = head.predict(outputs, size, task.least_score(threshold))
        return task.pseudo_labels(predictions, threshold, valid)

    def unsupervised_weight(self, task: Task, step: int) -> float:
        """See base class; 0 in the burn-in, then a ramp-up to the task's weight."""
        step -= self.burn_in_steps
        return task.unsupervised_weight * ramp_up(step, self.ramp_up_steps) if step >= 0 else 0.0


@METHOD_REGISTRY.register()
class DenseFixMatch(FixMatch):
    """Dense FixMatch (equivariant): the strong view is warped, and the pseudo-labels with it."""

    geometric = True


def build_method(cfg: CfgNode) -> Supervised:
    """Build the method that FIXMATCH.METHOD names.

    Raises:
        InputError: no method of that name is registered.
    """
    name = cfg.FIXMATCH.METHOD
    check_choice("FIXMATCH.METHOD", name, [x for x, _ in METHOD_REGISTRY])
    return METHOD_REGISTRY.get(name)(cfg)


def ramp_up(step: int, length: float) -> float:
    """Return exp(-5 (1 - step / length)^2), from `length` on 1 (Tarvainen and Valpola, 2017)."""
    return math.exp(-5 * (1 - step / length) ** 2) if step < length else 1.0


def _check(cfg: CfgNode) -> None:
    on, burn_in, steps = cfg.FIXMATCH.UNSUPERVISED_ON, cfg.FIXMATCH.BURN_IN, cfg.SOLVER.MAX_ITER
    check_choice("FIXMATCH.UNSUPERVISED_ON", on, UNSUPERVISED_ON)
    if not 0 <= burn_in < steps:
        raise InputError(
            f"FIXMATCH.BURN_IN is {burn_in}: with SOLVER.MAX_ITER {steps} no step is left for "
            "unlabeled images"
        )
