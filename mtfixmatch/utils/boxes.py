"""Boxes [x0, y0, x1, y1] in pixels, ends exclusive, and the border of their image."""

from collections.abc import Sequence

# Boxes reach over the border of the image by up to a pixel because they were rounded.
MAX_OVERSHOOT = 1.0


def clip_box(box: Sequence[float], width: float, height: float) -> list[float]:
    """Clip a box to its image; outside of it, the ends are in the wrong order or equal."""
    x0, y0, x1, y1 = box
    return [max(x0, 0.0), max(y0, 0.0), min(x1, width), min(y1, height)]


def is_far(box: Sequence[float], width: float, height: float) -> bool:
    """Return whether a box reaches over the border of its image by more than rounding does."""
    x0, y0, x1, y1 = box
    return min(x0, y0, width - x1, height - y1) < -MAX_OVERSHOOT
