"""Mutations of the annotations in JSON files, each with the outcome that a reader must have."""

import json
from collections.abc import Callable
from typing import Any

from numpy.random import Generator

from tests.support.fuzz.files import ERROR, NOTED, SAME, SANE, Mutant, Source

NAN, INFINITY = float("nan"), float("inf")
BAD_NUMBERS = (NAN, INFINITY, -INFINITY, 10**400, -(10**400), 1e300, None, "12", "x", True, [1], {})
FAR = (-1e6, -50, 1e6, 1e12, 10**20)
Edit = Callable[[Any, Generator], str]  # edits the decoded content, returns the outcome


def pick(rng: Generator, values):
    """A random one of the values."""
    return values[int(rng.integers(len(values)))]


def other_types(*kinds: type) -> list:
    """One value of each JSON type except these."""
    return [x for x in (None, True, 7, 1.5, "text", [], {}, [7]) if type(x) not in kinds]


# COCO instances


def coco_box_value(c: Any, rng: Generator) -> str:
    pick(rng, c["annotations"])["bbox"][int(rng.integers(4))] = pick(rng, BAD_NUMBERS)
    return NOTED


def coco_box_far(c: Any, rng: Generator) -> str:
    pick(rng, c["annotations"])["bbox"][int(rng.integers(4))] = pick(rng, FAR)
    return NOTED


def coco_box_shape(c: Any, rng: Generator) -> str:
    wrong = [[], [1], [1, 2, 3], [1, 2, 3, 4, 5], {"x": 1}, [[1, 2, 3, 4]], *other_types(list)]
    pick(rng, c["annotations"])["bbox"] = pick(rng, wrong)
    return NOTED


def coco_swapped(c: Any, rng: Generator) -> str:
    """A box given from its far corner, with a negative size."""
    box = pick(rng, c["annotations"])["bbox"]
    for side in ((0,), (1,), (0, 1))[int(rng.integers(3))]:
        box[side] += box[side + 2]
        box[side + 2] *= -1
    return NOTED


def coco_corners(c: Any, rng: Generator) -> str:
    """Corners instead of width and height, so that the box leaves the image."""
    box = c["annotations"][1]["bbox"]
    box[2:] = [box[0] + box[2], box[1] + box[3]]
    return NOTED


def coco_no_area(c: Any, rng: Generator) -> str:
    pick(rng, c["annotations"])["bbox"][2 + int(rng.integers(2))] = pick(rng, (0, -1, 1e-30, 0.0))
    return NOTED


def coco_slightly_outside(c: Any, rng: Generator) -> str:
    """A box that leaves the image by less than a pixel, and may be clipped."""
    box = c["annotations"][0]["bbox"]
    box[2] = 64 - box[0] + float(rng.uniform(0, 0.99))
    return SANE


def coco_unknown_class(c: Any, rng: Generator) -> str:
    pick(rng, c["annotations"])["category_id"] = pick(rng, (99, -1, 0, 10**30))
    return NOTED


def coco_unknown_image(c: Any, rng: Generator) -> str:
    pick(rng, c["annotations"])["image_id"] = pick(rng, (99, -1, 10**30))
    return NOTED


def coco_other_categories(c: Any, rng: Generator) -> str:
    c["categories"][0]["name"] = pick(rng, ("dragon", "", "Car "))
    return NOTED


def coco_duplicate(c: Any, rng: Generator) -> str:
    section = pick(rng, ("images", "annotations", "categories"))
    entry = dict(pick(rng, c[section]))
    if section == "images" and rng.integers(2):
        entry["id"] = 77  # a second entry for one file
    if section == "categories" and rng.integers(2):
        entry["id"] = 77
    c[section].append(entry)
    return NOTED


def coco_missing_key(c: Any, rng: Generator) -> str:
    section = pick(rng, ("images", "annotations", "categories"))
    entry = pick(rng, c[section])
    del entry[pick(rng, [key for key in entry if key != "iscrowd"])]
    return NOTED


def coco_missing_section(c: Any, rng: Generator) -> str:
    del c[pick(rng, list(c))]
    return ERROR


def coco_wrong_type(c: Any, rng: Generator) -> str:
    section = pick(rng, ("images", "annotations", "categories"))
    entry = pick(rng, c[section])
    key = pick(rng, [key for key in entry if key != "iscrowd"])
    entry[key] = pick(rng, other_types(type(entry[key])))
    return NOTED


def coco_wrong_entry(c: Any, rng: Generator) -> str:
    section = pick(rng, list(c))
    c[section].insert(int(rng.integers(len(c[section]) + 1)), pick(rng, other_types(dict)))
    return NOTED


def coco_wrong_section(c: Any, rng: Generator) -> str:
    c[pick(rng, list(c))] = pick(rng, other_types(list))
    return ERROR


def coco_crowd(c: Any, rng: Generator) -> str:
    pick(rng, c["annotations"])["iscrowd"] = pick(rng, (2, -1, 0.5, NAN, "0", None, [], {}))
    return NOTED


def coco_no_crowd(c: Any, rng: Generator) -> str:
    del pick(rng, c["annotations"])["iscrowd"]
    return SAME


def coco_image_size(c: Any, rng: Generator) -> str:
    image = pick(rng, c["images"])
    image[pick(rng, ("height", "width"))] = pick(rng, (0, -1, 47, 65, 10**12, NAN, INFINITY))
    return NOTED


def coco_file_name(c: Any, rng: Generator) -> str:
    names = ("", ".", "../a.png", "/etc/passwd", "x.png", "a\0.png", "\ud800.png", "A.PNG")
    pick(rng, c["images"])["file_name"] = pick(rng, names)
    return NOTED


def coco_no_objects(c: Any, rng: Generator) -> str:
    """All images are labeled and have no object."""
    c["annotations"] = []
    return SANE


def coco_empty(c: Any, rng: Generator) -> str:
    for key in list(c):
        c[key] = []
    return ERROR  # there are no categories left


def coco_other_order(c: Any, rng: Generator) -> str:
    for section in c.values():
        rng.shuffle(section)
    return SAME


def coco_more_keys(c: Any, rng: Generator) -> str:
    c["info"] = {"year": 2026, "contributor": None}
    pick(rng, c["annotations"]).update(segmentation=[[1, 2, 3]], area=-4, score=NAN, id_="x")
    return SAME


# BDD100K


def label_of(frames: Any, rng: Generator) -> dict:
    """A random label of a random frame."""
    return pick(rng, pick(rng, frames)["labels"])


def bdd_box_value(c: Any, rng: Generator) -> str:
    label_of(c, rng)["box2d"][pick(rng, ("x1", "y1", "x2", "y2"))] = pick(rng, BAD_NUMBERS)
    return NOTED


def bdd_box_far(c: Any, rng: Generator) -> str:
    label_of(c, rng)["box2d"][pick(rng, ("x1", "y1", "x2", "y2"))] = pick(rng, FAR)
    return NOTED


def bdd_box_shape(c: Any, rng: Generator) -> str:
    label_of(c, rng)["box2d"] = pick(rng, [[1, 2, 3, 4], {"x1": 1}, *other_types()])
    return NOTED


def bdd_swapped(c: Any, rng: Generator) -> str:
    box = label_of(c, rng)["box2d"]
    axis = pick(rng, ("x", "y"))
    box[f"{axis}1"], box[f"{axis}2"] = box[f"{axis}2"], box[f"{axis}1"]
    return NOTED


def bdd_slightly_outside(c: Any, rng: Generator) -> str:
    c[0]["labels"][0]["box2d"]["x2"] = 63 + float(rng.uniform(0, 0.99))
    return SANE


def bdd_unknown_class(c: Any, rng: Generator) -> str:
    label_of(c, rng)["category"] = pick(rng, ("dragon", "", "Car", "cars", "ca r"))
    return NOTED


def bdd_duplicate(c: Any, rng: Generator) -> str:
    c.append(dict(pick(rng, c)))
    return NOTED


def bdd_missing_key(c: Any, rng: Generator) -> str:
    if rng.integers(2):
        del pick(rng, c)["name"]
    else:
        del label_of(c, rng)[pick(rng, ("category", "box2d"))]
    return NOTED


def bdd_wrong_type(c: Any, rng: Generator) -> str:
    kind = int(rng.integers(4))
    if kind == 0:
        pick(rng, c)["name"] = pick(rng, other_types(str))
    elif kind == 1:
        pick(rng, c)["labels"] = pick(rng, [x for x in other_types(list) if x is not None])
    elif kind == 2:
        label_of(c, rng)["category"] = pick(rng, other_types(str))
    else:
        label_of(c, rng)["attributes"] = pick(rng, ("x", 7, [1], {"crowd": "false"}))
    return NOTED


def bdd_wrong_entry(c: Any, rng: Generator) -> str:
    places = [c, pick(rng, c)["labels"]]
    pick(rng, places).append(pick(rng, other_types(dict)))
    return NOTED


def bdd_no_attributes(c: Any, rng: Generator) -> str:
    label = label_of(c, rng)
    if rng.integers(2):
        label["attributes"] = pick(rng, (None, {}, {"crowd": None, "occluded": True}))
    else:
        del label["attributes"]
    return SAME


def bdd_unlabeled(c: Any, rng: Generator) -> str:
    pick(rng, c)["labels"] = pick(rng, (None, []))
    return SANE


def bdd_other_order(c: Any, rng: Generator) -> str:
    rng.shuffle(c)
    rng.shuffle(pick(rng, c)["labels"])
    return SAME


def bdd_more_keys(c: Any, rng: Generator) -> str:
    pick(rng, c).update(timestamp=1000, attributes={"weather": "clear"}, url=None)
    label_of(c, rng).update(id="4", manualShape=NAN, poly2d=None)
    return SAME


def edit(change: Edit) -> Callable[[Source, Generator], Mutant]:
    """Turn an edit of the decoded content into a mutation of the JSON file."""

    def mutate(source: Source, rng: Generator) -> Mutant:
        content = json.loads(source.content)
        outcome = change(content, rng)
        return Mutant(json.dumps(content).encode(), outcome)

    mutate.__name__ = change.__name__
    return mutate


EDITS: dict[str, list[Callable[[Source, Generator], Mutant]]] = {
    layout: [edit(change) for name, change in list(globals().items()) if name.startswith(prefix)]
    for layout, prefix in (("coco_style", "coco_"), ("bdd100k", "bdd_"))
}
