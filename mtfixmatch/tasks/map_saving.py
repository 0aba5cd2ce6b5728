"""Predicted maps and their confidence as PNGs."""

import json
from typing import Any

from torch import Tensor

from .saving import Layer, SavedResults

MAPS, CONFIDENCE = "maps", "confidence"


class SavedMaps(SavedResults):
    """The part of a segmentation task that writes maps to files."""

    class_names: list[str]
    colors: list[list[int]]
    result_key: str
    saved_layers = (MAPS, CONFIDENCE)
    saved_on_request = (CONFIDENCE,)

    def record(self, result: dict[str, Any], target: Tensor, threshold: float) -> dict[str, Any]:
        """See base class: the classes that some pixel has."""
        return {"classes": target.flatten().bincount().nonzero().flatten().tolist()}

    def layer(self, name: str, result: dict[str, Any], target: Tensor) -> Layer:
        """Return the class of each pixel, or 255 times its probability as grey values."""
        if name == MAPS:
            return Layer(target.numpy(), self.colors)
        shares = result[self.result_key].softmax(dim=0).amax(dim=0)
        return Layer((255 * shares).round().byte().cpu().numpy(), [])

    def class_table(self, name: str) -> str:
        """See base class: id, name and color of each class of a map, one in a line."""
        if name != MAPS:
            return ""
        pairs = zip(self.class_names, self.colors, strict=True)
        rows = [{"id": i, "name": x, "color": color} for i, (x, color) in enumerate(pairs)]
        return "[\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n]\n"
