"""The setting of a generated street: sky, ground, what is built or grows there, and the light."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.random import Generator

from .canvas import (
    CAMERA,
    DARK,
    ID,
    Color,
    Layer,
    Point,
    Scene,
    dim,
    glass_tint,
    static,
    steps,
    tint,
)


@dataclass(frozen=True)
class Mood:
    """Weather and hour: the sky from top to horizon, how far one sees, how bright it is."""

    sky: tuple[Color, Color]
    sight: Point
    gain: Point
    odds: float


MOODS = (
    Mood(((70, 120, 200, 255), (190, 210, 235, 255)), (250, 1500), (0.8, 1.25), 0.5),
    Mood(((150, 155, 165, 255), (215, 215, 215, 255)), (150, 800), (0.7, 1.1), 0.26),
    Mood(((50, 50, 90, 255), (220, 150, 110, 255)), (150, 600), (0.45, 0.7), 0.12),
    Mood(((190, 192, 196, 255), (205, 205, 205, 255)), (35, 90), (0.8, 1.05), 0.12),
)


def noise(rng: Generator, rows: int, cols: int, cells: int) -> np.ndarray:
    """Smooth noise of three octaves in about [-1, 1], `cells` of the coarsest across."""
    coarse = (max(4, cols // 4), max(4, rows // 4))  # it is smooth: a quarter of the size will do
    total = np.zeros(coarse[::-1], np.float32)
    for octave in range(3):
        count = cells << octave
        grid = rng.uniform(-1, 1, (max(2, count * rows // cols), count)).astype(np.float32)
        total += cv2.resize(grid, coarse, interpolation=cv2.INTER_CUBIC) / (1 << octave)
    return cv2.resize(total, (cols, rows)) / np.float32(1.3)


def draw_sky(scene: Scene, mood: Mood) -> None:
    """A gradient down to the horizon with clouds."""
    rng, rows = scene.rng, math.ceil(scene.horizon + scene.unit)
    top, low = (np.array(color[:3], np.float32) for color in mood.sky)
    part = np.linspace(0, 1, rows, dtype=np.float32)[:, None, None]
    clouds = np.clip(noise(rng, rows, scene.width, 4) - rng.uniform(-0.3, 0.8), 0, 0.6)
    sky = top + (low - top) * part + clouds[..., None] * np.float32(rng.uniform(60, 120))
    scene.rgb[:rows] = np.clip(sky, 0, 255)


def draw_ground(scene: Scene, road: Point, line: float, leaf: Point) -> None:
    """Road, markings, sidewalks up to the building line, and grass."""
    rng, unit = scene.rng, scene.unit
    whole = (0.5 * unit, 1.1 * (scene.height - scene.horizon) / CAMERA)
    scene.strip(
        (-1e3, 1e3), (1.2 * unit, whole[1]), tint(rng, leaf, (0.2, 0.6), (0.3, 0.6)), ID["terrain"]
    )
    asphalt = tint(rng, (0.05, 0.7), (0, 0.12), (0.25, 0.5))
    paving = tint(rng, (0.02, 0.12), (0.02, 0.25), (0.45, 0.75))
    for side in (0, 1):
        edge = road[side]
        out = np.sign(edge) * (line if rng.random() < 0.7 else abs(edge) + rng.uniform(1.2, 3))
        scene.strip((edge, out), whole, paving, ID["sidewalk"])
        joints = np.exp(rng.uniform(np.log(8), np.log(80), 24)) * unit
        for s in joints:
            scene.strip((edge, out), (s, scene.beyond(s, 0.12)), dim(paving, 0.8), None)
        scene.strip((edge - 0.12, edge + 0.12), whole, dim(paving, rng.uniform(0.7, 1.3)), None)
    scene.strip(road, whole, asphalt, ID["road"])
    if rng.random() < 0.35:  # a crossing street
        s = unit * rng.uniform(5, 16)
        scene.strip((-1e3, 1e3), (scene.beyond(s, rng.uniform(6, 10)), s), asphalt, ID["road"])
    _markings(scene, road, asphalt, whole)
    _grain(scene, whole)


def _markings(scene: Scene, road: Point, asphalt: Color, whole: Point) -> None:
    rng, white = scene.rng, dim((225, 225, 215, 255), scene.rng.uniform(0.7, 1.1))
    for _ in range(int(rng.integers(0, 5))):  # patches in the asphalt
        x, s = rng.uniform(*road), scene.unit * rng.uniform(8, 70)
        color = dim(asphalt, rng.uniform(0.75, 1.25))
        scene.strip(
            (x, min(x + rng.uniform(0.5, 3), road[1])),
            (scene.beyond(s, rng.uniform(1, 6)), s),
            color,
            None,
        )
    middle = (road[0] + road[1]) / 2
    if rng.random() < 0.7:
        for z in steps(rng.uniform(3, 7), 100, 6):
            scene.strip(
                (middle - 0.08, middle + 0.08),
                (scene.focal / (z + 3), scene.focal / z),
                white,
                None,
            )
    if rng.random() < 0.3:  # zebra crossing
        s = scene.unit * rng.uniform(12, 45)
        for x in steps(road[0] + 0.4, road[1] - 0.5, 1.0):
            scene.strip((x, x + 0.5), (scene.beyond(s, 3), s), white, None)
    if rng.random() < 0.35:  # the shadow of the houses on one side
        x = rng.uniform(*road)
        scene.shadow((x, 1e3) if rng.random() < 0.5 else (-1e3, x), whole, rng.uniform(0.5, 0.75))


def _grain(scene: Scene, whole: Point) -> None:
    """Texture that lies on the ground, by the metres of each pixel."""
    rng, first = scene.rng, int(scene.horizon) + 1
    depth = np.arange(first, scene.height) - scene.horizon
    scale = (depth / CAMERA).astype(np.float32)[:, None]
    aside = (np.arange(scene.width) - scene.center).astype(np.float32) / scale
    tile = rng.standard_normal((128, 128), np.float32)
    coarse = cv2.resize(tile[:16, :16], (128, 128), interpolation=cv2.INTER_CUBIC)
    x = aside * 12 % 127
    y = np.repeat(scene.focal / scale * 6 % 127, scene.width, 1)
    fine = cv2.remap(tile * 0.08 + coarse * 0.06, x, y, cv2.INTER_LINEAR)
    light = 1 + fine * np.float32(rng.uniform(0.4, 1.3))
    ground = scene.rgb[first:]
    cv2.multiply(ground, cv2.merge([light] * 3), ground, dtype=cv2.CV_8U)
    scene.near[first:] = scale


def tree(layer: Layer, rng: Generator, leaf: Point) -> None:
    """A tree with its crown in hues from the range `leaf`."""
    width, height = layer.size
    layer.rect(
        0.46 * width, 0, 0.54 * width, 0.6 * height, tint(rng, (0.05, 0.1), (0.2, 0.5), (0.15, 0.4))
    )
    foliage(layer, rng, leaf, (0.12 * width, 0.35 * height), (0.88 * width, 0.9 * height))


def foliage(layer: Layer, rng: Generator, leaf: Point, low: Point, high: Point) -> None:
    """Leaves in a box; the dark ones lie below and behind."""
    spots = rng.uniform(
        low, high, (int(rng.integers(8, 12) if layer.ids.shape[1] < 8 else rng.integers(16, 30)), 2)
    )
    radius = min(0.16 * (high[1] - low[1]), 0.2 * (high[0] - low[0]))
    leaves = [tint(rng, leaf, (0.3, 0.7), (0.3, 0.65)) for _ in range(4)]
    for i, (x, y) in enumerate(spots.tolist()):
        color = dim(leaves[i % 4], 0.6 + 0.5 * i / len(spots))
        layer.disc(x, y, radius * rng.uniform(0.7, 1.2), color)


def facade(layer: Layer, rng: Generator, paint: Color) -> None:
    """A house front: courses, windows, a shop or doors, now and then a poster."""
    (length, height), glass = layer.size, glass_tint(rng)
    layer.rect(0, 0, length, height, paint)
    layer.label = None
    if layer.ids.shape[1] < 8:  # too slanted to show more
        return
    if rng.random() < 0.4:
        for y in steps(0.5, height, rng.uniform(0.4, 1.2)):
            layer.line([(0, y), (length, y)], 0.06, dim(paint, 0.85))
    pitch, storey, wide = rng.uniform(1.8, 3.6), rng.uniform(2.7, 3.6), rng.uniform(0.35, 0.7)
    for y in steps(storey, height - 1.5, storey):
        for x in steps(0.4, length - wide * pitch, pitch):
            lit = rng.random() < 0.1
            layer.rect(
                x, y + 0.6, x + wide * pitch, y + 2.2, (235, 210, 140, 255) if lit else glass
            )
    for x in steps(0.4, length - 1.5, rng.uniform(2, 5)):
        layer.rect(x, 0, x + rng.uniform(1, 1.8), 2.2, tint(rng, val=(0.1, 0.6)))
    if rng.random() < 0.35:  # an awning or shop sign
        layer.rect(0.2, 2.3, length - 0.2, rng.uniform(2.6, 3.1), tint(rng, sat=(0.3, 1)))
    if rng.random() < 0.3:  # a poster
        x, y = rng.uniform(0, 0.6) * length, rng.uniform(1, 4)
        layer.rect(x, y, x + rng.uniform(1.5, 4), y + rng.uniform(1, 3), tint(rng, sat=(0.3, 1)))
        layer.disc(x + 0.8, y + 0.6, rng.uniform(0.2, 0.5), tint(rng))


def barrier(layer: Layer, rng: Generator, solid: bool) -> None:
    """A wall, or a fence that one sees through."""
    (length, height), paint = layer.size, tint(rng, sat=(0, 0.45))
    layer.rect(0, 0, length, height, paint if solid else None)
    if solid:
        for y in steps(0.3, height, 0.35):
            layer.line([(0, y), (length, y)], 0.04, dim(paint, 0.8))
        return
    for x in steps(0.05, length, rng.uniform(0.25, 0.5)):
        layer.line([(x, 0), (x, height)], 0.06, paint)
    for y in (0.15 * height, 0.9 * height):
        layer.line([(0, y), (length, y)], 0.08, dim(paint, 0.9))


def pole(layer: Layer, rng: Generator, top: str) -> None:
    """A pole that carries a lamp, a "traffic light" or a "traffic sign"."""
    (width, height), metal = layer.size, tint(rng, sat=(0, 0.2), val=(0.2, 0.7))
    middle, head = width / 2, height - 0.5
    layer.rect(middle - 0.07, 0, middle + 0.07, head, metal)
    if top == "lamp":
        layer.line([(middle, head), (width, head + 0.2)], 0.1, metal)
        return
    layer.label = ID[top]
    if top == "traffic light":
        layer.rect(middle - 0.2, height - 1.1, middle + 0.2, height, DARK)
        on, lamps = (
            int(rng.integers(3)),
            ((60, 230, 90, 255), (250, 190, 40, 255), (240, 40, 30, 255)),
        )
        for i, lamp in enumerate(lamps):
            layer.disc(middle, height - 0.9 + 0.34 * i, 0.14, dim(lamp, 1 if i == on else 0.3))
    else:
        _sign(layer, rng, middle, height - 0.45)


def _sign(layer: Layer, rng: Generator, x: float, y: float) -> None:
    kind, r, edge = int(rng.integers(3)), rng.uniform(0.35, 0.45), (200, 30, 30, 255)
    if kind == 0:
        layer.disc(x, y, r, edge)
        layer.disc(x, y, 0.65 * r, (240, 240, 235, 255))
    elif kind == 1:
        layer.poly([(x - r, y - r), (x + r, y - r), (x, y + r)], edge)
        layer.poly(
            [(x - r / 2, y - 0.7 * r), (x + r / 2, y - 0.7 * r), (x, y + r / 2)],
            (245, 230, 120, 255),
        )
    else:
        layer.rect(x - r, y - r, x + r, y + r, (30, 70, 190, 255))
        layer.rect(x - 0.3 * r, y - 0.6 * r, x + 0.3 * r, y + 0.6 * r, (235, 235, 240, 255))


def box(layer: Layer, rng: Generator, paint: Color) -> None:
    """A bin or a kiosk: a coloured box with a hatch and a lid."""
    width, height = layer.size
    layer.rect(0, 0, width, height, paint)
    layer.rect(0.15 * width, 0.4 * height, 0.85 * width, 0.75 * height, tint(rng))
    layer.rect(0, 0.88 * height, width, height, dim(paint, 0.6))


def photograph(scene: Scene, mood: Mood) -> None:
    """Haze by distance, light, the camera's colour cast, blur and noise."""
    rng, shape = scene.rng, scene.ids.shape
    clear = np.exp(
        np.float32(-scene.focal / rng.uniform(*mood.sight)) / np.maximum(scene.near, 0.1)
    )
    clear[scene.near == 0] = 1
    contrast, gains = rng.uniform(0.75, 1.25), rng.uniform(*mood.gain) * rng.uniform(0.88, 1.12, 3)
    light = 1 + np.float32(0.12) * noise(rng, *shape, 2)
    shown, lost = contrast * clear * light, contrast * (1 - clear) * light
    lift = (128 * (1 - contrast)) * light
    colors = zip(cv2.split(scene.rgb), mood.sky[1], gains.astype(np.float32), strict=False)
    planes = [gain * (plane * shown + haze * lost + lift) for plane, haze, gain in colors]
    picture = np.clip(cv2.merge(planes), 0, 255).astype(np.uint8)
    cv2.GaussianBlur(picture, (0, 0), scene.unit * rng.uniform(0.35, 0.9), picture)
    grain = np.float32(rng.uniform(2.5, 12)) * static(rng, picture.shape)
    scene.rgb = cv2.add(picture, grain, dtype=cv2.CV_8U)
