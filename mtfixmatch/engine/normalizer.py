"""The means over images and elements that the losses are (paper Eq. 3-4)."""

from collections.abc import Mapping, Sequence
from typing import cast

import torch
import torch.distributed as dist
from detectron2.utils import comm
from torch import Tensor, nn

from ..tasks import Task
from ..utils.devices import stack, to_device


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

    def divisor(self, count: Tensor, num_images: Tensor, *, is_pseudo: bool) -> Tensor:
        """Return the divisor of a loss in this step; a running mean moves, so call it once.

        Args:
            count: scalar, number of elements in the global batch.
            num_images: scalar, number of images in the global batch with a target for this loss.
            is_pseudo: whether it is the unsupervised loss.
        """
        if self.kind == "image":
            return num_images.clamp(min=1.0)
        if self.kind == "batch":
            return count.clamp(min=1.0)
        mean = self.means[int(is_pseudo)]
        update = ((1 - self.momentum) * count.clamp(min=1.0)).to(mean.dtype)
        mean.copy_(torch.where(num_images > 0, self.momentum * mean + update, mean))
        return mean.clone()

    def image_weights(self, counts: Sequence[Tensor], divisor: Tensor) -> Tensor:
        """Return the weight of each of N images (N,), from its number of elements."""
        divisor = divisor.float()
        if self.kind == "image":
            divisor = stack(counts).clamp(min=1) * divisor
        return divisor.reciprocal().expand(len(counts))


class Normalizers(nn.ModuleDict):
    """The normalizer of each task, by name."""

    def __init__(self, tasks: Sequence[Task]):
        """Build a normalizer of each task's kind."""
        super().__init__({task.name: Normalizer(task.normalizer) for task in tasks})

    def divisors(
        self, counts: Mapping[tuple[str, bool], Sequence[Tensor]], device: torch.device
    ) -> dict[tuple[str, bool], Tensor]:
        """Return the divisor of each loss in this step; running means move, so call it once.

        No number comes back from a GPU.

        Args:
            counts: (task name, whether it is the unsupervised loss) -> number of elements of each
                image of this rank.
            device: device of the counts.
        """
        zero = torch.zeros((), dtype=torch.long, device=device)
        elements = torch.stack([stack(x).sum() if x else zero for x in counts.values()])
        images = torch.tensor([len(x) for x in counts.values()], dtype=torch.float64)
        totals = torch.stack([elements.double(), to_device(images, device)])
        if comm.get_world_size() > 1:
            dist.all_reduce(totals)
        return {
            (name, is_pseudo): self[name].divisor(count, num_images, is_pseudo=is_pseudo)
            for (name, is_pseudo), count, num_images in zip(counts, *totals, strict=True)
        }

    def __getitem__(self, name: str) -> Normalizer:
        return cast(Normalizer, super().__getitem__(name))
