"""The formats of label files: each reads files into the same lists, whatever tool wrote them."""

from .boxes import BoxSource, ListedImage, open_boxes

__all__ = ["BoxSource", "ListedImage", "open_boxes"]
