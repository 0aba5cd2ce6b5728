"""One scene of a generated street: its layout, its weather, and the id of every pixel."""

from __future__ import annotations

from functools import partial

import cv2
import numpy as np

from . import setting, things
from .canvas import DARK, ID, Point, Scene, tint

TINY = 12  # pixels; what is visible of a thing is void below this
THINGS = {  # how often each is drawn
    "car": 0.38,
    "person": 0.26,
    "rider": 0.12,
    "bicycle": 0.07,
    "truck": 0.07,
    "bus": 0.05,
    "motorcycle": 0.05,
}
SIZES = {  # length, width, height in metres
    "car": ((3.6, 4.7), (1.65, 1.9), (1.4, 1.65)),
    "truck": ((6, 9.5), (2.2, 2.5), (2.6, 3.5)),
    "bus": ((9, 12.5), (2.4, 2.6), (2.8, 3.2)),
}


def plan_sides(scene: Scene, line: float, leaf: Point) -> list[tuple[float, partial]]:
    """Houses, hedges, walls and fences along the building line, as (scale, how to draw it)."""
    rng, plan = scene.rng, []
    for side in (-1, 1):
        mix = rng.dirichlet((2.5, 0.7, 0.7, 0.7, 0.6))
        z = scene.focal * 1.5 * line / scene.width
        while z < 110:
            length, kind = rng.uniform(6, 20), int(rng.choice(5, p=mix))
            x, near = side * line * rng.uniform(1, 1.1), scene.focal / z
            plan.append(
                (scene.beyond(near, length), partial(_segment, scene, kind, x, near, length, leaf))
            )
            z += length
    return plan


def _segment(scene: Scene, kind: int, x: float, near: float, length: float, leaf: Point) -> None:
    rng = scene.rng
    if kind == 0:
        paint = tint(rng, sat=(0, 0.8), val=(0.3, 0.9))
        if rng.random() < 0.7:
            paint = tint(rng, (0.0, 0.14), (0.05, 0.5), (0.3, 0.85))
        height, draw = rng.uniform(4, 18), partial(setting.facade, rng=rng, paint=paint)
        scene.recede(draw, (length, height), ID["building"], x, near, False)
        scene.stand(draw, (8, height), ID["building"], x + np.sign(x) * 4, near)
    elif kind == 1:
        height = rng.uniform(1, 5)
        draw = partial(setting.foliage, rng=rng, leaf=leaf, low=(0, 0), high=(length, height))
        scene.recede(draw, (length, height), ID["vegetation"], x, near, False)
    elif kind < 4:
        size = (length, rng.uniform(0.9, 2.6))
        draw = partial(setting.barrier, rng=rng, solid=kind == 2)
        scene.recede(draw, size, ID["wall" if kind == 2 else "fence"], x, near, False)


def plan_backdrop(scene: Scene, leaf: Point) -> list[tuple[float, partial]]:
    """Far houses and trees that close the view."""
    rng, plan = scene.rng, []
    for _ in range(int(rng.integers(5, 12))):
        scale = scene.unit * rng.uniform(2.5, 4.5)
        x = (rng.uniform(0, scene.width) - scene.center) / scale
        size = (rng.uniform(8, 30), rng.uniform(4, 20))
        if rng.random() < 0.5:
            paint = tint(rng, sat=(0, 0.5), val=(0.35, 0.8))
            draw, label = partial(setting.facade, rng=rng, paint=paint), ID["building"]
        else:
            high = (size[0], 0.6 * size[1])
            draw = partial(setting.foliage, rng=rng, leaf=leaf, low=(0, 0), high=high)
            label = ID["vegetation"]
        plan.append((scale, partial(scene.stand, draw, size, label, x, scale)))
    return plan


def plan_furniture(
    scene: Scene, road: Point, line: float, leaf: Point
) -> list[tuple[float, partial]]:
    """Trees, poles, lights, signs, bins and kiosks between the kerb and the building line."""
    rng, plan = scene.rng, []
    names = ("tree", "lamp", "traffic light", "traffic sign", "bin", "kiosk")
    for name in rng.choice(names, int(rng.integers(4, 14)), p=(0.3, 0.14, 0.18, 0.22, 0.1, 0.06)):
        scale = scene.unit * np.exp(rng.uniform(np.log(5), np.log(45)))
        x = (
            rng.uniform(abs(road[0]) + 0.4, line)
            if rng.random() < 0.5
            else -rng.uniform(road[1] + 0.4, line)
        )
        plan.append((scale, partial(_furniture, scene, str(name), -x, scale, leaf)))
    return plan


def _furniture(scene: Scene, name: str, x: float, scale: float, leaf: Point) -> None:
    rng, paint = scene.rng, tint(scene.rng)
    if name == "tree":
        draw = partial(setting.tree, rng=rng, leaf=leaf)
        scene.stand(draw, (rng.uniform(2, 5), rng.uniform(3, 9)), ID["vegetation"], x, scale)
    elif name in ("bin", "kiosk"):
        width, height = (0.7, 1.1) if name == "bin" else (rng.uniform(1.5, 3), 2.6)
        draw = partial(setting.box, rng=rng, paint=paint)
        label = ID["static" if name == "bin" else "building"]
        scene.stand(draw, (width, height), label, x, scale)
    else:
        height = rng.uniform(5, 8) if name == "lamp" else rng.uniform(2.4, 4.2)
        draw = partial(setting.pole, rng=rng, top=name)
        scene.stand(draw, (1.6, height), ID["pole"], x, scale, rng.choice((-1, 1)))


def plan_things(scene: Scene, road: Point, line: float) -> list[tuple[float, partial]]:
    """People and vehicles, and now and then a crowd or a rack of bicycles."""
    rng, plan = scene.rng, []
    names, odds = list(THINGS), np.array(list(THINGS.values()))
    for name in rng.choice(names, 1 + int(rng.binomial(11, rng.uniform(0.1, 0.7))), p=odds):
        top = 80 if name == "person" else 55 if name in ("car", "rider") else 42
        scale = scene.unit * np.exp(rng.uniform(np.log(5.5), np.log(top)))
        on_road = rng.random() < (0.25 if name == "person" else 0.8)
        x = rng.uniform(*road) if on_road else rng.uniform(-line + 0.5, line - 0.5)
        plan.append((scale, partial(_thing, scene, str(name), _inside(scene, x, scale), scale)))
    if rng.random() < 0.2:
        scale, x = scene.unit * rng.uniform(8, 26), rng.uniform(-line + 2, line - 2)
        kind = "person" if rng.random() < 0.6 else "bicycle"
        plan.append((scale, partial(_group, scene, kind, _inside(scene, x, scale), scale)))
    return plan


def _inside(scene: Scene, x: float, scale: float) -> float:
    """Where something stands: x, or if that is out of the picture somewhere in it."""
    if 0 < scene.at(x, 0, scale)[0] < scene.width:
        return x
    return (scene.rng.uniform(0, scene.width) - scene.center) / scale


def _thing(scene: Scene, name: str, x: float, scale: float) -> None:
    if name in things.SIDES:
        _vehicle(scene, name, x, scale)
    elif name == "person":
        _person(scene, scene.instance(name), x, scale)
    else:
        _two_wheeler(scene, name, x, scale)


def _vehicle(scene: Scene, name: str, x: float, near: float) -> None:
    """A vehicle from its side, or from its end with the side along the street."""
    rng, label = scene.rng, scene.instance(name)
    style = (
        str(rng.choice(list(things.CARS)))
        if name == "car"
        else str(rng.choice(("ribbed", "plain")))
    )
    length, width, height = (rng.uniform(*span) for span in SIZES[name])
    height *= 1.25 if style == "van" else 1
    paint = tint(rng, sat=(0, 0.15)) if rng.random() < 0.4 else tint(rng, sat=(0.2, 1))

    def side(layer):
        things.SIDES[name](layer, rng, paint, style)

    across = rng.random() < 0.4
    half = (length if across else width) / 2
    depth = width if across else length
    scene.shadow((x - half, x + half), (scene.beyond(near, depth), 1.04 * near), 0.45)
    if across:
        turn = rng.choice((-1, 1)) * rng.uniform(0.7, 1)
        scene.stand(side, (length, height), label, x, near, turn)
        return
    front, edge = rng.random() < 0.5, x - np.sign(x) * half
    if edge * x > 0:
        scene.recede(side, (length, height), label, edge, near, not front)
    look = style if name == "car" else name
    end = partial(things.vehicle_end, rng=rng, paint=paint, style=look, front=front)
    scene.stand(end, (width, height), label, x, near)


def _person(scene: Scene, label: int, x: float, scale: float) -> None:
    rng = scene.rng
    scene.shadow((x - 0.3, x + 0.3), (scene.beyond(scale, 0.5), 1.03 * scale), 0.6)
    size = rng.uniform(0.88, 1.1) if rng.random() < 0.85 else rng.uniform(0.55, 0.8)
    draw = partial(things.person, rng=rng, x=0.7, size=size)
    scene.stand(
        draw, (1.4, 1.85 * size), label, x, scale, rng.choice((-1, 1)) * rng.uniform(0.75, 1)
    )


def _two_wheeler(scene: Scene, name: str, x: float, scale: float) -> None:
    rng, ridden = scene.rng, name == "rider"
    motor = rng.random() < 0.4 if ridden else name == "motorcycle"
    kind = "motorcycle" if motor else "bicycle"
    bike, human = scene.instance(kind), scene.instance("rider") if ridden else 0

    def draw(layer):
        (things.motorcycle if motor else things.bicycle)(layer, rng)
        if ridden:
            layer.label = human
            things.rider(layer, rng, rng.uniform(0.1, 0.35))

    scene.stand(draw, (1.85, 1.85), bike, x, scale, rng.choice((-1, 1)) * rng.uniform(0.4, 1))


def _group(scene: Scene, kind: str, x: float, scale: float) -> None:
    """Several of a kind so close together that they are labeled as one region."""
    rng = scene.rng
    for i in range(int(rng.integers(5, 11))):
        place = x + (i - 4) * rng.uniform(0.3, 0.5)
        if kind == "person":
            _person(scene, ID[kind], place, scale * rng.uniform(0.95, 1.05))
        else:
            draw = partial(things.bicycle, rng=rng)
            scene.stand(draw, (1.75, 1.1), ID[kind], place, scale, rng.uniform(0.4, 0.7))


def _void(scene: Scene) -> None:
    """The own car's bonnet, or the edge of the rectified picture."""
    rng, (rows, cols) = scene.rng, scene.ids.shape
    if rng.random() < 0.3:
        center = (int(cols * rng.uniform(0.4, 0.6)), int(rows * 1.06))
        axes = (int(cols * rng.uniform(0.4, 0.8)), int(rows * rng.uniform(0.1, 0.18)))
        cv2.ellipse(scene.ids, center, axes, 0, 0, 360, ID["ego vehicle"], -1)
        scene.rgb[scene.ids == ID["ego vehicle"]] = tint(rng, sat=(0, 0.3), val=(0.05, 0.5))[:3]
    if rng.random() < 0.15:
        edge = max(1, round(rows * rng.uniform(0.01, 0.03)))
        for border in np.s_[:edge], np.s_[-edge:], np.s_[:, :edge], np.s_[:, -edge:]:
            scene.ids[border], scene.rgb[border] = ID["out of roi"], DARK[:3]


def _tidy(ids: np.ndarray) -> None:
    """Make void of the instances of which next to nothing is visible."""
    counts = np.bincount(ids.ravel())
    thin = 2 * max(ids.shape)  # no narrow strip has more pixels
    for label in np.flatnonzero((counts > 0) & (counts <= thin)):
        if label < 1000:
            continue
        rows, cols = np.nonzero(ids == label)
        if counts[label] < TINY or min(np.ptp(rows), np.ptp(cols)) < 2:
            ids[rows, cols] = ID["static"]


def draw_scene(rng: np.random.Generator, width: int, height: int) -> Scene:
    """Draw a scene with at least one instance in it.

    Args:
        rng: The only source of what is drawn.
        width: Width of the picture in pixels.
        height: Height of the picture in pixels.

    Returns:
        The scene: `rgb` (H, W, 3) uint8 and `ids` (H, W) uint16 as in Cityscapes' instanceIds.
    """
    while True:
        scene = _compose(Scene(rng, width, height))
        if (scene.ids >= 1000).any():
            return scene


def _compose(scene: Scene) -> Scene:
    rng = scene.rng
    mood = setting.MOODS[rng.choice(len(setting.MOODS), p=[mood.odds for mood in setting.MOODS])]
    road = (-rng.uniform(2.5, 7), rng.uniform(2.5, 7))
    line = max(-road[0], road[1]) + rng.choice((2.5, 4, 7, 12)) * rng.uniform(0.8, 1.2)
    leaf = (0.06, 0.16) if rng.random() < 0.15 else (0.2, 0.38)
    setting.draw_sky(scene, mood)
    setting.draw_ground(scene, road, line, leaf)
    plan = plan_backdrop(scene, leaf) + plan_sides(scene, line, leaf)
    plan += plan_furniture(scene, road, line, leaf) + plan_things(scene, road, line)
    for _, draw in sorted(plan, key=lambda item: item[0]):
        draw()
    _void(scene)
    setting.photograph(scene, mood)
    _tidy(scene.ids)
    return scene
