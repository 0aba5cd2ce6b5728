"""What a kind of task adds so that its network can run without PyTorch: results in tensors alone.

An exported network computes a few named tensors for each task, its *exports*: boxes and scores, or
a map. They hold what the results of the network in PyTorch hold.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from ..augmentation.geometry import Size

Exports = Mapping[str, Tensor]  # name of an output -> tensor, (N, ...) for N images

SHARE = 1e-3  # greatest share of elements that may differ
ERROR = 1e-3  # greatest error of a value, relative to the greatest one


@dataclass(frozen=True)
class Difference:
    """How far the exports of two networks for the same images differ in one respect.

    Attributes:
        name: what differs, with its unit.
        value: share of the elements, or greatest error of one; 0 if all are equal.
        tolerance: greatest value that rounding explains.
        total: number of elements that were compared.
        is_share: whether `value` is a share.
    """

    name: str
    value: float
    tolerance: float
    total: int
    is_share: bool

    @property
    def is_rounding(self) -> bool:
        """Whether rounding explains it; of any number of elements, one may differ."""
        return self.value <= self.tolerance or (self.is_share and self.value * self.total <= 1.01)

    def __add__(self, other: "Difference") -> "Difference":
        """Return the difference in the same respect for the images of both."""
        total = self.total + other.total
        wrong = self.value * self.total + other.value * other.total
        value = wrong / max(total, 1) if self.is_share else float(np.max([self.value, other.value]))
        return replace(self, value=value, total=total)


class ExportingHead(ABC):
    """The part of a head that is for an exported network."""

    @abstractmethod
    def export(self, outputs: tuple[Tensor, ...], size: Size, image_size: Size) -> Exports:
        """Compute the exports for N images of one size from the outputs of the head.

        The results are those of `inference` at the size of the images. Sizes may be symbols of
        `torch.export`, so that neither branches nor lists may depend on them.

        Args:
            outputs: outputs of the head, each (N, ...).
            size: (height, width) of the images with padding.
            image_size: (height, width) without padding.
        """

    def export_facts(self) -> dict[str, Any]:
        """Return what a reader of the exports must know, such as thresholds, for JSON."""
        return {}

    def onnx_operators(self) -> dict[Callable, Callable]:
        """Return operator -> function that builds it of ONNX operators.

        They are those that `export` uses and PyTorch's ONNX exporter does not know.
        """
        return {}


class ExportedTask(ABC):
    """The part of a task that reads its exports."""

    @abstractmethod
    def exported_result(self, exports: Exports, image_size: Size) -> Any:
        """Return the task's entry in the result of an image as `TaskHead.inference` does.

        Args:
            exports: exports for the image, on the CPU, without the batch dimension.
            image_size: (height, width) of the image.
        """

    def export_differences(self, expected: Exports, exports: Exports) -> list[Difference]:
        """Compare the exports of two networks for the same N images."""
        return [tensor_difference(name, expected[name], exports[name]) for name in expected]


def tensor_difference(name: str, expected: Tensor, values: Tensor) -> Difference:
    """Return the greatest relative error of float values, or the share of others that differ."""
    total = expected.numel()
    if expected.is_floating_point():
        error = (values - expected).abs().amax() / expected.abs().amax().clamp(min=1)
        return Difference(f"{name}: greatest error", float(error), ERROR, total, False)
    share = (values != expected).float().mean()
    return Difference(f"{name}: share that differs", float(share), SHARE, total, True)
