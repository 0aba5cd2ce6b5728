"""Drawing in metres: a `Layer` for one object, a `Scene` that puts layers into perspective.

The ground is flat and the camera looks along the street. What stands at depth z is drawn at
`scale` = focal / z pixels per metre, its foot CAMERA * scale below the horizon, x * scale aside.
"""

from __future__ import annotations

import colorsys
import math
from collections import Counter
from collections.abc import Callable, Sequence

import cv2
import numpy as np
from cityscapesscripts.helpers.labels import name2label
from numpy.random import Generator

Color = tuple[float, float, float, float]
Point = tuple[float, float]
DARK: Color = (28, 28, 32, 255)
ID = {name: label.id for name, label in name2label.items()}
CAMERA = 1.5  # its height in metres
CIRCLE = [(math.cos(turn), math.sin(turn)) for turn in np.linspace(0, 2 * math.pi, 13)[:-1]]
SHIFT = 4  # fractional bits of the drawing coordinates


def tint(
    rng: Generator, hue: Point = (0, 1), sat: Point = (0, 0.9), val: Point = (0.2, 0.95)
) -> Color:
    """A random opaque colour from ranges of hue, saturation and value."""
    parts = zip((hue, sat, val), rng.random(3).tolist(), strict=True)
    red, green, blue = colorsys.hsv_to_rgb(*(low + u * (high - low) for (low, high), u in parts))
    return (255 * red, 255 * green, 255 * blue, 255.0)


def glass_tint(rng: Generator) -> Color:
    """The colour of a window, mostly dark and bluish."""
    return tint(rng, (0.5, 0.65), (0.05, 0.4), (0.1, 0.55))


def dim(color: Color, factor: float) -> Color:
    """The same colour, brighter or darker."""
    red, green, blue = (min(255.0, factor * c) for c in color[:3])
    return (red, green, blue, color[3])


def static(rng: Generator, shape: tuple[int, ...]) -> np.ndarray:
    """White noise, uniform in [-1, 1], from one byte a value: much faster than a normal one."""
    values = np.frombuffer(rng.bytes(math.prod(shape)), np.uint8).reshape(shape)
    return values.astype(np.float32) * np.float32(2 / 255) - np.float32(1)


def steps(start: float, stop: float, step: float) -> list[float]:
    """Places at a regular distance, as plain floats: drawing is faster with them."""
    return np.arange(start, stop, step).tolist()


class Layer:
    """A transparent picture and its id map, drawn together.

    `label` is the id of what is being drawn; None is a detail of what is there already.
    """

    def __init__(self, size: Point, scale: float, label: int, squeeze: float = 1.0):
        self.size = size
        self.label: int | None = label
        self.scale = (float(scale * squeeze), float(scale))
        cols, rows = (max(2, round(length * s)) for length, s in zip(size, self.scale, strict=True))
        self.rgba = np.zeros((rows, cols, 4), np.uint8)
        self.ids = np.zeros((rows, cols), np.uint16)

    def _pixels(self, points: Sequence[Point]) -> np.ndarray:
        (across, up), top = (s * (1 << SHIFT) for s in self.scale), self.size[1]
        half = 1 << SHIFT - 1  # the centre of the first pixel
        pixels = [(round(x * across) - half, round((top - y) * up) - half) for x, y in points]
        return np.array(pixels, np.int32)

    def poly(self, points: Sequence[Point], color: Color | None) -> None:
        """Fill a polygon; without a colour it is labeled but see-through."""
        pixels = [self._pixels(points)]
        if self.label is not None:
            cv2.fillPoly(self.ids, pixels, self.label, cv2.LINE_8, SHIFT)
        if color is not None:
            cv2.fillPoly(self.rgba, pixels, color, cv2.LINE_8, SHIFT)

    def rect(self, left: float, low: float, right: float, top: float, color: Color | None) -> None:
        """Fill a rectangle."""
        self.poly([(left, low), (right, low), (right, top), (left, top)], color)

    def disc(self, x: float, y: float, radius: float, color: Color | None) -> None:
        """Fill a circle."""
        self.poly([(x + radius * cos, y + radius * sin) for cos, sin in CIRCLE], color)

    def line(self, points: Sequence[Point], width: float, color: Color) -> None:
        """Draw a line through points, at least one pixel wide."""
        pixels, thick = (
            [self._pixels(points)],
            max(1, round(width * (self.scale[0] + self.scale[1]) / 2)),
        )
        cv2.polylines(self.rgba, pixels, False, color, thick, cv2.LINE_8, SHIFT)
        if self.label is not None:
            cv2.polylines(self.ids, pixels, False, self.label, thick, cv2.LINE_8, SHIFT)

    def shade(self, rng: Generator, grain: float = 0.06) -> Layer:
        """Light from above, uneven reflections and grain on all that is drawn so far."""
        rows, cols = self.ids.shape
        uneven = rng.uniform(-0.2, 0.2, (3, 4)).astype(np.float32)
        light: np.ndarray = 2 * np.float32(grain) * static(rng, (rows, cols))
        light += cv2.resize(uneven, (cols, rows))
        light += np.linspace(1.15, 0.85, rows, dtype=np.float32)[:, None]
        light *= np.float32(rng.uniform(0.8, 1.15))
        lights = cv2.merge([light, light, light, np.ones_like(light)])
        cv2.multiply(self.rgba, lights, self.rgba, dtype=cv2.CV_8U)
        return self


class Scene:
    """The picture, the ids and, per pixel, the scale of what is seen (0 in the sky)."""

    def __init__(self, rng: Generator, width: int, height: int):
        self.rng = rng
        self.width, self.height = width, height
        self.unit = height / 256
        self.rgb: np.ndarray = np.zeros((height, width, 3), np.uint8)
        self.ids = np.full((height, width), ID["sky"], np.uint16)
        self.near = np.zeros((height, width), np.float32)
        self.horizon = height * rng.uniform(0.32, 0.46)
        self.center = width * rng.uniform(0.3, 0.7)
        self.focal = 2.0 * height
        self.painted: Counter[int] = Counter()  # pixels of each instance before anything hid it
        self._instances: Counter[str] = Counter()

    def instance(self, name: str) -> int:
        """The id of a new instance."""
        self._instances[name] += 1
        return ID[name] * 1000 + self._instances[name] - 1

    def at(self, x: float, y: float, scale: float) -> Point:
        """The pixel of a point x metres aside and y metres above the ground."""
        return self.center + x * scale, self.horizon + (CAMERA - y) * scale

    def strip(self, x: Point, scale: Point, color: Color, label: int | None) -> None:
        """Paint a rectangle of the ground; without a label only its colour changes."""
        corners = [self.at(x[i], 0, scale[j]) for i, j in ((0, 0), (1, 0), (1, 1), (0, 1))]
        points = np.round(np.array(corners) * 16).astype(np.int32)
        cv2.fillPoly(self.rgb, [points], color, cv2.LINE_8, 4)
        if label is not None:
            cv2.fillPoly(self.ids, [points], label, cv2.LINE_8, 4)

    def stand(
        self,
        draw: Callable[[Layer], object],
        size: Point,
        label: int,
        x: float,
        scale: float,
        squeeze: float = 1.0,
    ) -> None:
        """Draw something that faces the camera, turned away from it by `squeeze`, or mirrored."""
        left, foot = self.at(x, 0, scale)
        reach = abs(squeeze) * size[0] * scale / 2
        if left + reach < 0 or left - reach > self.width:
            return
        layer = Layer(size, scale, label, abs(squeeze))
        draw(layer)
        layer.shade(self.rng)
        if squeeze < 0:
            layer.rgba, layer.ids = layer.rgba[:, ::-1].copy(), layer.ids[:, ::-1].copy()
        corner = round(left - layer.ids.shape[1] / 2), round(foot - layer.ids.shape[0])
        self._blend(layer.rgba, layer.ids, corner, scale)

    def shadow(self, x: Point, scale: Point, keep: float) -> None:
        """Darken a rectangle of the ground."""
        corners = [self.at(x[i], 0, scale[j]) for i, j in ((0, 0), (1, 0), (1, 1), (0, 1))]
        points = np.clip(np.round(corners), 0, (self.width, self.height)).astype(np.int32)
        (left, top), (right, low) = points.min(0), points.max(0)
        if left < right and top < low:
            mask = np.full((low - top, right - left, 3), 255, np.uint8)
            cv2.fillPoly(mask, [points - (left, top)], (255 * keep,) * 3)
            part = self.rgb[top:low, left:right]
            cv2.multiply(part, mask, part, 1 / 255)

    def recede(
        self,
        draw: Callable[[Layer], object],
        size: Point,
        label: int,
        x: float,
        near: float,
        flip: bool,
    ) -> None:
        """Draw something along the street, its near end at scale `near`; flip turns it around."""
        far = self.beyond(near, size[0])
        corners = ((size[1], far), (size[1], near), (0, near), (0, far))
        target = np.array([self.at(x, y, scale) for y, scale in corners], np.float32)
        low = np.maximum(np.floor(target.min(0)), 0)
        high = np.minimum(np.ceil(target.max(0)) + 1, (self.width, self.height))
        if (high <= low).any():
            return
        middle = (near + far) / 2
        squeeze = np.clip(abs(x) * (near - far) / (size[0] * middle), 0.04, 1)
        layer = Layer(size, middle, label, float(squeeze))
        draw(layer)
        layer.shade(self.rng)
        rows, cols = layer.ids.shape
        source = np.array([(0, 0), (cols, 0), (cols, rows), (0, rows)], np.float32)
        if flip:
            source[:, 0] = cols - source[:, 0]
        matrix = cv2.getPerspectiveTransform(source, (target - low).astype(np.float32))
        shape = tuple((high - low).astype(int).tolist())
        rgba = cv2.warpPerspective(layer.rgba, matrix, shape, flags=cv2.INTER_LINEAR)
        ids = cv2.warpPerspective(layer.ids, matrix, shape, flags=cv2.INTER_NEAREST)
        self._blend(rgba, ids, (int(low[0]), int(low[1])), middle)

    def beyond(self, scale: float, distance: float) -> float:
        """The scale `distance` metres behind what has this scale."""
        return 1 / (1 / scale + distance / self.focal)

    def _blend(
        self, rgba: np.ndarray, ids: np.ndarray, corner: tuple[int, int], scale: float
    ) -> None:
        (left, top), (rows, cols) = corner, ids.shape
        x0, x1 = max(left, 0), min(left + cols, self.width)
        y0, y1 = max(top, 0), min(top + rows, self.height)
        if x0 >= x1 or y0 >= y1:
            return
        here, cut = np.s_[y0:y1, x0:x1], np.s_[y0 - top : y1 - top, x0 - left : x1 - left]
        rgba, ids = rgba[cut], ids[cut]
        cv2.copyTo(cv2.cvtColor(rgba, cv2.COLOR_RGBA2RGB), rgba[..., 3] >> 7, self.rgb[here])
        fresh = ids[(ids >= 1000) & (ids != self.ids[here])]
        if fresh.size:
            values, counts = np.unique(fresh, return_counts=True)
            self.painted.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
        np.copyto(self.ids[here], ids, where=ids > 0)
        np.copyto(self.near[here], scale, where=ids > 0)
