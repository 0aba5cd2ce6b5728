"""A pretended CUDA device, which computes on the CPU and counts what a GPU would be asked for.

A `PretendTensor` says in Python that it is on cuda:0, and holds a CPU tensor. For PyTorch's C++ it
is on "meta", because autograd would look for a real GPU; so autocast casts nothing. The mode
`PretendCuda` makes such tensors where code asks for the device, refuses operators on tensors of two
devices as CUDA does, and counts by part of the program and by line of the package:

- *launches*: operators that start a kernel; one of `torch._foreach_*` counts as its chunks;
- *waits*: what makes the CPU wait for the device, that is synchronisations and blocking copies.
"""

import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch.utils import _foreach_utils
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("cuda", 0)
PACKAGE = "/mtfixmatch/"
# Operators without a kernel: they make views and empty tensors, or read metadata.
NO_KERNEL = re.compile(
    "view|_unsafe_view|_reshape_alias|alias|detach|t|transpose|permute|expand|slice|select|split|"
    "split_with_sizes|unsqueeze|squeeze|unbind|unfold|diagonal|narrow|chunk|as_strided|lift_fresh|"
    "empty|empty_like|empty_strided|new_empty|new_empty_strided|set_|resize_|is_same_size|"
    "_local_scalar_dense"
)
# Operators whose kernels hand a number back to the CPU, which waits for it.
WAITING = re.compile(
    "_local_scalar_dense|nonzero|masked_select|_unique2|unique_dim|unique_consecutive|bincount|"
    "equal|is_nonzero|nms|_linalg_check_errors"
)
INDEXING = re.compile("index|index_put|index_put_|_index_put_impl_|_unsafe_index")
COPIES = frozenset({"copy_", "_to_copy"})
# Tensors and chunks (of 65,536 elements) in a launch of torch._foreach_*, by number of lists.
FOREACH_TENSORS, FOREACH_CHUNKS, CHUNK = {1: 110, 2: 64, 3: 48, 4: 36}, 320, 65536


@dataclass
class Counts:
    """What was asked of the device, by (part of the program, line of the package)."""

    launches: Counter[tuple[str, str]] = field(default_factory=Counter)
    waits: Counter[tuple[str, str]] = field(default_factory=Counter)


class PretendTensor(torch.Tensor):
    """A tensor on the pretended device; its values are in `cpu_tensor`."""

    cpu_tensor: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl
    device = DEVICE
    is_cuda, is_meta = True, False

    @staticmethod
    def __new__(cls, tensor: torch.Tensor) -> "PretendTensor":
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            tensor.size(),
            strides=tensor.stride(),
            storage_offset=tensor.storage_offset(),
            dtype=tensor.dtype,
            device=torch.device("meta"),
        )
        made.cpu_tensor = tensor
        return made

    def __getitem__(self, index: Any) -> torch.Tensor:
        # PyTorch would make the index of a list on "meta".
        items = index if isinstance(index, tuple) else (index,)
        return super().__getitem__(
            tuple(torch.tensor(x) if isinstance(x, list) else x for x in items)
        )

    def new_tensor(self, data: Any, dtype: torch.dtype | None = None) -> torch.Tensor:
        return torch.tensor(data, dtype=dtype or self.dtype, device=DEVICE)

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("a tensor on cuda:0 has no numpy()")

    def __repr__(self) -> str:
        return f"PretendTensor({tuple(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(cls, operator, types, args=(), kwargs=None):
        raise RuntimeError("a tensor of the pretended device is used outside PretendCuda")


class PretendCuda(TorchDispatchMode):
    """While it is active, code sees one CUDA device; `counts` grow with every operator."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = Counts()
        self._part = "other"
        self._pinned: dict[int, torch.UntypedStorage] = {}  # keeps them, so addresses stay theirs

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count what the block does under a name."""
        before, self._part = self._part, name
        try:
            yield
        finally:
            self._part = before

    def naming(self, owner: Any, name: str, part: str) -> AbstractContextManager:
        """Return a context that counts the work of `owner.name`, a function, as a part."""
        function = getattr(owner, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            with self.part(part):
                return function(*args, **kwargs)

        return mock.patch.object(owner, name, counted)

    def pin(self, tensor: torch.Tensor) -> torch.Tensor:
        """Stand in for Tensor.pin_memory: a copy in memory that the device reads by itself."""
        pinned = tensor.clone(memory_format=torch.preserve_format)
        storage = pinned.untyped_storage()
        self._pinned[storage.data_ptr()] = storage
        return pinned

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = operator._schema.name.split("::")[-1]
        asked = kwargs.get("device")
        asked = None if asked is None else torch.device(asked)
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        reads_device = any(map(_is_on_device, tensors))
        writes_device = asked.type != "cpu" if asked is not None else reads_device
        if reads_device and writes_device and name == "_to_copy" and _is_same_type(args[0], kwargs):
            return PretendTensor(args[0].cpu_tensor)  # already there
        if reads_device or writes_device:
            self._count(name, args, kwargs, writes_device)
            # An operator of this package may take tensors of both devices.
            if reads_device and name not in COPIES and operator.namespace != "mtfixmatch":
                _refuse_mixed(operator, name, args, tensors)
        result = _compute(operator, args, kwargs)
        if not writes_device:
            return result
        wrapped = tree_map(_wrap, result)
        if name == "_to_copy" or not reads_device:
            return wrapped
        # Operators in place return their own argument.
        return return_and_correct_aliasing(operator, args, kwargs, wrapped)

    def _count(self, name: str, args: tuple, kwargs: dict, writes_device: bool) -> None:
        key = (self._part, _line())
        self.counts.launches[key] += _launches(name, args)
        waits = int(bool(WAITING.fullmatch(name)))
        if name in COPIES:
            waits = int(self._is_blocking_copy(name, args, kwargs, writes_device))
        elif INDEXING.fullmatch(name):
            waits = _waits_of_indices(args)
        elif name == "repeat_interleave":
            waits = int(kwargs.get("output_size") is None)
        if waits:
            self.counts.waits[key] += waits

    def _is_blocking_copy(self, name: str, args: tuple, kwargs: dict, writes_device: bool) -> bool:
        source = args[1] if name == "copy_" else args[0]
        to_device = _is_on_device(args[0]) if name == "copy_" else writes_device
        if _is_on_device(source) == to_device:
            return False
        is_async = kwargs.get("non_blocking", len(args) > 2 and args[2])
        return not (to_device and is_async and self.is_pinned(source))

    def is_pinned(self, tensor: torch.Tensor) -> bool:
        """Stand in for Tensor.is_pinned."""
        return tensor.untyped_storage().data_ptr() in self._pinned


class Generator(torch.Generator):
    """A generator that is on the CPU, whatever device is asked for."""

    def __new__(cls, device: Any = "cpu") -> "Generator":
        return super().__new__(cls, "cpu")


@contextmanager
def pretended_cuda() -> Iterator[PretendCuda]:
    """Make the machine look as if it had one CUDA device, and count what it is asked for."""
    mode = PretendCuda()
    lifted = torch._C._only_lift_cpu_tensors()
    overwritten = torch.__future__.get_overwrite_module_params_on_conversion()
    cuda: dict[str, Callable] = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "is_bf16_supported": lambda *args, **kwargs: True,
        "get_device_capability": lambda *args: (9, 0),
        "is_current_stream_capturing": lambda: False,
        "max_memory_allocated": lambda *args: 0,
        "manual_seed_all": lambda seed: None,
        "_lazy_init": lambda: None,
    }
    with ExitStack() as stack:
        for name, function in cuda.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, function))
        patches: list[tuple[Any, str, Any]] = [
            (torch, "Generator", Generator),
            (torch.Tensor, "pin_memory", lambda tensor, *args: mode.pin(tensor)),
            (torch.Tensor, "is_pinned", lambda tensor, *args: mode.is_pinned(tensor)),
            (_foreach_utils, "_foreach_supported_types", [torch.Tensor, PretendTensor]),
            (_foreach_utils, "_get_foreach_kernels_supported_devices", lambda: ["cuda", "meta"]),
        ]
        for owner, name, value in patches:
            stack.enter_context(mock.patch.object(owner, name, value))
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, overwritten)
        torch._C._set_only_lift_cpu_tensors(True)
        stack.callback(torch._C._set_only_lift_cpu_tensors, lifted)
        # The threads of autograd know nothing of the mode.
        stack.enter_context(torch.autograd.set_multithreading_enabled(False))
        yield stack.enter_context(mode)


def _is_on_device(x: Any) -> bool:
    return isinstance(x, PretendTensor)


def _is_same_type(tensor: torch.Tensor, kwargs: dict) -> bool:
    layout = kwargs.get("memory_format") or torch.preserve_format
    return kwargs.get("dtype") in (None, tensor.dtype) and layout is torch.preserve_format


def _wrap(x: Any) -> Any:
    return PretendTensor(x) if isinstance(x, torch.Tensor) and not _is_on_device(x) else x


def _unwrap(x: Any) -> Any:
    if isinstance(x, torch.device):
        return torch.device("cpu")
    return x.cpu_tensor if isinstance(x, PretendTensor) else x


def _compute(operator: Callable, args: tuple, kwargs: dict) -> Any:
    """Run an operator on the values on the CPU."""
    args, kwargs = tree_map(_unwrap, (args, kwargs))
    if kwargs.get("pin_memory"):
        kwargs["pin_memory"] = False
    return operator(*args, **kwargs)


def _launches(name: str, args: tuple) -> int:
    if NO_KERNEL.fullmatch(name):
        return 0
    lists = [x for x in args if isinstance(x, (list, tuple)) and x and _is_on_device(x[0])]
    if not name.startswith(("_foreach", "_fused")) or not lists:
        return 1
    most = FOREACH_TENSORS.get(len(lists), 30)
    chunks = sum(-(-x.numel() // CHUNK) for x in lists[0])
    return max(-(-len(lists[0]) // most), -(-chunks // FOREACH_CHUNKS))


def _waits_of_indices(args: tuple) -> int:
    """CUDA looks for the true elements of a mask, and copies an index from the CPU."""
    indices = [index for index in args[1] if index is not None]
    value = args[2] if len(args) > 2 else None
    is_fill = value is not None and value.numel() == 1 and not _is_on_device(value)
    masks = sum(x.dtype in (torch.bool, torch.uint8) for x in indices)
    copies = sum(not _is_on_device(x) for x in indices)
    return copies + (0 if is_fill else masks)


def _refuse_mixed(operator: Callable, name: str, args: tuple, tensors: list) -> None:
    """Raise RuntimeError for tensors of both devices; an index or a scalar may be on the CPU."""
    allowed = {id(x) for x in args[1] if x is not None} if INDEXING.fullmatch(name) else set()
    scalars_too = name in ("cat", "stack")
    wrong = [
        tuple(x.shape)
        for x in tensors
        if not _is_on_device(x) and id(x) not in allowed and (x.dim() or scalars_too)
    ]
    if wrong:
        raise RuntimeError(
            f"{operator}: expected all tensors on {DEVICE}, found CPU tensors {wrong} at {_line()}"
        )


def _line() -> str:
    """Return the innermost line of the package in the stack."""
    frame = sys._getframe(2)
    while frame is not None:
        path = frame.f_code.co_filename
        if PACKAGE in path and "site-packages" not in path:
            return f"{path.rsplit(PACKAGE, 1)[1]}:{frame.f_lineno}"
        frame = frame.f_back
    return "-"
