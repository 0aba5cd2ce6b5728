"""The setting of a scene: sky, ground, weather and the camera's rendering of them."""

import math
from typing import NamedTuple

import cv2
import numpy as np
from numpy.random import Generator

from .canvas import CAMERA_HEIGHT, ID, Color, Range, Scene, dim, random_color, steps, white_noise

EVERYWHERE = (-1e3, 1e3)  # metres aside, far beyond both edges of every picture


class Street(NamedTuple):
    """The ground plan of a street, and the hues of its plants."""

    road: Range  # left and right kerb, in metres aside
    building_line: float  # distance of the houses from the middle, in metres
    leaf: Range


class Mood(NamedTuple):
    """Weather and time of day."""

    sky: tuple[Color, Color]  # at the top and at the horizon
    sight: Range  # distance in metres over which haze takes away 1 - 1/e of the contrast
    gain: Range  # brightness


MOODS = (
    Mood(((70, 120, 200), (190, 210, 235)), (250, 1500), (0.8, 1.25)),
    Mood(((150, 155, 165), (215, 215, 215)), (150, 800), (0.7, 1.1)),
    Mood(((50, 50, 90), (220, 150, 110)), (150, 600), (0.45, 0.7)),
    Mood(((190, 192, 196), (205, 205, 205)), (35, 90), (0.8, 1.05)),
)
MOOD_ODDS = (0.5, 0.26, 0.12, 0.12)


def random_street(rng: Generator) -> Street:
    """Draw the ground plan of a street."""
    road = (-rng.uniform(2.5, 7), rng.uniform(2.5, 7))
    sidewalk = rng.choice((2.5, 4, 7, 12)) * rng.uniform(0.8, 1.2)
    leaf = (0.06, 0.16) if rng.random() < 0.15 else (0.2, 0.38)  # in autumn, else in summer
    return Street(road, max(-road[0], road[1]) + sidewalk, leaf)


def smooth_noise(rng: Generator, rows: int, cols: int, cells: int) -> np.ndarray:
    """Sum three octaves of noise in about [-1, 1], the coarsest with `cells` cells across."""
    coarse = (max(4, cols // 4), max(4, rows // 4))  # a quarter is enough for smooth noise
    total = np.zeros(coarse[::-1], np.float32)
    for octave in range(3):
        count = cells << octave
        grid = rng.uniform(-1, 1, (max(2, count * rows // cols), count)).astype(np.float32)
        total += cv2.resize(grid, coarse, interpolation=cv2.INTER_CUBIC) / (1 << octave)
    return cv2.resize(total, (cols, rows)) / np.float32(1.3)


def draw_sky(scene: Scene, mood: Mood) -> None:
    """Draw a colour gradient down to the horizon, with clouds."""
    rng, rows = scene.rng, math.ceil(scene.horizon + scene.unit)
    top, low = (np.array(color, np.float32) for color in mood.sky)
    depth = np.linspace(0, 1, rows, dtype=np.float32)[:, None, None]
    clouds = np.clip(smooth_noise(rng, rows, scene.width, 4) - rng.uniform(-0.3, 0.8), 0, 0.6)
    sky = top + (low - top) * depth + clouds[..., None] * np.float32(rng.uniform(60, 120))
    scene.rgb[:rows] = np.clip(sky, 0, 255)


def draw_ground(scene: Scene, street: Street) -> None:
    """Draw grass, the sidewalks, the road and its markings."""
    rng, unit, road = scene.rng, scene.unit, street.road
    nearest = 1.1 * (scene.height - scene.horizon) / CAMERA_HEIGHT  # below the picture
    whole = (0.5 * unit, nearest)
    grass = random_color(rng, street.leaf, (0.2, 0.6), (0.3, 0.6))
    scene.paint_ground(EVERYWHERE, (1.2 * unit, nearest), grass, ID["terrain"])
    asphalt = random_color(rng, (0.05, 0.7), (0, 0.12), (0.25, 0.5))
    paving = random_color(rng, (0.02, 0.12), (0.02, 0.25), (0.45, 0.75))
    for kerb in road:
        _draw_sidewalk(scene, kerb, street.building_line, whole, paving)
    scene.paint_ground(road, whole, asphalt, ID["road"])
    if rng.random() < 0.35:  # a crossing street
        near = unit * rng.uniform(5, 16)
        span = (scene.scale_behind(near, rng.uniform(6, 10)), near)
        scene.paint_ground(EVERYWHERE, span, asphalt, ID["road"])
    _draw_surface(scene, road, asphalt, dim((225, 225, 215), rng.uniform(0.7, 1.1)))
    if rng.random() < 0.35:  # the shadow of the houses on one side
        x = rng.uniform(*road)
        side = (x, EVERYWHERE[1]) if rng.random() < 0.5 else (EVERYWHERE[0], x)
        scene.darken_ground(side, whole, rng.uniform(0.5, 0.75))
    _add_texture(scene)


def _draw_sidewalk(scene: Scene, kerb: float, line: float, whole: Range, paving: Color) -> None:
    """Draw the sidewalk on one side, up to the building line or with grass before it."""
    rng = scene.rng
    width = line if rng.random() < 0.7 else abs(kerb) + rng.uniform(1.2, 3)
    span = (kerb, np.sign(kerb) * width)
    scene.paint_ground(span, whole, paving, ID["sidewalk"])
    for _ in range(24):  # joints
        near = scene.random_scale(8, 80)
        scene.paint_ground(span, (near, scene.scale_behind(near, 0.12)), dim(paving, 0.8))
    scene.paint_ground((kerb - 0.12, kerb + 0.12), whole, dim(paving, rng.uniform(0.7, 1.3)))


def _draw_surface(scene: Scene, road: Range, asphalt: Color, white: Color) -> None:
    """Draw repaired asphalt, a dashed line along the middle, and a zebra crossing."""
    rng, middle = scene.rng, (road[0] + road[1]) / 2
    for _ in range(int(rng.integers(0, 5))):
        x, near = rng.uniform(*road), scene.unit * rng.uniform(8, 70)
        color = dim(asphalt, rng.uniform(0.75, 1.25))
        span = (x, min(x + rng.uniform(0.5, 3), road[1]))
        scene.paint_ground(span, (scene.scale_behind(near, rng.uniform(1, 6)), near), color)
    if rng.random() < 0.7:
        for z in steps(rng.uniform(3, 7), 100, 6):
            dash = (scene.focal / (z + 3), scene.focal / z)
            scene.paint_ground((middle - 0.08, middle + 0.08), dash, white)
    if rng.random() < 0.3:
        near = scene.unit * rng.uniform(12, 45)
        for x in steps(road[0] + 0.4, road[1] - 0.5, 1.0):
            scene.paint_ground((x, x + 0.5), (scene.scale_behind(near, 3), near), white)


def _add_texture(scene: Scene) -> None:
    """Add texture that lies on the ground in perspective, and note the ground's scales."""
    rng, first = scene.rng, int(scene.horizon) + 1
    below = np.arange(first, scene.height) - scene.horizon
    scale = (below / CAMERA_HEIGHT).astype(np.float32)[:, None]
    aside = (np.arange(scene.width) - scene.center).astype(np.float32) / scale
    tile = rng.standard_normal((128, 128), np.float32)
    coarse = cv2.resize(tile[:16, :16], (128, 128), interpolation=cv2.INTER_CUBIC)
    x = aside * 12 % 127
    y = np.repeat(scene.focal / scale * 6 % 127, scene.width, 1)
    fine = cv2.remap(tile * 0.08 + coarse * 0.06, x, y, cv2.INTER_LINEAR)
    light = 1 + fine * np.float32(rng.uniform(0.4, 1.3))
    ground = scene.rgb[first:]
    cv2.multiply(ground, cv2.merge([light] * 3), ground, dtype=cv2.CV_8U)
    scene.scales[first:] = scale


def photograph(scene: Scene, mood: Mood) -> None:
    """Add haze by distance, uneven light, the camera's colour cast, blur and noise."""
    rng, shape = scene.rng, scene.ids.shape
    density = np.float32(-scene.focal / rng.uniform(*mood.sight))
    clear = np.exp(density / np.maximum(scene.scales, 0.1))
    clear[scene.scales == 0] = 1
    contrast, gains = rng.uniform(0.75, 1.25), rng.uniform(*mood.gain) * rng.uniform(0.88, 1.12, 3)
    light = 1 + np.float32(0.12) * smooth_noise(rng, *shape, 2)
    seen, hazy = contrast * clear * light, contrast * (1 - clear) * light
    lift = (128 * (1 - contrast)) * light
    channels = zip(cv2.split(scene.rgb), mood.sky[1], gains.astype(np.float32), strict=True)
    planes = [gain * (plane * seen + haze * hazy + lift) for plane, haze, gain in channels]
    picture = np.clip(cv2.merge(planes), 0, 255).astype(np.uint8)
    cv2.GaussianBlur(picture, (0, 0), scene.unit * rng.uniform(0.35, 0.9), picture)
    grain = np.float32(rng.uniform(2.5, 12)) * white_noise(rng, picture.shape)
    scene.rgb = cv2.add(picture, grain, dtype=cv2.CV_8U)
