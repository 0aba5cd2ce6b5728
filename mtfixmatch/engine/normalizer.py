"""The means over images and elements that the losses are (paper Eq. 3-4)."""

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from ..tasks import Task
from ..utils.distributed import sum_over_ranks


class Normalizer(nn.Module):
    """Gives the summed loss of each image its weight in a task's loss over the global batch.

    The elements of an image are its positive anchors or its valid pixels. With the weights, the sum
    over the images is
    "image": the mean over images of the mean over an image's elements, as in Eq. 3;
    "batch": the mean over the elements of all images;
    "running": the sum divided by a running mean of the number of elements in a batch, as in
    Detectron2's RetinaNet. Batches without an image for the loss do not move it.

    Attributes:
        means: (2,) running means for the supervised and the unsupervised loss.
    """

    momentum = 0.9  # RetinaNet's
    means: Tensor

    def __init__(self, kind: str):
        """Set the kind, see TASKS.<NAME>.NORMALIZER."""
        super().__init__()
        self.kind = kind
        if kind == "running":
            self.register_buffer("means", torch.tensor([100.0, 100.0]))

    def divisor(self, count: float, num_images: float, *, is_pseudo: bool) -> float:
        """Return the divisor of a loss in this step; a running mean moves, so call it once.

        Args:
            count: number of elements in the global batch.
            num_images: number of images in the global batch with a target for this loss.
            is_pseudo: whether it is the unsupervised loss.
        """
        if self.kind == "image":
            return max(num_images, 1.0)
        if self.kind == "batch":
            return max(count, 1.0)
        mean = self.means[int(is_pseudo)]
        if num_images:
            mean.mul_(self.momentum).add_((1 - self.momentum) * max(count, 1.0))
        return float(mean)

    def image_weights(self, counts: Sequence[Tensor], divisor: float) -> Tensor:
        """Return the weight of each of N images (N,), from its number of elements."""
        elements = torch.stack(list(counts))
        elements = elements.clamp(min=1) if self.kind == "image" else torch.ones_like(elements)
        return 1 / (elements * divisor)


class Normalizers(nn.ModuleDict):
    """The normalizer of each task, by name."""

    def __init__(self, tasks: Sequence[Task]):
        """Build a normalizer of each task's kind."""
        super().__init__({task.name: Normalizer(task.normalizer) for task in tasks})

    def divisors(
        self, counts: Mapping[tuple[str, bool], Sequence[Tensor]], device: torch.device
    ) -> dict[tuple[str, bool], float]:
        """Return the divisor of each loss in this step; running means move, so call it once.

        Args:
            counts: (task name, whether it is the unsupervised loss) -> number of elements of each
                image of this rank.
            device: device of the counts.
        """
        zero = torch.zeros((), dtype=torch.long, device=device)
        numbers = [(torch.stack([zero, *x]).sum(), zero + len(x)) for x in counts.values()]
        totals = sum_over_ranks(torch.stack([n for pair in numbers for n in pair]), device)
        pairs = zip(totals[::2], totals[1::2], strict=True)
        return {
            (name, is_pseudo): self[name].divisor(count, num_images, is_pseudo=is_pseudo)
            for (name, is_pseudo), (count, num_images) in zip(counts, pairs, strict=True)
        }

    def __getitem__(self, name: str) -> Normalizer:
        return cast(Normalizer, super().__getitem__(name))
