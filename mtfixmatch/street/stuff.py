"""How buildings, plants, barriers, poles and boxes look.

All functions draw on a layer, in metres from its bottom left corner.
"""

from __future__ import annotations

from .canvas import DARK, ID, Color, Layer, Point, Range, dim, random_color, random_glass, steps

LAMPS: tuple[Color, ...] = ((60, 230, 90, 255), (250, 190, 40, 255), (240, 40, 30, 255))


def draw_tree(layer: Layer, leaf: Range) -> None:
    """Draw a tree whose crown has hues from the range `leaf`."""
    width, height = layer.size
    bark = random_color(layer.rng, (0.05, 0.1), (0.2, 0.5), (0.15, 0.4))
    layer.rect(0.46 * width, 0, 0.54 * width, 0.6 * height, bark)
    draw_foliage(layer, leaf, (0.12 * width, 0.35 * height), (0.88 * width, 0.9 * height))


def draw_foliage(layer: Layer, leaf: Range, low: Point, high: Point) -> None:
    """Draw leaves within a rectangle; the dark ones lie behind the bright ones."""
    rng = layer.rng
    count = int(rng.integers(8, 12) if layer.is_narrow else rng.integers(16, 30))
    spots = rng.uniform(low, high, (count, 2))
    radius = min(0.16 * (high[1] - low[1]), 0.2 * (high[0] - low[0]))
    leaves = [random_color(rng, leaf, (0.3, 0.7), (0.3, 0.65)) for _ in range(4)]
    for i, (x, y) in enumerate(spots.tolist()):
        color = dim(leaves[i % 4], 0.6 + 0.5 * i / count)
        layer.disc(x, y, radius * rng.uniform(0.7, 1.2), color)


def draw_facade(layer: Layer, paint: Color) -> None:
    """Draw the front of a house: courses, windows, doors, now and then a sign or a poster."""
    (length, height), rng = layer.size, layer.rng
    glass = random_glass(rng)
    layer.rect(0, 0, length, height, paint)
    layer.label = None
    if layer.is_narrow:
        return
    if rng.random() < 0.4:
        for y in steps(0.5, height, rng.uniform(0.4, 1.2)):
            layer.line([(0, y), (length, y)], 0.06, dim(paint, 0.85))
    _draw_windows(layer, glass)
    for x in steps(0.4, length - 1.5, rng.uniform(2, 5)):  # doors
        layer.rect(x, 0, x + rng.uniform(1, 1.8), 2.2, random_color(rng, val=(0.1, 0.6)))
    if rng.random() < 0.35:  # an awning or a shop sign
        layer.rect(0.2, 2.3, length - 0.2, rng.uniform(2.6, 3.1), random_color(rng, sat=(0.3, 1)))
    if rng.random() < 0.3:  # a poster
        x, y = rng.uniform(0, 0.6) * length, rng.uniform(1, 4)
        right, top = x + rng.uniform(1.5, 4), y + rng.uniform(1, 3)
        layer.rect(x, y, right, top, random_color(rng, sat=(0.3, 1)))
        layer.disc(x + 0.8, y + 0.6, rng.uniform(0.2, 0.5), random_color(rng))


def _draw_windows(layer: Layer, glass: Color) -> None:
    """Draw a grid of windows, one in ten of them lit."""
    (length, height), rng = layer.size, layer.rng
    pitch, storey, share = rng.uniform(1.8, 3.6), rng.uniform(2.7, 3.6), rng.uniform(0.35, 0.7)
    width = share * pitch
    for y in steps(storey, height - 1.5, storey):
        for x in steps(0.4, length - width, pitch):
            color = (235, 210, 140, 255) if rng.random() < 0.1 else glass
            layer.rect(x, y + 0.6, x + width, y + 2.2, color)


def draw_wall(layer: Layer) -> None:
    """Draw a wall."""
    (length, height), paint = layer.size, random_color(layer.rng, sat=(0, 0.45))
    layer.rect(0, 0, length, height, paint)
    for y in steps(0.3, height, 0.35):
        layer.line([(0, y), (length, y)], 0.04, dim(paint, 0.8))


def draw_fence(layer: Layer) -> None:
    """Draw a see-through fence, labeled all over."""
    (length, height), paint = layer.size, random_color(layer.rng, sat=(0, 0.45))
    layer.rect(0, 0, length, height, None)
    for x in steps(0.05, length, layer.rng.uniform(0.25, 0.5)):
        layer.line([(x, 0), (x, height)], 0.06, paint)
    for y in (0.15 * height, 0.9 * height):
        layer.line([(0, y), (length, y)], 0.08, dim(paint, 0.9))


def draw_pole(layer: Layer, top: str) -> None:
    """Draw a pole that carries a "lamp", a "traffic light" or a "traffic sign"."""
    (width, height), metal = layer.size, random_color(layer.rng, sat=(0, 0.2), val=(0.2, 0.7))
    middle, head = width / 2, height - 0.5
    layer.rect(middle - 0.07, 0, middle + 0.07, head, metal)
    if top == "lamp":
        layer.line([(middle, head), (width, head + 0.2)], 0.1, metal)
        return
    layer.label = ID[top]
    if top == "traffic light":
        layer.rect(middle - 0.2, height - 1.1, middle + 0.2, height, DARK)
        on = int(layer.rng.integers(3))
        for i, lamp in enumerate(LAMPS):
            layer.disc(middle, height - 0.9 + 0.34 * i, 0.14, dim(lamp, 1 if i == on else 0.3))
    else:
        _draw_sign(layer, middle, height - 0.45)


def _draw_sign(layer: Layer, x: float, y: float) -> None:
    """Draw a traffic sign around (x, y): round, triangular or square."""
    kind, r, red = int(layer.rng.integers(3)), layer.rng.uniform(0.35, 0.45), (200, 30, 30, 255)
    if kind == 0:
        layer.disc(x, y, r, red)
        layer.disc(x, y, 0.65 * r, (240, 240, 235, 255))
    elif kind == 1:
        layer.poly([(x - r, y - r), (x + r, y - r), (x, y + r)], red)
        inner = [(x - r / 2, y - 0.7 * r), (x + r / 2, y - 0.7 * r), (x, y + r / 2)]
        layer.poly(inner, (245, 230, 120, 255))
    else:
        layer.rect(x - r, y - r, x + r, y + r, (30, 70, 190, 255))
        layer.rect(x - 0.3 * r, y - 0.6 * r, x + 0.3 * r, y + 0.6 * r, (235, 235, 240, 255))


def draw_box(layer: Layer, paint: Color) -> None:
    """Draw a bin or a kiosk: a coloured box with a hatch and a lid."""
    width, height = layer.size
    layer.rect(0, 0, width, height, paint)
    layer.rect(0.15 * width, 0.4 * height, 0.85 * width, 0.75 * height, random_color(layer.rng))
    layer.rect(0, 0.88 * height, width, height, dim(paint, 0.6))
