"""The weights of a network without gradients in the data type of its passes, cast once a step."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from detectron2.layers import Conv2d
from torch import Tensor, nn

from ..utils.tensor_lists import TensorLists
from .backbone import TopBlock

# Layers that use their weights in nothing but an operator that autocast runs in the lower type.
LAYERS = (Conv2d, nn.Conv2d, nn.ConvTranspose2d, nn.Linear)


class CastWeights:
    """Casts the weights of convolutions and linear layers together.

    Autocast casts a weight that needs no gradient at each use, which is a launch for each layer,
    and five for one that runs on all levels of a pyramid. The results are the same to the bit.
    """

    def __init__(self, network: nn.Module, dtype: torch.dtype):
        """Set a network and the type of its passes; torch.float32 casts nothing."""
        self.network = network
        self.dtype = dtype
        self._tensors = TensorLists(network)
        self._made_for: list[list[Tensor]] = []
        self._places: list[tuple[dict, str, nn.Parameter, nn.Parameter]] = []

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Let the network have its cast weights inside the block, if autocast is on there.

        The block must not change them.
        """
        device = next(self.network.parameters()).device
        if self.dtype is torch.float32 or not torch.is_autocast_enabled(device.type):
            yield
            return
        self._cast()
        try:
            for owner, name, _, cast in self._places:
                owner[name] = cast
            yield
        finally:
            for owner, name, weight, _ in self._places:
                owner[name] = weight

    @torch.no_grad()
    def _cast(self) -> None:
        if self._made_for is not self._tensors.get():
            self._made_for = self._tensors.get()
            self._places = list(self._find())
        weights: list[Tensor] = [weight for _, _, weight, _ in self._places]
        casts: list[Tensor] = [cast for _, _, _, cast in self._places]
        if weights:
            torch._foreach_copy_(casts, weights)

    def _find(self) -> Iterator[tuple[dict, str, nn.Parameter, nn.Parameter]]:
        # A TopBlock does without autocast where it must, in the type of its weights.
        blocks = [m for m in self.network.modules() if isinstance(m, TopBlock)]
        excluded = {id(m) for block in blocks for m in block.modules()}
        for module in self.network.modules():
            if type(module) in LAYERS and id(module) not in excluded:
                for name, x in module._parameters.items():
                    if x is not None and x.dtype is torch.float32:
                        cast = nn.Parameter(torch.empty_like(x, dtype=self.dtype), False)
                        yield module._parameters, name, x, cast
