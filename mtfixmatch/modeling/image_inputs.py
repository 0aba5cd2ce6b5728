"""Check the images that a network is given, so that a wrong one does not give a wrong result."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..utils.errors import InputError

FORM = "an image is (3, H, W), RGB, uint8 or floating point with values in 0-255"
REMEDY = "channels first, OpenCV's BGR as RGB, grey repeated 3 times, without alpha"


def check_image(inputs: Any) -> Tensor:
    """Return the "image" of one of Detectron2's inputs as a tensor, uint8 or float32.

    It is a tensor or an array, (3, H, W) RGB in 0-255, uint8 or of any floating-point type. Values
    of floating point are looked at, for which a GPU is waited for once.

    Raises:
        InputError: it has another form, or values that are not in 0-255 or all at most 1.
    """
    if not isinstance(inputs, dict) or "image" not in inputs:
        raise wrong_input(inputs, 'the model takes a list of dicts with "image"')
    given = inputs["image"]
    image = _as_tensor(given)
    if image.dim() != 3 or image.shape[0] != 3 or not image.numel():
        raise wrong_input(given, f"{FORM} ({REMEDY})")
    if image.dtype == torch.uint8:
        return image
    if not image.is_floating_point():
        raise wrong_input(given, FORM)
    image = image.float()
    low, high = torch.stack(image.aminmax()).tolist()
    if not 0 <= low <= high <= 255:  # or one of them is nan
        remedy = "clip values, undo a normalization, or scale 16 bits"
        raise wrong_input(given, f"{FORM} ({remedy})", f" from {low:.4g} to {high:.4g}")
    if 0 < high <= 1:
        raise wrong_input(given, f"{FORM} (multiply values in 0-1 by 255)", f" up to {high:.4g}")
    return image


def wrong_input(value: Any, expected: str, values: str = "") -> InputError:
    """Return an error that says what was expected and what was found, with its `values`."""
    kind = type(value).__name__
    if hasattr(value, "shape"):
        dtype = str(value.dtype).removeprefix("torch.")
        kind = f"{dtype} {kind} of shape {tuple(value.shape)}"
    return InputError(f"{expected}; found {kind}{values}")


def _as_tensor(image: Any) -> Tensor:
    if isinstance(image, Tensor):
        return image
    try:
        # A copy has positive strides and may be written to, which PyTorch wants.
        return torch.from_numpy(np.copy(image))
    except (TypeError, ValueError):
        raise wrong_input(image, FORM) from None
