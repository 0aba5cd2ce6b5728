"""The head of semantic segmentation: DeepLabv3+ or another of Detectron2's (paper Sec. 4)."""

from collections.abc import Iterator, Sequence
from itertools import groupby, pairwise
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.meta_arch import build_sem_seg_head
from detectron2.modeling.postprocessing import sem_seg_postprocess
from torch import Tensor

from ..augmentation.geometry import Size
from ..utils.devices import stack, to_device
from ..utils.labels import IGNORE_LABEL
from .base import Assigned, Outputs, TaskHead
from .config import with_classes
from .dropout import use_image_dropout

# Least number of pixel rows in a strip, whose logits are read again while a cache has them.
STRIP_ROWS = 32
# Least sum of rows and columns of a strip: of fewer, PyTorch resizes by another kernel.
STRIP_SIDES = 129
RUN = 2**16  # pixels, whose logits a processor keeps in its cache
# Most threads of PyTorch for which comparing class by class, in one thread, is used: it takes about
# a third of the time that PyTorch's `max` takes there.
MOST_THREADS = 2


class SegmentationHead(TaskHead):
    """A semantic head, which outputs logits (N, K, H / stride, W / stride)."""

    class_layers = ("head.predictor",)

    @configurable
    def __init__(self, *, head: Any, stride: int):
        """Wrap a head of Detectron2.

        Args:
            head: head with `in_features` and `layers(features)`, such as DeepLabV3PlusHead.
            stride: stride of its output in pixels.
        """
        super().__init__()
        self.head: Any = head
        use_image_dropout(head)
        self.in_features = list(head.in_features)
        self.stride = stride

    @classmethod
    def from_config(
        cls, cfg: CfgNode, class_names: Sequence[str], shapes: dict[str, ShapeSpec]
    ) -> dict:
        """Read MODEL.SEM_SEG_HEAD, as DeepLab does."""
        return {
            "head": build_sem_seg_head(with_classes(cfg, "SEM_SEG_HEAD", class_names), shapes),
            "stride": cfg.MODEL.SEM_SEG_HEAD.COMMON_STRIDE,
        }

    def forward(self, features: dict[str, Tensor]) -> Outputs:
        """See base class."""
        return (self.head.layers(features),)

    def _full_size(self, logits: Tensor) -> Tensor:
        return F.interpolate(logits, scale_factor=self.stride, mode="bilinear", align_corners=False)

    def assign(
        self, targets: Sequence[Tensor], is_pseudo: Sequence[bool], size: Size
    ) -> list[Assigned]:
        """See base class: classes (H, W), or soft labels (K, H, W), and a count of valid pixels."""
        device = next(self.parameters()).device
        # Labels come from the CPU, pseudo-labels from the network's device.
        runs = groupby(targets, key=lambda x: (x.device, x.dtype))
        stacked = [to_device(stack(list(run)), device) for _, run in runs]
        return [x for targets in stacked for x in _assign(targets)]

    def losses(
        self, outputs: Outputs, assigned: Sequence[Assigned], size: Size, weights: Tensor
    ) -> dict[str, Tensor]:
        """Compute the cross-entropy at the valid pixels of the full-size logits."""
        logits = self._full_size(outputs[0])
        labels = stack([x.tensors[0] for x in assigned])
        if labels.is_floating_point():
            pixels = -(labels * logits.log_softmax(dim=1)).sum(dim=1)
        else:
            pixels = F.cross_entropy(logits, labels, ignore_index=IGNORE_LABEL, reduction="none")
        return {"ce": (pixels.sum(dim=(1, 2)) * weights).sum()}

    @torch.no_grad()
    def predict(self, outputs: Outputs, size: Size, least_score: float) -> Tensor:
        """Return the logits (N, K, H, W) at the size of the images."""
        return self._full_size(outputs[0])

    @torch.no_grad()
    def inference(
        self, outputs: Outputs, size: Size, image_size: Size, output_sizes: Sequence[Size]
    ) -> list[Tensor]:
        """See base class."""
        logits = self._full_size(outputs[0])[..., : image_size[0], : image_size[1]]
        return [
            x if output_size == image_size else sem_seg_postprocess(x, image_size, *output_size)
            for x, output_size in zip(logits, output_sizes, strict=True)
        ]

    @torch.no_grad()
    def inference_for_evaluator(
        self, outputs: Outputs, size: Size, image_size: Size, output_sizes: Sequence[Size]
    ) -> list[Tensor]:
        """Return the most likely class of each pixel, (H, W) uint8, of each image.

        The classes are those of the logits of `inference`, which are too large to be computed for
        an image at once: 152 MiB for 19 classes at 2048x1024.
        """
        if any(output_size != image_size for output_size in output_sizes):
            logits = self.inference(outputs, size, image_size, output_sizes)
            return [most_likely(x) for x in logits]
        return [self._classes(x)[: image_size[0], : image_size[1]] for x in outputs[0].split(1)]

    def _classes(self, logits: Tensor) -> Tensor:
        """Return the most likely classes (H, W) uint8 for logits (1, K, H / stride, W / stride).

        A strip of rows depends on the row above and the one below it. Its logits are those of the
        whole image bit by bit, because a stride that is a power of 2 gives exact coordinates.
        """
        height, width = logits.shape[2:]
        least = max(STRIP_ROWS, STRIP_SIDES - width * self.stride)
        is_exact = self.stride & (self.stride - 1) == 0
        strips = max(height * self.stride // least, 1) if is_exact else 1
        edges = [height * i // strips for i in range(strips + 1)]
        shape = (height * self.stride, width * self.stride)
        classes = logits.new_empty(shape, dtype=torch.uint8)
        for start, end in pairwise(edges):
            first = max(start - 1, 0)
            full = self._full_size(logits[:, :, first : end + 1])[0]
            rows = slice((start - first) * self.stride, (end - first) * self.stride)
            classes[start * self.stride : end * self.stride] = most_likely(full[:, rows])
        return classes

    def export(self, outputs: Outputs, size: Size, image_size: Size) -> dict[str, Tensor]:
        """See base class.

        Returns:
            map (N, H, W) uint8, the most likely class; confidence (N, H, W), its probability.
        """
        logits = self._full_size(outputs[0])[..., : image_size[0], : image_size[1]]
        best, classes = logits.max(dim=1)
        confidence = (best - logits.logsumexp(dim=1)).exp()
        return {"map": classes.to(torch.uint8), "confidence": confidence}

    @torch.no_grad()
    def agreement(self, outputs: Outputs, assigned: Sequence[Assigned]) -> float:
        """Return the share of valid pixels whose most likely class is the target's."""
        maps = torch.stack([class_map(x.tensors[0]) for x in assigned])
        same = (self._full_size(outputs[0]).argmax(dim=1) == maps)[maps != IGNORE_LABEL]
        return float(same.float().mean()) if len(same) else float("nan")


def most_likely(logits: Tensor) -> Tensor:
    """Return the most likely class of each pixel, the first of equal ones.

    Args:
        logits: (K, H, W), or (N, K, H, W), with at most 256 classes.

    Returns:
        Classes (H, W) or (N, H, W) uint8.
    """
    if logits.is_cuda or torch.get_num_threads() > MOST_THREADS or not logits.numel():
        # On a CPU, `max` takes less than half the time of `argmax`.
        return logits.max(dim=-3).indices.to(torch.uint8)
    if logits.dim() == 4:
        return torch.stack([most_likely(x) for x in logits])
    classes = np.concatenate([_largest(run) for run in _runs(logits)])
    return torch.from_numpy(classes).view(logits.shape[1:])


def _runs(logits: Tensor) -> Iterator[np.ndarray]:
    """Yield the logits (K, P) of runs of pixels, for logits (K, H, W)."""
    values = logits.detach().float()
    if values.stride(0) == 1:  # channels last
        for run in values.permute(1, 2, 0).flatten(0, 1).split(RUN):
            yield cv2.transpose(run.numpy())
    else:
        for run in values.flatten(1).split(RUN, dim=1):
            yield run.numpy()


def _largest(logits: np.ndarray) -> np.ndarray:
    """Return the class (P,) of the largest of the logits (K, P), comparing class by class."""
    best, classes = logits[0].copy(), np.zeros(logits.shape[1], np.uint8)
    for number, others in enumerate(logits[1:], start=1):
        better = (others > best).view(np.uint8)
        np.maximum(classes, better * np.uint8(number), out=classes)
        np.maximum(best, others, out=best)
    return classes


def class_map(target: Tensor) -> Tensor:
    """Return the classes (H, W) of a label map, or the most likely ones of soft labels."""
    if not target.is_floating_point():
        return target
    return torch.where(target.sum(dim=0) > 0, target.argmax(dim=0), IGNORE_LABEL)


def logits_of(classes: Tensor, confidence: Tensor, num_classes: int) -> Tensor:
    """Return logits (K, H, W) of a map (H, W) uint8 and the probabilities (H, W) of its classes.

    What a probability leaves is divided among the other classes, but is never the most likely.
    """
    rest = torch.minimum((1 - confidence) / max(num_classes - 1, 1), confidence * 0.999)
    least = torch.finfo(rest.dtype).tiny
    logits = rest.clamp(min=least).log().repeat(num_classes, 1, 1)
    return logits.scatter_(0, classes[None].long(), confidence.clamp(min=least).log()[None])


def _assign(targets: Tensor) -> list[Assigned]:
    """Assign label maps (N, H, W) or soft labels (N, K, H, W)."""
    if targets.is_floating_point():
        labels, valid = targets, targets.sum(dim=1) > 0
    else:
        labels = targets.long()
        valid = labels != IGNORE_LABEL
    return [Assigned((x,), n) for x, n in zip(labels, valid.sum(dim=(1, 2)), strict=True)]
