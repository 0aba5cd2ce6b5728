"""Draw boxes with names on a picture.

Pillow takes a twentieth of the time of Detectron2's Visualizer, which pictures of many images need.
"""

from collections.abc import Sequence
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

LEAST_FONT, FONT_SHARE = 9, 1 / 40  # least height in pixels of letters; share of the shorter side
LINE_SHARE = 1 / 300  # width of a line as a share of the shorter side
MARGIN = 1  # pixels around a name
Color = tuple[int, int, int]  # RGB in 0-255


def draw_boxes(
    image: np.ndarray, boxes: np.ndarray, names: Sequence[str], colors: Sequence[Color]
) -> np.ndarray:
    """Return a picture with boxes, the largest first, each with its name inside or above it.

    Args:
        image: (H, W, 3) uint8 RGB.
        boxes: (M, 4), x0, y0, x1, y1 in pixels, ends exclusive.
        names: names of the M boxes; "": none.
        colors: colors of the M boxes.
    """
    side = min(image.shape[:2])
    canvas = Image.fromarray(image)
    pen = ImageDraw.Draw(canvas)
    font, width = _font(max(LEAST_FONT, round(side * FONT_SHARE))), max(1, round(side * LINE_SHARE))
    sides = boxes[:, 2:] - boxes[:, :2]
    for i in np.argsort(-sides.prod(axis=1), kind="stable"):
        x0, y0, x1, y1 = boxes[i].round().astype(int).tolist()
        corners = (x0, y0, max(x1 - 1, x0), max(y1 - 1, y0))
        pen.rectangle(corners, outline=colors[i], width=width)
        if names[i]:
            _write_name(pen, (x0, y0), names[i], font, colors[i])
    return np.asarray(canvas)


def _write_name(pen: ImageDraw.ImageDraw, corner: tuple[int, int], name: str, font, color: Color):
    """Write a name on black, with its lower left end at a corner if there is room above it."""
    left, top, right, bottom = map(round, pen.textbbox((0, 0), name, font=font))
    width, height = right - left + 2 * MARGIN, bottom - top + 2 * MARGIN
    x, y = corner
    y = y - height if y >= height else y
    pen.rectangle((x, y, x + width - 1, y + height - 1), fill=(0, 0, 0))
    pen.text((x + MARGIN - left, y + MARGIN - top), name, font=font, fill=color)


@cache
def _font(size: int):
    return ImageFont.load_default(size)
