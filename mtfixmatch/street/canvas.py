"""Drawing in metres: a `Layer` holds one object, a `Scene` places layers in perspective.

The ground is flat and the camera looks along the street. An object at depth z is drawn at
`scale` = focal / z pixels per metre, with its foot CAMERA_HEIGHT * scale below the horizon.
"""

import colorsys
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import count

import cv2
import numpy as np
from cityscapesscripts.helpers.labels import name2label
from numpy.random import Generator

Color = tuple[float, float, float]  # RGB in [0, 255]
Point = tuple[float, float]
Range = tuple[float, float]
DARK: Color = (28, 28, 32)
GLASS: tuple[Range, Range, Range] = ((0.5, 0.65), (0.05, 0.4), (0.1, 0.55))  # of `random_color`
ID = {name: label.id for name, label in name2label.items()}  # Cityscapes' label ids
CAMERA_HEIGHT = 1.5  # metres
CIRCLE = [(math.cos(angle), math.sin(angle)) for angle in np.linspace(0, 2 * math.pi, 13)[:-1]]
SHIFT = 4  # fractional bits of OpenCV's drawing coordinates
NARROW = 8  # pixels; a layer of less width shows no details


def random_color(
    rng: Generator, hue: Range = (0, 1), sat: Range = (0, 0.9), val: Range = (0.2, 0.95)
) -> Color:
    """Draw a colour from ranges of hue, saturation and value, each within [0, 1]."""
    ranges = zip((hue, sat, val), rng.random(3).tolist(), strict=True)
    red, green, blue = colorsys.hsv_to_rgb(*(low + u * (high - low) for (low, high), u in ranges))
    return 255 * red, 255 * green, 255 * blue


def dim(color: Color, factor: float) -> Color:
    """Multiply the brightness of a colour; a factor above 1 brightens it."""
    red, green, blue = (min(255.0, factor * c) for c in color)
    return red, green, blue


def white_noise(rng: Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Uniform float32 noise in [-1, 1], drawn as bytes because that is much faster."""
    values = np.frombuffer(rng.bytes(math.prod(shape)), np.uint8).reshape(shape)
    return values.astype(np.float32) * np.float32(2 / 255) - np.float32(1)


def steps(start: float, stop: float, step: float) -> list[float]:
    """Like np.arange, but plain floats, with which drawing is faster."""
    return np.arange(start, stop, step).tolist()


class Layer:
    """One object on a transparent picture, with the id of every pixel, 0 where nothing is drawn.

    Attributes:
        size: Width and height in metres; the origin is the bottom left corner.
        scale: Pixels per metre across and up.
        label: Id that is drawn; None leaves the ids alone, for details of an object.
    """

    def __init__(self, rng: Generator, size: Point, scale: float, label: int, squeeze: float):
        """Make an empty layer, whose width is foreshortened by `squeeze` in (0, 1]."""
        self.rng, self.size = rng, size
        self.label: int | None = label
        self.scale = (float(scale * squeeze), float(scale))
        cols, rows = (max(2, round(length * s)) for length, s in zip(size, self.scale, strict=True))
        self.rgba = np.zeros((rows, cols, 4), np.uint8)
        self.ids = np.zeros((rows, cols), np.uint16)
        self.is_narrow = cols < NARROW

    def _draw(self, draw: Callable, points: Sequence[Point], color: Color | None, **more) -> None:
        """Draw on both pictures with a function of OpenCV, which takes fixed-point coordinates."""
        (across, up), top = (s * (1 << SHIFT) for s in self.scale), self.size[1]
        half = 1 << SHIFT - 1  # the centre of the first pixel
        pixels = [(round(x * across) - half, round((top - y) * up) - half) for x, y in points]
        for picture, value in (self.ids, self.label), (self.rgba, color and (*color, 255)):
            if value is not None:
                draw(picture, [np.array(pixels, np.int32)], color=value, shift=SHIFT, **more)

    def poly(self, points: Sequence[Point], color: Color | None) -> None:
        """Fill a polygon; without a colour it is labeled but see-through."""
        self._draw(cv2.fillPoly, points, color)

    def rect(self, left: float, low: float, right: float, top: float, color: Color | None) -> None:
        """Fill a rectangle."""
        self.poly([(left, low), (right, low), (right, top), (left, top)], color)

    def disc(self, x: float, y: float, radius: float, color: Color | None) -> None:
        """Fill a circle."""
        self.poly([(x + radius * cos, y + radius * sin) for cos, sin in CIRCLE], color)

    def line(self, points: Sequence[Point], width: float, color: Color) -> None:
        """Draw a line through points, at least one pixel wide."""
        thickness = max(1, round(width * sum(self.scale) / 2))
        self._draw(cv2.polylines, points, color, isClosed=False, thickness=thickness)

    def shade(self) -> None:
        """Add light from above, uneven reflections and grain to the picture."""
        rng, (rows, cols) = self.rng, self.ids.shape
        reflections = rng.uniform(-0.2, 0.2, (3, 4)).astype(np.float32)
        light: np.ndarray = 2 * np.float32(0.06) * white_noise(rng, (rows, cols))
        light += cv2.resize(reflections, (cols, rows))
        light += np.linspace(1.15, 0.85, rows, dtype=np.float32)[:, None]
        light *= np.float32(rng.uniform(0.8, 1.15))
        lights = cv2.merge([light, light, light, np.ones_like(light)])
        cv2.multiply(self.rgba, lights, self.rgba, dtype=cv2.CV_8U)


Draw = Callable[[Layer], None]  # draws an object on a layer


class Scene:
    """A picture with the id, as in Cityscapes' instanceIds, and the scale of every pixel."""

    def __init__(self, rng: Generator, width: int, height: int):
        """Make a black picture of width x height pixels, labeled as sky."""
        self.rng, self.width, self.height = rng, width, height
        self.unit = height / 256  # pixels, relative to a picture of 256 rows
        self.rgb: np.ndarray = np.zeros((height, width, 3), np.uint8)
        self.ids = np.full((height, width), ID["sky"], np.uint16)
        self.scales = np.zeros((height, width), np.float32)  # pixels per metre; 0 in the sky
        self.horizon = height * rng.uniform(0.32, 0.46)
        self.center = width * rng.uniform(0.3, 0.7)
        self.focal = 2.0 * height
        self.painted: Counter[int] = Counter()  # pixels of each instance before anything hid it
        self._numbers: defaultdict[str, Iterator[int]] = defaultdict(count)

    def new_instance(self, name: str) -> int:
        """Return the id of a new instance of a class."""
        return ID[name] * 1000 + next(self._numbers[name])

    def random_scale(self, low: float, high: float) -> float:
        """Draw a scale, log-uniform between two that hold for a picture of 256 rows."""
        return self.unit * float(np.exp(self.rng.uniform(np.log(low), np.log(high))))

    def scale_behind(self, scale: float, distance: float) -> float:
        """Return the scale `distance` metres behind a point of the given scale."""
        return 1 / (1 / scale + distance / self.focal)

    def project(self, x: float, y: float, scale: float) -> Point:
        """Return the pixel of a point x metres aside and y metres above the ground."""
        return self.center + x * scale, self.horizon + (CAMERA_HEIGHT - y) * scale

    def _project_ground(self, x: Range, scale: Range) -> np.ndarray:
        """Return the corners (4, 2) of a rectangle of the ground, in pixels."""
        (left, right), (far, near) = x, scale
        corners = ((left, far), (right, far), (right, near), (left, near))
        return np.array([self.project(aside, 0, s) for aside, s in corners])

    def paint_ground(self, x: Range, scale: Range, color: Color, label: int | None = None) -> None:
        """Paint a rectangle from left to right in metres and between a far and a near scale."""
        pixels = [np.round(self._project_ground(x, scale) * (1 << SHIFT)).astype(np.int32)]
        cv2.fillPoly(self.rgb, pixels, color, shift=SHIFT)
        if label is not None:
            cv2.fillPoly(self.ids, pixels, label, shift=SHIFT)

    def darken_ground(self, x: Range, scale: Range, factor: float) -> None:
        """Multiply the brightness of a rectangle of the ground, for a shadow."""
        corners = np.round(self._project_ground(x, scale))
        points = np.clip(corners, 0, (self.width, self.height)).astype(np.int32)
        (left, top), (right, low) = points.min(0), points.max(0)
        if left < right and top < low:
            mask = np.full((low - top, right - left, 3), 255, np.uint8)
            cv2.fillPoly(mask, [points - (left, top)], (255 * factor,) * 3)
            part = self.rgb[top:low, left:right]
            cv2.multiply(part, mask, part, 1 / 255)

    def draw_facing(
        self, draw: Draw, size: Point, label: int, x: float, scale: float, squeeze: float = 1
    ) -> None:
        """Draw an object that faces the camera, with its middle x metres aside.

        It is turned away from the camera by `squeeze` in [-1, 1]; a negative one mirrors it.
        """
        middle, foot = self.project(x, 0, scale)
        reach = abs(squeeze) * size[0] * scale / 2
        if middle + reach < 0 or middle - reach > self.width:
            return
        layer = Layer(self.rng, size, scale, label, abs(squeeze))
        draw(layer)
        layer.shade()
        left, top = round(middle - layer.ids.shape[1] / 2), round(foot - layer.ids.shape[0])
        step = -1 if squeeze < 0 else 1
        self._blend(layer.rgba[:, ::step], layer.ids[:, ::step], left, top, scale)

    def draw_along(
        self, draw: Draw, size: Point, label: int, x: float, near: float, mirror: bool = False
    ) -> None:
        """Draw an object whose side lies along the street, from scale `near` into the distance."""
        far = self.scale_behind(near, size[0])
        corners = ((size[1], far), (size[1], near), (0, near), (0, far))
        target = np.array([self.project(x, y, scale) for y, scale in corners], np.float32)
        low = np.maximum(np.floor(target.min(0)), 0)
        high = np.minimum(np.ceil(target.max(0)) + 1, (self.width, self.height))
        if (high <= low).any():
            return
        middle = (near + far) / 2
        squeeze = np.clip(abs(x) * (near - far) / (size[0] * middle), 0.04, 1)
        layer = Layer(self.rng, size, middle, label, float(squeeze))
        draw(layer)
        layer.shade()
        rows, cols = layer.ids.shape
        source = np.array([(0, 0), (cols, 0), (cols, rows), (0, rows)], np.float32)
        if mirror:
            source[:, 0] = cols - source[:, 0]
        matrix = cv2.getPerspectiveTransform(source, (target - low).astype(np.float32))
        shape = tuple((high - low).astype(int).tolist())
        rgba = cv2.warpPerspective(layer.rgba, matrix, shape, flags=cv2.INTER_LINEAR)
        ids = cv2.warpPerspective(layer.ids, matrix, shape, flags=cv2.INTER_NEAREST)
        self._blend(rgba, ids, int(low[0]), int(low[1]), middle)

    def _blend(self, rgba: np.ndarray, ids: np.ndarray, left: int, top: int, scale: float) -> None:
        """Put a layer over the scene, its top left corner at the pixel (left, top)."""
        rows, cols = ids.shape
        x0, x1 = max(left, 0), min(left + cols, self.width)
        y0, y1 = max(top, 0), min(top + rows, self.height)
        if x0 >= x1 or y0 >= y1:
            return
        here, cut = np.s_[y0:y1, x0:x1], np.s_[y0 - top : y1 - top, x0 - left : x1 - left]
        rgba, ids = rgba[cut], ids[cut]
        cv2.copyTo(cv2.cvtColor(rgba, cv2.COLOR_RGBA2RGB), rgba[..., 3] >> 7, self.rgb[here])
        self.painted.update(ids[(ids >= 1000) & (ids != self.ids[here])].tolist())
        np.copyto(self.ids[here], ids, where=ids > 0)
        np.copyto(self.scales[here], scale, where=ids > 0)
