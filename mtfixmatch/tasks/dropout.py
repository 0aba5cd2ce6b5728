"""Dropout with one seed for each image, so that a mask does not depend on the batch."""

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from detectron2.layers import ASPP
from torch import Tensor, nn


class ImageDropout(nn.Module):
    """Dropout that draws the mask of each image from the image's own seed.

    Attributes:
        seeds: (N,) int64 on the CPU, the seed of each image in the next batch; None: PyTorch's
            dropout, from its global generator.
    """

    def __init__(self, p: float):
        """Set the probability `p` that an element is zeroed."""
        super().__init__()
        self.p = p
        self.seeds: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Apply dropout to x, (N, ...), in training mode."""
        if self.seeds is None or not (self.training and self.p):
            return F.dropout(x, self.p, self.training)
        return x * (torch.ops.mtfixmatch.image_noise(x, self.seeds) >= self.p) / (1 - self.p)


# A compiled network calls it as it is, because generators and their seeds are in no graph.
@torch.library.custom_op("mtfixmatch::image_noise", mutates_args=())
def image_noise(x: Tensor, seeds: Tensor) -> Tensor:
    """Draw noise in [0, 1) of the shape of x, (N, ...), for each image from its own seed (N,)."""
    noise = torch.empty(x.shape, device=x.device)
    for image, seed in zip(noise, seeds.tolist(), strict=True):
        image.uniform_(generator=torch.Generator(x.device).manual_seed(seed))
    return noise


@image_noise.register_fake
def _(x: Tensor, seeds: Tensor) -> Tensor:
    return torch.empty(x.shape, device=x.device)


def set_seeds(head: nn.Module, seeds: Sequence[int] | None) -> None:
    """Set the seed of each image of the next batch in every ImageDropout of a head."""
    for module in head.modules():
        if isinstance(module, ImageDropout):
            module.seeds = None if seeds is None else torch.tensor(seeds, dtype=torch.long)


def use_image_dropout(head: nn.Module) -> None:
    """Replace the dropout at the end of Detectron2's ASPP by ImageDropout."""
    for module in [m for m in head.modules() if isinstance(m, ASPP)]:
        module.image_dropout = ImageDropout(module.dropout)
        module.dropout = 0.0
        module.register_forward_hook(_apply_image_dropout)


def _apply_image_dropout(module: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
    # The teacher is a deep copy of the student: its module has an ImageDropout of its own.
    return cast(ImageDropout, module.image_dropout)(output)
