"""Hand a batch from a data worker to the trainer as one block of memory per data type.

PyTorch sends each tensor of a batch through a file of its own, which the trainer opens and maps.
A batch of 16 images with labels has about 80 of them, packed it has one per data type.
"""

import io
import pickle
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import get_worker_info


class _Pickler(pickle.Pickler):
    """Pickles all but tensors, which it collects and replaces by their indices."""

    def __init__(self, file: io.BytesIO):
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self.tensors: list[Tensor] = []

    def persistent_id(self, value: Any) -> int | None:
        """Return the index of a tensor, None for other objects."""
        if type(value) is not Tensor:
            return None
        self.tensors.append(value)
        return len(self.tensors) - 1


class _Unpickler(pickle.Unpickler):
    def __init__(self, content: bytes, tensors: Sequence[Tensor]):
        super().__init__(io.BytesIO(content))
        self._tensors = tensors

    def persistent_load(self, index: int) -> Tensor:
        return self._tensors[index]


@dataclass(frozen=True)
class PackedBatch:
    """The items of a batch, whose tensors lie one after another in one block per data type.

    Attributes:
        content: the pickled items, with an index in place of each tensor.
        places: data type, first element in the block, and shape of each tensor.
        blocks: data type -> all elements, (E,).
    """

    content: bytes
    places: Sequence[tuple[torch.dtype, int, torch.Size]]
    blocks: Mapping[torch.dtype, Tensor]

    @classmethod
    def of(cls, items: Sequence[Any]) -> "PackedBatch":
        """Pack items; a data worker packs them into memory that it shares with the trainer."""
        file = io.BytesIO()
        pickler = _Pickler(file)
        pickler.dump(list(items))
        tensors = pickler.tensors
        places = _places(tensors)
        sizes: dict[torch.dtype, int] = defaultdict(int)
        for tensor in tensors:
            sizes[tensor.dtype] += tensor.numel()
        packed = cls(file.getvalue(), places, {d: _new_block(n, d) for d, n in sizes.items()})
        for view, tensor in zip(packed._views(), tensors, strict=True):
            view.copy_(tensor)
        return packed

    def items(self) -> list[Any]:
        """Return the items; their tensors are views of the blocks, and equal ones are neighbors."""
        return _Unpickler(self.content, self._views()).load()

    def pin_memory(self) -> "PackedBatch":
        """Return the same batch in memory from which a GPU copies without a wait."""
        return replace(self, blocks={d: block.pin_memory() for d, block in self.blocks.items()})

    def _views(self) -> list[Tensor]:
        return [self.blocks[d][i : i + shape.numel()].view(shape) for d, i, shape in self.places]


def _places(tensors: Sequence[Tensor]) -> list[tuple[torch.dtype, int, torch.Size]]:
    """Return data type, first element and shape of each; those of one shape are neighbors."""
    starts = [0] * len(tensors)
    ends: dict[torch.dtype, int] = defaultdict(int)
    for i in sorted(range(len(tensors)), key=lambda i: tuple(tensors[i].shape)):
        starts[i] = ends[tensors[i].dtype]
        ends[tensors[i].dtype] += tensors[i].numel()
    return [(x.dtype, start, x.shape) for x, start in zip(tensors, starts, strict=True)]


def _new_block(count: int, dtype: torch.dtype) -> Tensor:
    if get_worker_info() is None or not count:
        return torch.empty(count, dtype=dtype)
    # As PyTorch's own collate function does, to save a copy.
    storage = torch.UntypedStorage._new_shared(count * dtype.itemsize)
    return torch.empty(0, dtype=dtype).set_(storage)
