"""One scene of a generated street: what stands where, drawn from far to near."""

from collections.abc import Callable, Iterator
from functools import partial

import cv2
import numpy as np
from numpy.random import Generator

from . import objects
from .canvas import DARK, ID, Draw, Layer, Range, Scene, random_color
from .setting import MOOD_ODDS, MOODS, Street, draw_ground, draw_sky, photograph, random_street

Plan = Iterator[tuple[float, Callable[[], None]]]  # the scale of each object, and what draws it

MIN_PIXELS = 12  # an instance with fewer visible pixels becomes void
THINGS = ("car", "person", "rider", "bicycle", "truck", "bus", "motorcycle")
THING_ODDS = (0.38, 0.26, 0.12, 0.07, 0.07, 0.05, 0.05)
FURNITURE = ("tree", "lamp", "traffic light", "traffic sign", "bin", "kiosk")
FURNITURE_ODDS = (0.3, 0.14, 0.18, 0.22, 0.1, 0.06)
VEHICLE_SIZES = {  # ranges of length, width and height in metres
    "car": ((3.6, 4.7), (1.65, 1.9), (1.4, 1.65)),
    "truck": ((6, 9.5), (2.2, 2.5), (2.6, 3.5)),
    "bus": ((9, 12.5), (2.4, 2.6), (2.8, 3.2)),
}


def draw_scene(rng: Generator, width: int, height: int) -> Scene:
    """Draw a scene of width x height pixels with at least one instance in it."""
    while True:
        scene = Scene(rng, width, height)
        mood, street = MOODS[rng.choice(len(MOODS), p=MOOD_ODDS)], random_street(rng)
        draw_sky(scene, mood)
        draw_ground(scene, street)
        planners = (_plan_backdrop, _plan_sides, _plan_furniture, _plan_things)
        plan = [item for planner in planners for item in planner(scene, street)]
        for _, draw in sorted(plan, key=lambda item: item[0]):  # the far ones first
            draw()
        _draw_void(scene)
        photograph(scene, mood)
        _remove_slivers(scene.ids)
        if (scene.ids >= 1000).any():
            return scene


def _plan_backdrop(scene: Scene, street: Street) -> Plan:
    """Plan far houses and trees, which close the view."""
    rng = scene.rng
    for _ in range(int(rng.integers(5, 12))):
        scale = scene.unit * rng.uniform(2.5, 4.5)
        x = _random_x(scene, scale)
        width, height, name = rng.uniform(8, 30), rng.uniform(4, 20), "vegetation"
        high = (width, 0.6 * height)
        draw = partial(objects.draw_foliage, leaf=street.leaf, low=(0, 0), high=high)
        if rng.random() < 0.5:
            paint, name = random_color(rng, sat=(0, 0.5), val=(0.35, 0.8)), "building"
            draw = partial(objects.draw_facade, paint=paint)
        yield scale, partial(scene.draw_facing, draw, (width, height), ID[name], x, scale)


def _plan_sides(scene: Scene, street: Street) -> Plan:
    """Plan houses, hedges, walls, fences and gaps along the building line."""
    rng, line = scene.rng, street.building_line
    kinds = ("building", "vegetation", "wall", "fence", "gap")
    for side in (-1, 1):
        odds = rng.dirichlet((2.5, 0.7, 0.7, 0.7, 0.6))
        z = scene.focal * 1.5 * line / scene.width
        while z < 110:
            length, kind = rng.uniform(6, 20), str(rng.choice(kinds, p=odds))
            x, near = side * line * rng.uniform(1, 1.1), scene.focal / z
            if kind != "gap":
                draw = partial(_draw_side, scene, kind, x, near, length, street.leaf)
                yield scene.scale_behind(near, length), draw
            z += length


def _draw_side(scene: Scene, kind: str, x: float, near: float, length: float, leaf: Range) -> None:
    rng = scene.rng
    draw: Draw
    if kind == "building":
        paint = random_color(rng, sat=(0, 0.8), val=(0.3, 0.9))
        if rng.random() < 0.7:  # brick or plaster
            paint = random_color(rng, (0.0, 0.14), (0.05, 0.5), (0.3, 0.85))
        height, draw = rng.uniform(4, 18), partial(objects.draw_facade, paint=paint)
    elif kind == "vegetation":
        height = rng.uniform(1, 5)
        draw = partial(objects.draw_foliage, leaf=leaf, low=(0, 0), high=(length, height))
    else:
        height = rng.uniform(0.9, 2.6)
        draw = objects.draw_wall if kind == "wall" else objects.draw_fence
    scene.draw_along(draw, (length, height), ID[kind], x, near)
    if kind == "building":  # the front that faces the camera
        scene.draw_facing(draw, (8, height), ID[kind], x + np.sign(x) * 4, near)


def _plan_furniture(scene: Scene, street: Street) -> Plan:
    """Plan trees, poles, lights, signs, bins and kiosks between kerb and building line."""
    rng, (left, right) = scene.rng, street.road
    for name in rng.choice(FURNITURE, int(rng.integers(4, 14)), p=FURNITURE_ODDS):
        scale = scene.random_scale(5, 45)
        side, kerb = (-1, -left) if rng.random() < 0.5 else (1, right)
        x = side * rng.uniform(kerb + 0.4, street.building_line)
        yield scale, partial(_draw_furniture, scene, str(name), x, scale, street)


def _draw_furniture(scene: Scene, name: str, x: float, scale: float, street: Street) -> None:
    rng, paint = scene.rng, random_color(scene.rng)
    if name == "tree":
        size = (rng.uniform(2, 5), rng.uniform(3, 9))
        tree = partial(objects.draw_tree, leaf=street.leaf)
        scene.draw_facing(tree, size, ID["vegetation"], x, scale)
    elif name in ("bin", "kiosk"):
        size = (0.7, 1.1) if name == "bin" else (rng.uniform(1.5, 3), 2.6)
        label = ID["static" if name == "bin" else "building"]
        scene.draw_facing(partial(objects.draw_box, paint=paint), size, label, x, scale)
    else:
        height = rng.uniform(5, 8) if name == "lamp" else rng.uniform(2.4, 4.2)
        pole = partial(objects.draw_pole, top=name)
        scene.draw_facing(pole, (1.6, height), ID["pole"], x, scale, rng.choice((-1, 1)))


def _plan_things(scene: Scene, street: Street) -> Plan:
    """Plan people and vehicles, and now and then a crowd or a rack of bicycles."""
    rng, line = scene.rng, street.building_line
    count = 1 + int(rng.binomial(11, rng.uniform(0.1, 0.7)))
    for name in rng.choice(THINGS, count, p=THING_ODDS).tolist():
        nearest = 80 if name == "person" else 55 if name in ("car", "rider") else 42
        scale = scene.random_scale(5.5, nearest)
        on_road = rng.random() < (0.25 if name == "person" else 0.8)
        x = rng.uniform(*street.road) if on_road else rng.uniform(-line + 0.5, line - 0.5)
        draw: Callable[..., None] = _draw_person if name == "person" else _draw_two_wheeler
        if name in VEHICLE_SIZES:
            draw = _draw_vehicle
        yield scale, partial(draw, scene, name, _move_inside(scene, x, scale), scale)
    if rng.random() < 0.2:
        scale, x = scene.unit * rng.uniform(8, 26), rng.uniform(-line + 2, line - 2)
        name = "person" if rng.random() < 0.6 else "bicycle"
        yield scale, partial(_draw_group, scene, name, _move_inside(scene, x, scale), scale)


def _move_inside(scene: Scene, x: float, scale: float) -> float:
    """Return x, or a random place in the picture if x is outside of it."""
    return x if 0 < scene.project(x, 0, scale)[0] < scene.width else _random_x(scene, scale)


def _random_x(scene: Scene, scale: float) -> float:
    """Draw a place within the picture, in metres aside."""
    return (scene.rng.uniform(0, scene.width) - scene.center) / scale


def _random_turn(rng: Generator, low: float) -> float:
    """Draw a foreshortening in [low, 1], mirrored (negative) or not."""
    return rng.choice((-1, 1)) * rng.uniform(low, 1)


def _draw_vehicle(scene: Scene, name: str, x: float, near: float) -> None:
    """Draw a vehicle across the street, or along it with its front or back to the camera."""
    rng, label = scene.rng, scene.new_instance(name)
    style = str(rng.choice(list(objects.CAR_SHAPES) if name == "car" else ["ribbed", "plain"]))
    length, width, height = (rng.uniform(*span) for span in VEHICLE_SIZES[name])
    height *= 1.25 if style == "van" else 1
    paint = random_color(rng, sat=(0, 0.15) if rng.random() < 0.4 else (0.2, 1))
    draw_side = partial(objects.VEHICLE_SIDES[name], paint=paint, style=style)
    across = rng.random() < 0.4
    half, depth = (length / 2, width) if across else (width / 2, length)
    scene.darken_ground((x - half, x + half), (scene.scale_behind(near, depth), 1.04 * near), 0.45)
    if across:
        scene.draw_facing(draw_side, (length, height), label, x, near, _random_turn(rng, 0.7))
        return
    front, edge = rng.random() < 0.5, x - np.sign(x) * half
    if edge * x > 0:  # the camera sees its side
        scene.draw_along(draw_side, (length, height), label, edge, near, mirror=not front)
    look = style if name == "car" else name
    draw_end = partial(objects.draw_vehicle_end, paint=paint, style=look, front=front)
    scene.draw_facing(draw_end, (width, height), label, x, near)


def _draw_person(scene: Scene, name: str, x: float, scale: float, in_group: bool = False) -> None:
    rng, label = scene.rng, ID[name] if in_group else scene.new_instance(name)
    scene.darken_ground((x - 0.3, x + 0.3), (scene.scale_behind(scale, 0.5), 1.03 * scale), 0.6)
    size = rng.uniform(0.88, 1.1) if rng.random() < 0.85 else rng.uniform(0.55, 0.8)
    draw = partial(objects.draw_person, size=size)
    scene.draw_facing(draw, (1.4, 1.85 * size), label, x, scale, _random_turn(rng, 0.75))


def _draw_two_wheeler(scene: Scene, name: str, x: float, scale: float) -> None:
    """Draw a parked "bicycle" or "motorcycle", or a "rider" on one of them."""
    rng, kind = scene.rng, name
    if name == "rider":
        kind = "motorcycle" if rng.random() < 0.4 else "bicycle"
    label = scene.new_instance(kind)

    def draw(layer: Layer) -> None:
        (objects.draw_motorcycle if kind == "motorcycle" else objects.draw_bicycle)(layer)
        if name == "rider":
            layer.label = scene.new_instance(name)
            objects.draw_rider(layer, lean=rng.uniform(0.1, 0.35))

    scene.draw_facing(draw, (1.85, 1.85), label, x, scale, _random_turn(rng, 0.4))


def _draw_group(scene: Scene, name: str, x: float, scale: float) -> None:
    """Draw people or bicycles so close together that they are labeled as one region."""
    rng = scene.rng
    for i in range(int(rng.integers(5, 11))):
        place = x + (i - 4) * rng.uniform(0.3, 0.5)
        if name == "person":
            _draw_person(scene, name, place, scale * rng.uniform(0.95, 1.05), in_group=True)
        else:
            turn = rng.uniform(0.4, 0.7)
            scene.draw_facing(objects.draw_bicycle, (1.75, 1.1), ID[name], place, scale, turn)


def _draw_void(scene: Scene) -> None:
    """Draw the bonnet of the own car, or the edge of a rectified picture."""
    rng, (rows, cols) = scene.rng, scene.ids.shape
    if rng.random() < 0.3:
        center = (int(cols * rng.uniform(0.4, 0.6)), int(rows * 1.06))
        axes = (int(cols * rng.uniform(0.4, 0.8)), int(rows * rng.uniform(0.1, 0.18)))
        cv2.ellipse(scene.ids, center, axes, 0, 0, 360, ID["ego vehicle"], -1)
        scene.rgb[scene.ids == ID["ego vehicle"]] = random_color(rng, sat=(0, 0.3), val=(0.05, 0.5))
    if rng.random() < 0.15:
        edge = max(1, round(rows * rng.uniform(0.01, 0.03)))
        for border in np.s_[:edge], np.s_[-edge:], np.s_[:, :edge], np.s_[:, -edge:]:
            scene.ids[border], scene.rgb[border] = ID["out of roi"], DARK


def _remove_slivers(ids: np.ndarray) -> None:
    """Relabel instances as void where only a few pixels or a narrow strip is visible."""
    for label in np.unique(ids[ids >= 1000]):
        rows, cols = np.nonzero(ids == label)
        if len(rows) < MIN_PIXELS or min(np.ptp(rows), np.ptp(cols)) < 2:
            ids[rows, cols] = ID["static"]
