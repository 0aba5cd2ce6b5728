"""Reading checkpoints of others without running what they might bring along."""

import pickle
import re
from typing import Any

import torch

from ..utils.errors import InputError

# What the arrays of the model zoo are made of, under numpy's old and new names.
_MAKERS = ("multiarray._reconstruct", "multiarray.scalar", "numeric._frombuffer")
_ALLOWED = {
    *(f"{package}.{maker}" for package in ("numpy.core", "numpy._core") for maker in _MAKERS),
    *("numpy.ndarray", "numpy.dtype", "_codecs.encode", "collections.OrderedDict"),
}


class _ArrayUnpickler(pickle.Unpickler):
    """Knows numpy's arrays and Python's plain values, nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" in _ALLOWED:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"GLOBAL {module}.{name}")


def read_pickle(path: str, *, trust: bool) -> Any:
    """Read a pickle of arrays, as the model zoo's are.

    Args:
        path: of the file.
        trust: allow whatever it holds, which can be any code.

    Raises:
        InputError: for a file that holds more.
    """
    with open(path, "rb") as file:
        unpickler = (pickle.Unpickler if trust else _ArrayUnpickler)(file, encoding="latin1")
        try:
            return unpickler.load()
        except pickle.UnpicklingError as error:
            raise _refusal(path, error) from None


def read_tensors(path: str, *, trust: bool) -> Any:
    """Read a file of torch.save; arguments and errors as of `read_pickle`."""
    try:
        return torch.load(path, map_location="cpu", weights_only=not trust)
    except pickle.UnpicklingError as error:
        raise _refusal(path, error) from None


def _refusal(path: str, error: pickle.UnpicklingError) -> InputError:
    found = re.search(r"GLOBAL ([\w.]+)", str(error))
    if not found:
        return InputError(f"the checkpoint {path} cannot be read: it is damaged or no checkpoint")
    return InputError(
        f"the checkpoint {path} is not loaded: it holds {found[1]}, which can run code, where "
        "weights are expected. If you trust who made it, set MODEL.TRUST_PICKLE True"
    )
