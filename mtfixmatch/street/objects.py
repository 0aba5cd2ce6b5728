"""How plants, houses, barriers, poles, people and vehicles look.

All functions draw on a layer, in metres from its bottom left corner. Side views face to the right;
the scene mirrors them.
"""

from collections.abc import Sequence

from .canvas import CIRCLE, DARK, GLASS, ID, Color, Layer, Point, Range, dim, random_color, steps

Points = list[Point]
LAMPS: Sequence[Color] = ((60, 230, 90), (250, 190, 40), (240, 40, 30))
STEEL: Color = (120, 122, 126)
# Outline and window of a car from its side, as fractions of its length and height.
SEDAN = [(0, 0.2), (0, 0.6), (0.16, 0.68), (0.3, 1), (0.62, 1), (0.78, 0.66), (1, 0.54), (1, 0.2)]
HATCHBACK = [(0, 0.2), (0, 0.62), (0.07, 0.96), (0.55, 1), (0.74, 0.64), (1, 0.54), (1, 0.2)]
VAN = [(0, 0.16), (0, 0.97), (0.7, 1), (0.87, 0.6), (1, 0.5), (1, 0.16)]
CAR_SHAPES = {
    "sedan": (SEDAN, [(0.2, 0.66), (0.31, 0.94), (0.61, 0.94), (0.74, 0.66)]),
    "hatchback": (HATCHBACK, [(0.07, 0.66), (0.12, 0.92), (0.54, 0.94), (0.7, 0.66)]),
    "van": (VAN, [(0.5, 0.62), (0.5, 0.92), (0.69, 0.92), (0.82, 0.62)]),
}


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
        layer.disc(x, y, radius * rng.uniform(0.7, 1.2), dim(leaves[i % 4], 0.6 + 0.5 * i / count))


def draw_facade(layer: Layer, paint: Color) -> None:
    """Draw the front of a house: courses, windows, doors, now and then a sign or a poster."""
    (length, height), rng = layer.size, layer.rng
    glass = random_color(rng, *GLASS)
    layer.rect(0, 0, length, height, paint)
    layer.label = None
    if layer.is_narrow:
        return
    if rng.random() < 0.4:
        for y in steps(0.5, height, rng.uniform(0.4, 1.2)):
            layer.line([(0, y), (length, y)], 0.06, dim(paint, 0.85))
    pitch, storey, share = rng.uniform(1.8, 3.6), rng.uniform(2.7, 3.6), rng.uniform(0.35, 0.7)
    for y in steps(storey, height - 1.5, storey):
        for x in steps(0.4, length - share * pitch, pitch):
            color = (235, 210, 140) if rng.random() < 0.1 else glass  # lit or dark
            layer.rect(x, y + 0.6, x + share * pitch, y + 2.2, color)
    for x in steps(0.4, length - 1.5, rng.uniform(2, 5)):  # doors
        layer.rect(x, 0, x + rng.uniform(1, 1.8), 2.2, random_color(rng, val=(0.1, 0.6)))
    if rng.random() < 0.35:  # an awning or a shop sign
        layer.rect(0.2, 2.3, length - 0.2, rng.uniform(2.6, 3.1), random_color(rng, sat=(0.3, 1)))
    if rng.random() < 0.3:  # a poster
        x, y = rng.uniform(0, 0.6) * length, rng.uniform(1, 4)
        right, top = x + rng.uniform(1.5, 4), y + rng.uniform(1, 3)
        layer.rect(x, y, right, top, random_color(rng, sat=(0.3, 1)))
        layer.disc(x + 0.8, y + 0.6, rng.uniform(0.2, 0.5), random_color(rng))


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
    x, head = width / 2, height - 0.5
    layer.rect(x - 0.07, 0, x + 0.07, head, metal)
    if top == "lamp":
        layer.line([(x, head), (width, head + 0.2)], 0.1, metal)
        return
    layer.label = ID[top]
    if top == "traffic sign":
        _draw_sign(layer, x, height - 0.45)
        return
    layer.rect(x - 0.2, height - 1.1, x + 0.2, height, DARK)
    on = int(layer.rng.integers(3))
    for i, lamp in enumerate(LAMPS):
        layer.disc(x, height - 0.9 + 0.34 * i, 0.14, dim(lamp, 1 if i == on else 0.3))


def _draw_sign(layer: Layer, x: float, y: float) -> None:
    """Draw a traffic sign around (x, y): round, triangular or square."""
    kind, r, red = int(layer.rng.integers(3)), layer.rng.uniform(0.35, 0.45), (200, 30, 30)
    if kind == 0:
        layer.disc(x, y, r, red)
        layer.disc(x, y, 0.65 * r, (240, 240, 235))
    elif kind == 1:
        layer.poly([(x - r, y - r), (x + r, y - r), (x, y + r)], red)
        inner = [(x - r / 2, y - 0.7 * r), (x + r / 2, y - 0.7 * r), (x, y + r / 2)]
        layer.poly(inner, (245, 230, 120))
    else:
        layer.rect(x - r, y - r, x + r, y + r, (30, 70, 190))
        layer.rect(x - 0.3 * r, y - 0.6 * r, x + 0.3 * r, y + 0.6 * r, (235, 235, 240))


def draw_box(layer: Layer, paint: Color) -> None:
    """Draw a bin or a kiosk: a coloured box with a hatch and a lid."""
    width, height = layer.size
    layer.rect(0, 0, width, height, paint)
    layer.rect(0.15 * width, 0.4 * height, 0.85 * width, 0.75 * height, random_color(layer.rng))
    layer.rect(0, 0.88 * height, width, height, dim(paint, 0.6))


def draw_body(layer: Layer, hip: Point, neck: Point, legs: list[Points], hands: Points) -> None:
    """Draw a human body from its joints; a leg is a knee and a foot."""
    rng = layer.rng
    skin = random_color(rng, (0.04, 0.09), (0.25, 0.6), (0.3, 0.95))
    hair = random_color(rng, (0.05, 0.12))
    top, trousers = random_color(rng), random_color(rng, val=(0.08, 0.7))
    build = rng.uniform(0.85, 1.3)
    for leg in legs:
        layer.line([hip, *leg], 0.15 * build, trousers)
        layer.disc(*leg[-1], 0.08, DARK)
    (hip_x, hip_y), (x, y), half = hip, neck, 0.2 * build
    if rng.random() < 0.25:  # a skirt or a coat
        layer.poly([(hip_x - 0.28, hip_y - 0.3), (hip_x + 0.28, hip_y - 0.3), neck], top)
    waist = [(hip_x - 0.75 * half, hip_y - 0.08), (hip_x + 0.75 * half, hip_y - 0.08)]
    layer.poly([*waist, (x + half, y - 0.05), (x, y + 0.05), (x - half, y - 0.05)], top)
    for side, hand in zip((-1, 1), hands, strict=True):
        layer.line([(x + side * half * 0.8, y - 0.08), hand], 0.1 * build, dim(top, 0.85))
        layer.disc(*hand, 0.055, skin)
    layer.disc(x + 0.02, y + 0.17, 0.125, hair)
    layer.disc(x + 0.05, y + 0.14, 0.1, skin)


def draw_person(layer: Layer, size: float) -> None:
    """Draw a person who stands or walks, `size` relative to an adult."""
    rng, x = layer.rng, layer.size[0] / 2
    stride, swing = rng.uniform(0.06, 0.34), rng.uniform(0.05, 0.3)
    hip, neck = (x, 0.86 * size), (x + rng.uniform(-0.04, 0.08), 1.45 * size)
    knees = [(x - 0.3 * stride, 0.45 * size), (x + 0.7 * stride, 0.47 * size)]
    legs = [[knees[0], (x - stride, 0.06)], [knees[1], (x + stride, 0.05)]]
    hands = [(x - 0.22 - swing, 0.85 * size), (x + 0.22 + swing, 0.9 * size)]
    draw_body(layer, hip, neck, legs, hands)
    if rng.random() < 0.25:  # a bag
        layer.rect(x - 0.4, 0.5 * size, x - 0.16, 0.85 * size, random_color(rng))


def draw_rider(layer: Layer, lean: float) -> None:
    """Draw a person on a two-wheeler of 1.8 m, who leans forward by `lean` metres."""
    hip, neck = (0.66, 0.95), (0.72 + lean, 1.47)
    legs = [[(1.05, 0.8), (0.85, 0.34)], [(1.0, 0.62), (0.92, 0.2)]]
    draw_body(layer, hip, neck, legs, [(1.28, 1.03), (1.3, 1.05)])
    if layer.rng.random() < 0.5:  # a helmet
        layer.disc(0.74 + lean, 1.68, 0.13, random_color(layer.rng))


def draw_bicycle(layer: Layer) -> None:
    """Draw a bicycle of 1.75 m; its wheels are labeled, as annotators do, but see-through."""
    frame, tube = random_color(layer.rng), layer.rng.uniform(0.05, 0.08)
    layer.poly([(0.36, 0.36), (0.72, 0.8), (1.25, 0.82), (1.4, 0.36), (0.85, 0.3)], None)
    for x in (0.36, 1.4):
        layer.disc(x, 0.36, 0.34, None)
        rim = [(x + 0.31 * cos, 0.36 + 0.31 * sin) for cos, sin in CIRCLE]
        layer.line([*rim, rim[0]], 0.06, DARK)
    layer.line([(0.36, 0.36), (0.72, 0.8), (1.25, 0.82), (0.85, 0.34), (0.36, 0.36)], tube, frame)
    layer.line([(0.85, 0.34), (0.68, 0.92)], tube, frame)
    layer.line([(1.4, 0.36), (1.24, 1.02), (1.36, 1.06)], tube, frame)
    layer.rect(0.55, 0.9, 0.8, 0.97, DARK)


def draw_motorcycle(layer: Layer) -> None:
    """Draw a motorcycle or scooter of 1.9 m."""
    body = random_color(layer.rng, sat=(0.2, 1))
    for x in (0.34, 1.5):
        layer.disc(x, 0.32, 0.31, DARK)
        layer.disc(x, 0.32, 0.13, STEEL)
    layer.poly([(0.55, 0.25), (0.5, 0.6), (1.1, 0.65), (1.2, 0.3)], dim(STEEL, 0.6))
    layer.poly([(0.1, 0.7), (0.15, 0.85), (0.7, 0.78), (0.75, 0.65)], DARK)
    layer.poly([(0.7, 0.6), (0.72, 0.84), (1.05, 0.98), (1.3, 0.8), (1.1, 0.55)], body)
    layer.line([(1.5, 0.32), (1.25, 1.02), (1.12, 1.08)], 0.1, STEEL)
    layer.disc(1.36, 0.86, 0.1, (250, 245, 210))
    layer.poly([(0.05, 0.35), (0.05, 0.45), (0.75, 0.36), (0.75, 0.28)], STEEL)
    if layer.rng.random() < 0.4:  # a windshield
        layer.poly([(1.22, 0.85), (1.1, 1.25), (1.2, 1.28), (1.4, 0.9)], dim(body, 0.9))


def _draw_wheels(layer: Layer, places: Sequence[float], radius: float) -> None:
    rim = random_color(layer.rng, sat=(0, 0.1), val=(0.3, 0.85))
    for x in places:
        layer.disc(x, radius, radius, DARK)
        layer.disc(x, radius, 0.55 * radius, rim)


def draw_car(layer: Layer, paint: Color, style: str) -> None:
    """Draw a car from its side; `style` is a name in CAR_SHAPES."""
    (length, height), rng = layer.size, layer.rng
    glass, pillar = random_color(rng, *GLASS), rng.uniform(0.4, 0.52)
    outline, window = ([(x * length, y * height) for x, y in part] for part in CAR_SHAPES[style])
    layer.poly(outline, paint)
    layer.rect(0, 0.2 * height, length, 0.3 * height, dim(paint, 0.6))
    layer.poly(window, glass)
    left, right = (pillar - 0.015) * length, (pillar + 0.015) * length
    layer.rect(left, 0.3 * height, right, 0.9 * height, paint)
    layer.rect(0.95 * length, 0.4 * height, length, 0.5 * height, (250, 240, 200))
    layer.rect(0, 0.42 * height, 0.03 * length, 0.58 * height, (190, 20, 20))
    _draw_wheels(layer, (0.19 * length, 0.8 * length), 0.31)


def draw_truck(layer: Layer, paint: Color, style: str) -> None:
    """Draw a truck from its side: a cargo box ("ribbed" or "plain"), a gap, a cab."""
    (length, height), rng = layer.size, layer.rng
    cab, cargo = rng.uniform(0.24, 0.32) * length, random_color(rng, sat=(0, 0.7), val=(0.4, 1))
    start, top = length - cab, rng.uniform(0.72, 0.95) * height
    layer.rect(0.1, 0.5, length, 0.8, DARK)
    layer.rect(0, 0.8, start - 0.25, height, cargo)
    if style == "ribbed":
        for x in steps(0.3, start - 0.4, 0.6):
            layer.rect(x, 0.85, x + 0.1, height, dim(cargo, 0.8))
    else:
        layer.rect(0.1 * start, 1.4, 0.8 * start, 1.4 + rng.uniform(0.3, 0.9), random_color(rng))
    front = [(length - 0.4, top), (length, 1.5), (length, 0.5)]
    layer.poly([(start, 0.5), (start, top), *front], paint)
    layer.rect(start + 0.35 * cab, 0.6 * top, length - 0.35, 0.9 * top, random_color(rng, *GLASS))
    layer.rect(length - 0.15, 0.6, length, 0.85, (250, 240, 200))
    _draw_wheels(layer, (0.12 * length, 0.12 * length + 1.1, length - 0.55 * cab), 0.48)


def draw_bus(layer: Layer, paint: Color, style: str) -> None:
    """Draw a bus from its side: one row of windows, two doors if "ribbed", else one."""
    (length, height), rng = layer.size, layer.rng
    glass = random_color(rng, *GLASS)
    layer.rect(0, 0.3, length, height, paint)
    layer.rect(0, 0.3, length, rng.uniform(0.5, 1.1), random_color(rng))
    pitch = rng.uniform(1.1, 1.7)
    for x in steps(0.3, length - 1.2, pitch):
        layer.rect(x, 0.5 * height, x + pitch - 0.18, 0.86 * height, glass)
    for x in (0.32 * length, length - 1.9) if style == "ribbed" else (length - 1.9,):
        layer.rect(x, 0.35, x + 1.1, 0.86 * height, dim(glass, 0.7))
        layer.rect(x + 0.5, 0.35, x + 0.6, 0.86 * height, paint)
    layer.rect(length - 0.35, 0.42 * height, length, 0.9 * height, glass)
    _draw_wheels(layer, (0.2 * length, 0.76 * length), 0.48)


def draw_vehicle_end(layer: Layer, paint: Color, style: str, front: bool) -> None:
    """Draw the front or the back of a vehicle; `style` is a car's, "truck" or "bus"."""
    (width, height), rng, boxy = layer.size, layer.rng, style in ("truck", "bus", "van")
    shoulder, inset = (height, 0.02) if boxy else (0.62 * height, rng.uniform(0.1, 0.2))
    low = 0.16 * min(height, 2.0)
    for x in (0.06 * width, 0.8 * width):  # wheels
        layer.rect(x, 0, x + 0.14 * width, 2 * low, DARK)
    layer.rect(0.01 * width, low, 0.99 * width, shoulder, paint)
    roof = [(inset * width, height), ((1 - inset) * width, height)]
    layer.poly([(0, 0.58 * height), *roof, (width, 0.58 * height)], paint)
    if style == "truck":
        _draw_truck_end(layer, paint, front)
    else:
        sill, lintel = rng.uniform(0.34, 0.5) if boxy else 0.64, 0.9
        if style == "van":
            sill, lintel = rng.uniform(0.5, 0.6), 0.93
        left, right = (inset + 0.06) * width, (1 - (inset + 0.06)) * width
        top = [(left, lintel * height), (right, lintel * height)]
        glass = [(0.08 * width, sill * height), *top, (0.92 * width, sill * height)]
        layer.poly(glass, random_color(rng, *GLASS))
    if style == "bus":  # the destination sign
        layer.rect(0.2 * width, 0.86 * height, 0.8 * width, 0.96 * height, DARK)
        layer.rect(0.3 * width, 0.89 * height, 0.7 * width, 0.93 * height, (250, 180, 40))
    lamp: Color = (250, 245, 215) if front else (200, 25, 20)
    for x in (0.05 * width, 0.79 * width):
        layer.rect(x, 2.2 * low, x + 0.16 * width, 2.2 * low + 0.16, lamp)
    layer.rect(0.02 * width, low, 0.98 * width, 1.6 * low, dim(paint, 0.55))  # bumper
    layer.rect(0.38 * width, 1.7 * low, 0.62 * width, 1.7 * low + 0.11, (225, 225, 215))


def _draw_truck_end(layer: Layer, paint: Color, front: bool) -> None:
    (width, height), rng = layer.size, layer.rng
    cargo = random_color(rng, sat=(0, 0.7), val=(0.4, 1))
    if front:  # the cargo box is higher than the cab
        layer.rect(0, 0.7 * height, width, height, cargo)
        layer.rect(0.04 * width, 0.3 * height, 0.96 * width, 0.78 * height, paint)
        layer.rect(0.1 * width, 0.5 * height, 0.9 * width, 0.72 * height, random_color(rng, *GLASS))
        return
    layer.rect(0, 0.25 * height, width, height, cargo)
    for x in (0.49, 0.25, 0.73):
        layer.rect(x * width, 0.28 * height, (x + 0.02) * width, 0.97 * height, dim(cargo, 0.6))
    layer.rect(0.05 * width, 0.2 * height, 0.95 * width, 0.25 * height, DARK)


VEHICLE_SIDES = {"car": draw_car, "truck": draw_truck, "bus": draw_bus}
