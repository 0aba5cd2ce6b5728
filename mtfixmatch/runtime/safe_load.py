"""Read checkpoints from untrusted sources without running code in them."""

import pickle
import re
from typing import Any

import torch

from ..utils.errors import InputError

# Constructors of the arrays in the model zoo's pickles, under numpy's old and new names.
_CONSTRUCTORS = ("multiarray._reconstruct", "multiarray.scalar", "numeric._frombuffer")
_ALLOWED = {
    *(f"{package}.{name}" for package in ("numpy.core", "numpy._core") for name in _CONSTRUCTORS),
    *("numpy.ndarray", "numpy.dtype", "_codecs.encode", "collections.OrderedDict"),
}


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickler of numpy arrays and plain Python values that refuses everything else."""

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" in _ALLOWED:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"GLOBAL {module}.{name}")


def read_pickle(path: str, *, trust: bool) -> Any:
    """Read a pickle of arrays, such as those of the model zoo; `trust` lets it run any code.

    Raises:
        InputError: for a file with other content than arrays, or a damaged one.
    """
    try:
        with open(path, "rb") as file:
            return (pickle.Unpickler if trust else _ArrayUnpickler)(file, encoding="latin1").load()
    except pickle.UnpicklingError as error:
        raise _refusal(path, error) from None


def read_tensors(path: str, *, trust: bool) -> Any:
    """Read a file of torch.save; arguments and errors are those of `read_pickle`."""
    try:
        return torch.load(path, map_location="cpu", weights_only=not trust)
    except pickle.UnpicklingError as error:
        raise _refusal(path, error) from None


def _refusal(path: str, error: pickle.UnpicklingError) -> InputError:
    if not (match := re.search(r"GLOBAL ([\w.]+)", str(error))):
        return InputError(f"the checkpoint {path} cannot be read: it is damaged or no checkpoint")
    return InputError(
        f"the checkpoint {path} is not loaded: it contains {match[1]}, which can run code, where "
        "weights are expected. If you trust its source, set MODEL.TRUST_PICKLE True"
    )
