"""The things of a generated street and how they look: people, two-wheelers, vehicles.

Everything is drawn in metres from the bottom left corner of its layer. Side views face to the
right; the scene mirrors them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from numpy.random import Generator

from .canvas import (
    CIRCLE,
    DARK,
    Color,
    Layer,
    Point,
    dim,
    glass_tint,
    steps,
    tint,
)

STEEL: Color = (120, 122, 126, 255)
# Outline and windows of a car as fractions of its length and height.
CARS = {
    "sedan": (
        [(0, 0.2), (0, 0.6), (0.16, 0.68), (0.3, 1), (0.62, 1), (0.78, 0.66), (1, 0.54), (1, 0.2)],
        [(0.2, 0.66), (0.31, 0.94), (0.61, 0.94), (0.74, 0.66)],
    ),
    "hatchback": (
        [(0, 0.2), (0, 0.62), (0.07, 0.96), (0.55, 1), (0.74, 0.64), (1, 0.54), (1, 0.2)],
        [(0.07, 0.66), (0.12, 0.92), (0.54, 0.94), (0.7, 0.66)],
    ),
    "van": (
        [(0, 0.16), (0, 0.97), (0.7, 1), (0.87, 0.6), (1, 0.5), (1, 0.16)],
        [(0.5, 0.62), (0.5, 0.92), (0.69, 0.92), (0.82, 0.62)],
    ),
}


def figure(
    layer: Layer,
    rng: Generator,
    hip: Point,
    neck: Point,
    legs: list[list[Point]],
    hands: list[Point],
) -> None:
    """A human body from its joints."""
    skin, hair = tint(rng, (0.04, 0.09), (0.25, 0.6), (0.3, 0.95)), tint(rng, (0.05, 0.12))
    top, trousers = tint(rng), tint(rng, val=(0.08, 0.7))
    build = rng.uniform(0.85, 1.3)
    for leg in legs:
        layer.line([hip, *leg], 0.15 * build, trousers)
        layer.disc(*leg[-1], 0.08, DARK)
    if rng.random() < 0.25:  # a skirt or a coat
        layer.poly([(hip[0] - 0.28, hip[1] - 0.3), (hip[0] + 0.28, hip[1] - 0.3), neck], top)
    (hx, hy), (nx, ny), half = hip, neck, 0.2 * build
    waist = [(hx - 0.75 * half, hy - 0.08), (hx + 0.75 * half, hy - 0.08)]
    layer.poly([*waist, (nx + half, ny - 0.05), (nx, ny + 0.05), (nx - half, ny - 0.05)], top)
    for side, hand in zip((-1, 1), hands, strict=False):
        layer.line([(nx + side * half * 0.8, ny - 0.08), hand], 0.1 * build, dim(top, 0.85))
        layer.disc(*hand, 0.055, skin)
    layer.disc(nx + 0.02, ny + 0.17, 0.125, hair)
    layer.disc(nx + 0.05, ny + 0.14, 0.1, skin)


def person(layer: Layer, rng: Generator, x: float, size: float) -> None:
    """Somebody standing or walking, `size` relative to an adult."""
    stride, swing = rng.uniform(0.06, 0.34), rng.uniform(0.05, 0.3)
    hip, neck = (x, 0.86 * size), (x + rng.uniform(-0.04, 0.08), 1.45 * size)
    knees = [(x - 0.3 * stride, 0.45 * size), (x + 0.7 * stride, 0.47 * size)]
    legs = [[knees[0], (x - stride, 0.06)], [knees[1], (x + stride, 0.05)]]
    hands = [(x - 0.22 - swing, 0.85 * size), (x + 0.22 + swing, 0.9 * size)]
    figure(layer, rng, hip, neck, legs, hands)
    if rng.random() < 0.25:  # a bag
        layer.rect(x - 0.4, 0.5 * size, x - 0.16, 0.85 * size, tint(rng))


def rider(layer: Layer, rng: Generator, lean: float) -> None:
    """Somebody on a two-wheeler of 1.8 m, leaning forward by `lean` metres."""
    hip, neck = (0.66, 0.95), (0.72 + lean, 1.47)
    legs = [[(1.05, 0.8), (0.85, 0.34)], [(1.0, 0.62), (0.92, 0.2)]]
    figure(layer, rng, hip, neck, legs, [(1.28, 1.03), (1.3, 1.05)])
    if rng.random() < 0.5:  # a helmet
        layer.disc(0.74 + lean, 1.68, 0.13, tint(rng))


def bicycle(layer: Layer, rng: Generator) -> None:
    """A bicycle of 1.75 m; annotators fill its wheels, the eye looks through them."""
    frame, tube = tint(rng), rng.uniform(0.05, 0.08)
    layer.poly([(0.36, 0.36), (0.72, 0.8), (1.25, 0.82), (1.4, 0.36), (0.85, 0.3)], None)
    for x in (0.36, 1.4):
        layer.disc(x, 0.36, 0.34, None)
        rim = [(x + 0.31 * cos, 0.36 + 0.31 * sin) for cos, sin in CIRCLE]
        layer.line([*rim, rim[0]], 0.06, DARK)
    layer.line([(0.36, 0.36), (0.72, 0.8), (1.25, 0.82), (0.85, 0.34), (0.36, 0.36)], tube, frame)
    layer.line([(0.85, 0.34), (0.68, 0.92)], tube, frame)
    layer.line([(1.4, 0.36), (1.24, 1.02), (1.36, 1.06)], tube, frame)
    layer.rect(0.55, 0.9, 0.8, 0.97, DARK)


def motorcycle(layer: Layer, rng: Generator) -> None:
    """A motorcycle or scooter of 1.9 m."""
    body = tint(rng, sat=(0.2, 1))
    for x in (0.34, 1.5):
        layer.disc(x, 0.32, 0.31, DARK)
        layer.disc(x, 0.32, 0.13, STEEL)
    layer.poly([(0.55, 0.25), (0.5, 0.6), (1.1, 0.65), (1.2, 0.3)], dim(STEEL, 0.6))
    layer.poly([(0.1, 0.7), (0.15, 0.85), (0.7, 0.78), (0.75, 0.65)], DARK)
    layer.poly([(0.7, 0.6), (0.72, 0.84), (1.05, 0.98), (1.3, 0.8), (1.1, 0.55)], body)
    layer.line([(1.5, 0.32), (1.25, 1.02), (1.12, 1.08)], 0.1, STEEL)
    layer.disc(1.36, 0.86, 0.1, (250, 245, 210, 255))
    layer.poly([(0.05, 0.35), (0.05, 0.45), (0.75, 0.36), (0.75, 0.28)], STEEL)
    if rng.random() < 0.4:
        layer.poly([(1.22, 0.85), (1.1, 1.25), (1.2, 1.28), (1.4, 0.9)], dim(body, 0.9))


def _wheels(layer: Layer, rng: Generator, places: Sequence[float], radius: float) -> None:
    rim = tint(rng, sat=(0, 0.1), val=(0.3, 0.85))
    for x in places:
        layer.disc(x, radius, radius, DARK)
        layer.disc(x, radius, 0.55 * radius, rim)


def car_side(layer: Layer, rng: Generator, paint: Color, style: str) -> None:
    """A car from its side."""
    (length, height), glass, pillar = layer.size, glass_tint(rng), rng.uniform(0.4, 0.52)
    outline, window = ([(x * length, y * height) for x, y in part] for part in CARS[style])
    layer.poly(outline, paint)
    layer.rect(0, 0.2 * height, length, 0.3 * height, dim(paint, 0.6))
    layer.poly(window, glass)
    layer.rect(
        (pillar - 0.015) * length, 0.3 * height, (pillar + 0.015) * length, 0.9 * height, paint
    )
    layer.rect(0.95 * length, 0.4 * height, length, 0.5 * height, (250, 240, 200, 255))
    layer.rect(0, 0.42 * height, 0.03 * length, 0.58 * height, (190, 20, 20, 255))
    _wheels(layer, rng, (0.19 * length, 0.8 * length), 0.31)


def truck_side(layer: Layer, rng: Generator, paint: Color, style: str) -> None:
    """A truck from its side: a cargo box, a gap, a cab."""
    length, height = layer.size
    cab, cargo = rng.uniform(0.24, 0.32) * length, tint(rng, sat=(0, 0.7), val=(0.4, 1))
    start, cab_top = length - cab, rng.uniform(0.72, 0.95) * height
    layer.rect(0.1, 0.5, length, 0.8, DARK)
    layer.rect(0, 0.8, start - 0.25, height, cargo)
    if style == "ribbed":
        for x in steps(0.3, start - 0.4, 0.6):
            layer.rect(x, 0.85, x + 0.1, height, dim(cargo, 0.8))
    else:
        layer.rect(0.1 * start, 1.4, 0.8 * start, 1.4 + rng.uniform(0.3, 0.9), tint(rng))
    layer.poly(
        [(start, 0.5), (start, cab_top), (length - 0.4, cab_top), (length, 1.5), (length, 0.5)],
        paint,
    )
    layer.rect(start + 0.35 * cab, 0.6 * cab_top, length - 0.35, 0.9 * cab_top, glass_tint(rng))
    layer.rect(length - 0.15, 0.6, length, 0.85, (250, 240, 200, 255))
    _wheels(layer, rng, (0.12 * length, 0.12 * length + 1.1, length - 0.55 * cab), 0.48)


def bus_side(layer: Layer, rng: Generator, paint: Color, style: str) -> None:
    """A bus from its side: long, one row of windows, doors."""
    (length, height), glass = layer.size, glass_tint(rng)
    layer.rect(0, 0.3, length, height, paint)
    layer.rect(0, 0.3, length, rng.uniform(0.5, 1.1), tint(rng))
    for x in steps(0.3, length - 1.2, pitch := rng.uniform(1.1, 1.7)):
        layer.rect(x, 0.5 * height, x + pitch - 0.18, 0.86 * height, glass)
    for x in (0.32 * length, length - 1.9) if style == "ribbed" else (length - 1.9,):
        layer.rect(x, 0.35, x + 1.1, 0.86 * height, dim(glass, 0.7))
        layer.rect(x + 0.5, 0.35, x + 0.6, 0.86 * height, paint)
    layer.rect(length - 0.35, 0.42 * height, length, 0.9 * height, glass)
    _wheels(layer, rng, (0.2 * length, 0.76 * length), 0.48)


def vehicle_end(layer: Layer, rng: Generator, paint: Color, style: str, front: bool) -> None:
    """The front or the back of a vehicle; `style` is a car's, or "truck" or "bus"."""
    (width, height), boxy = layer.size, style in ("truck", "bus", "van")
    shoulder, inset = (height, 0.02) if boxy else (0.62 * height, rng.uniform(0.1, 0.2))
    low = 0.16 * min(height, 2.0)
    for x in (0.06 * width, 0.8 * width):
        layer.rect(x, 0, x + 0.14 * width, 2 * low, DARK)
    layer.rect(0.01 * width, low, 0.99 * width, shoulder, paint)
    roof = [(inset * width, height), ((1 - inset) * width, height)]
    layer.poly([(0, 0.58 * height), *roof, (width, 0.58 * height)], paint)
    if style == "truck":
        _truck_end(layer, rng, paint, front)
    else:
        edge, sill = inset + 0.06, rng.uniform(0.34, 0.5) if boxy else 0.64
        sill, lintel = (rng.uniform(0.5, 0.6), 0.93) if style == "van" else (sill, 0.9)
        top = [(edge * width, lintel * height), ((1 - edge) * width, lintel * height)]
        glass = [(0.08 * width, sill * height), *top, (0.92 * width, sill * height)]
        layer.poly(glass, glass_tint(rng))
    if style == "bus":  # where it goes
        layer.rect(0.2 * width, 0.86 * height, 0.8 * width, 0.96 * height, DARK)
        layer.rect(0.3 * width, 0.89 * height, 0.7 * width, 0.93 * height, (250, 180, 40, 255))
    lamp: Color = (250, 245, 215, 255) if front else (200, 25, 20, 255)
    for x in (0.05 * width, 0.79 * width):
        layer.rect(x, 2.2 * low, x + 0.16 * width, 2.2 * low + 0.16, lamp)
    layer.rect(0.02 * width, low, 0.98 * width, 1.6 * low, dim(paint, 0.55))
    layer.rect(0.38 * width, 1.7 * low, 0.62 * width, 1.7 * low + 0.11, (225, 225, 215, 255))


def _truck_end(layer: Layer, rng: Generator, paint: Color, front: bool) -> None:
    (width, height), cargo = layer.size, tint(rng, sat=(0, 0.7), val=(0.4, 1))
    if front:  # the cargo box stands out above the cab
        layer.rect(0, 0.7 * height, width, height, cargo)
        layer.rect(0.04 * width, 0.3 * height, 0.96 * width, 0.78 * height, paint)
        layer.rect(0.1 * width, 0.5 * height, 0.9 * width, 0.72 * height, glass_tint(rng))
        return
    layer.rect(0, 0.25 * height, width, height, cargo)
    for x in (0.49, 0.25, 0.73):
        layer.rect(x * width, 0.28 * height, (x + 0.02) * width, 0.97 * height, dim(cargo, 0.6))
    layer.rect(0.05 * width, 0.2 * height, 0.95 * width, 0.25 * height, DARK)


SIDES: dict[str, Callable[[Layer, Generator, Color, str], None]]
SIDES = {"car": car_side, "truck": truck_side, "bus": bus_side}
