"""The tensors of modules as lists that are built once, for PyTorch's functions of many tensors."""

import operator
from typing import Any

from torch import Tensor, nn


class TensorLists:
    """The parameters and buffers of modules, each once, in lists of one type and device.

    PyTorch's functions of lists launch one kernel for many tensors of one type. To find the tensors
    takes longer than such a function, so the lists are kept until a tensor or module is replaced.
    """

    def __init__(self, *modules: nn.Module, parameters: bool = True, transient: bool = True):
        """Set the modules.

        Args:
            modules: modules whose tensors are listed, submodules included.
            parameters: list parameters too, not only buffers.
            transient: list buffers too that are not in the state of their module.
        """
        self.modules = modules
        self.parameters = parameters
        self.transient = transient
        self._places: list[tuple[dict, str, Tensor]] = []  # where each listed tensor is
        self._lists: list[list[Tensor]] = []
        # All dictionaries of the modules and what they held.
        self._seen: list[tuple[dict[str, Any], dict[str, Any]]] = []

    def get(self) -> list[list[Tensor]]:
        """Return the lists, none of them empty."""
        if not self._is_valid():
            self._build()
        return self._lists

    def put_back(self) -> None:
        """Put the listed tensors back where another one has taken their place."""
        for owner, name, tensor in self._places:
            owner[name] = tensor

    def _is_valid(self) -> bool:
        return bool(self._seen) and all(
            now.keys() == then.keys() and all(map(operator.is_, now.values(), then.values()))
            for now, then in self._seen
        )

    def _build(self) -> None:
        every = [module for root in self.modules for module in root.modules()]
        dicts = [d for m in every for d in (m._modules, m._parameters, m._buffers)]
        self._seen = [(d, dict(d)) for d in dicts]
        tensors: dict[int, tuple[dict, str, Tensor]] = {}
        for module in every:
            left_out = set() if self.transient else module._non_persistent_buffers_set
            for owner in (*((module._parameters,) if self.parameters else ()), module._buffers):
                for name, x in owner.items():
                    if x is not None and name not in left_out:
                        tensors.setdefault(id(x), (owner, name, x))
        self._places = list(tensors.values())
        groups: dict[tuple, list[Tensor]] = {}
        for _, _, tensor in self._places:
            groups.setdefault((tensor.dtype, tensor.device), []).append(tensor)
        self._lists = list(groups.values())
