"""Corrupt label files of maps, read as a training reads them.

The outcome must be the maps that the corrupt text says, or those before, or a note or an error in
one line that names the file. What a text says is found here by plain means of Python.
"""

import base64
import io
import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from mtfixmatch.data.datasets.own_data import TRAIN, OwnData
from mtfixmatch.data.datasets.scan import FileScanner
from mtfixmatch.tasks.segmentation import load_map
from mtfixmatch.utils.errors import InputError
from mtfixmatch.utils.labels import IGNORE_LABEL
from mtfixmatch.utils.notes import Notes
from tests.support.fuzz.boxes import MUTATIONS as TEXT_MUTATIONS
from tests.support.fuzz.boxes import WORD, replaced
from tests.support.fuzz.dataset import message_of
from tests.support.fuzz.files import ANY, Source
from tests.support.own_data import own_data

HEIGHT, WIDTH = 48, 64
CLASSES = ["ground", "person", "car"]  # the first is that of pixels without a shape
IMAGES = ("a.png", "b.png", "c.png")  # the last is not labeled
NAMED = re.compile(r"annotation|image |images of which each|shape \d+|segment|categor")
OTHER_CLASSES = "that are not trained"
Map = np.ndarray | None  # (H, W) classes; None: not labeled
Said = Mapping[str, Map]
POLYGON = [2.5, 3, 20, 4.5, 30, 40, 3, 44]
OTHER_POLYGON = [25, 10, 60, 10, 60, 30.5, 25, 30]


def block(x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[y0:y1, x0:x1] = 1
    return mask


def runs_of(mask: np.ndarray) -> list[int]:
    flat = np.append(0, mask.T.ravel().astype(int))
    ends = np.append(np.flatnonzero(np.diff(flat)), mask.size)
    return np.diff(ends, prepend=0).tolist()


def unrolled(runs: list[int], size: list[int]) -> np.ndarray:
    flat = np.repeat(np.arange(len(runs)) % 2, runs)
    return flat.reshape(size[1], size[0]).T.astype(bool)


def png(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def write_coco(root: Path) -> Path:
    """Polygons of two parts, runs, and compressed runs in a.png; b.png has a polygon."""
    compressed = coco_mask.encode(np.asfortranarray(block(30, 20, 50, 40)))["counts"].decode()
    size = [HEIGHT, WIDTH]
    shapes = [
        (1, [POLYGON, [50, 2, 60, 2, 60, 9]], 7),
        (1, {"size": size, "counts": runs_of(block(10, 10, 20, 20))}, 9),
        (1, {"size": size, "counts": compressed}, 7),
        (2, [OTHER_POLYGON], 9),
    ]
    sides = {"height": HEIGHT, "width": WIDTH}
    content = {
        "images": [{"id": i, "file_name": f"{x}.png", **sides} for i, x in ((1, "a"), (2, "b"))],
        "annotations": [
            {"id": 40 + i, "image_id": image, "category_id": c, "segmentation": shape}
            for i, (image, shape, c) in enumerate(shapes)
        ],
        "categories": [{"id": 7, "name": "person"}, {"id": 9, "name": "car"}],
    }
    path = root / "polygons.json"
    path.write_text(json.dumps(content, indent=1))
    return path


def write_labelme(root: Path) -> Path:
    mask = base64.b64encode(png(block(0, 0, 12, 8)[:8, :12] * 255)).decode()
    shapes = [
        {"label": "person", "points": np.reshape(POLYGON, (-1, 2)).tolist()},
        {"label": "car", "points": [[40, 30], [25, 12]], "shape_type": "rectangle"},
        {"label": "person", "points": [[50, 10], [50, 17]], "shape_type": "circle"},
        {"label": "car", "points": [[1, 2], [12, 9]], "shape_type": "mask", "mask": mask},
    ]
    folder = root / "maps"
    folder.mkdir()
    for name, part in (("a", shapes), ("b", shapes[1:2])):
        content = {"shapes": part, "imagePath": f"{name}.png", "imageData": None}
        content |= {"imageHeight": HEIGHT, "imageWidth": WIDTH}
        (folder / f"{name}.json").write_text(json.dumps(content, indent=1))
    return folder / "a.json"


def write_panoptic(root: Path) -> Path:
    folder = root / "panoptic"
    folder.mkdir()
    annotations = []
    for image, name in ((1, "a"), (2, "b")):
        ids = np.where(block(4, 4, 30, 30), 66_051, np.where(block(20, 0, 60, 48), 515, 0))
        colors = np.stack([ids & 255, ids >> 8 & 255, ids >> 16], axis=2).astype(np.uint8)
        (folder / f"{name}.png").write_bytes(png(colors))
        segments = [
            {"id": 66_051, "category_id": 7, "bbox": [4, 4, 26, 26], "iscrowd": 0},
            {"id": 515, "category_id": 9, "bbox": [20, 0, 40, 48], "iscrowd": 0},
        ]
        annotations.append({"image_id": image, "file_name": f"{name}.png"})
        annotations[-1]["segments_info"] = segments
    sides = {"height": HEIGHT, "width": WIDTH}
    content = {
        "images": [{"id": i, "file_name": f"{x}.jpg", **sides} for i, x in ((1, "a"), (2, "b"))],
        "annotations": annotations,
        "categories": [{"id": 7, "name": "person"}, {"id": 9, "name": "car"}],
    }
    for image in content["images"]:
        image["file_name"] = image["file_name"].replace("jpg", "png")
    path = root / "panoptic.json"
    path.write_text(json.dumps(content, indent=1))
    return path


WRITERS = {"coco": write_coco, "labelme": write_labelme, "panoptic": write_panoptic}

# What a text says, by its format


def key_of(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError
    value = int(value) if isinstance(value, float) and value.is_integer() else value
    return str(value).strip()


def names_of(categories: list) -> dict[str, str]:
    """Category key -> name."""
    return {key_of(x["id"]): str(x["name"]) for x in categories}


def parse(content: bytes) -> dict:
    return json.loads(content.decode("utf-8-sig"), parse_constant=lambda _: None)


def polygon_mask(polygon: list) -> np.ndarray:
    points = [float(x) for x in polygon if isinstance(x, (int, float)) and abs(x) < 3000]
    if len(points) != len(polygon) or len(points) % 2:
        raise ValueError
    if len(points) < 6:
        return np.zeros((HEIGHT, WIDTH), bool)
    runs = coco_mask.frPyObjects([points], HEIGHT, WIDTH)
    return coco_mask.decode(runs)[..., 0].astype(bool)


def coco_mask_of(shape: object) -> np.ndarray:
    if isinstance(shape, list):
        masks = [polygon_mask(x) for x in shape]
        if not any(len(x) >= 6 for x in shape):
            raise ValueError
        return np.any(masks, axis=0)
    if shape["size"] != [HEIGHT, WIDTH]:
        raise ValueError
    if isinstance(shape["counts"], list):
        return unrolled(shape["counts"], shape["size"])
    runs = {"size": shape["size"], "counts": shape["counts"].encode()}
    found = coco_mask.decode(runs).astype(bool)
    if not np.array_equal(coco_mask.encode(np.asfortranarray(found))["counts"], runs["counts"]):
        raise ValueError
    return found


def coco_says(content: bytes, root: Path) -> Said:
    """Raises an error of any type if the text has no sense as a whole."""
    data = parse(content)
    names = names_of(data["categories"])
    images = {key_of(x["id"]): x["file_name"] for x in data["images"]}
    maps = {name: np.zeros((HEIGHT, WIDTH), np.uint8) for name in images.values()}
    for x in data["annotations"]:
        mask = coco_mask_of(x["segmentation"])
        maps[images[key_of(x["image_id"])]][mask] = CLASSES.index(names[key_of(x["category_id"])])
    return maps


def labelme_says(content: bytes, root: Path) -> Said:
    ids = np.zeros((HEIGHT, WIDTH), np.uint8)
    for shape in parse(content)["shapes"]:
        ids[labelme_mask(shape)] = CLASSES.index(shape["label"].strip())
    return {"a.png": ids}


def labelme_mask(shape: dict) -> np.ndarray:
    kind, points = shape.get("shape_type") or "polygon", np.array(shape["points"], float)
    if kind == "mask":
        with Image.open(io.BytesIO(base64.b64decode(shape["mask"], validate=True))) as image:
            pixels = np.asarray(image.convert("L")) > 0
        (x0, y0), (x1, y1) = points.astype(int)
        mask = np.zeros((HEIGHT, WIDTH), bool)
        mask[y0 : y1 + 1, x0 : x1 + 1] = pixels
        return mask
    if kind == "circle":
        (x, y), (a, b) = points
        angles = np.linspace(0, 2 * math.pi, 180, endpoint=False)
        radius = math.hypot(a - x, b - y)
        points = np.array([x, y]) + radius * np.stack([np.cos(angles), np.sin(angles)], 1)
    if kind == "rectangle":
        (x0, y0), (x1, y1) = points
        points = np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])
    elif kind not in ("polygon", "circle", "rotation", "oriented_rectangle"):
        raise ValueError
    return polygon_mask(points.ravel().tolist())


def panoptic_says(content: bytes, root: Path) -> Said:
    data = parse(content)
    names = names_of(data["categories"])
    images = {key_of(x["id"]): x["file_name"] for x in data["images"]}
    maps: dict[str, Map] = dict.fromkeys(images.values())
    for x in data["annotations"]:
        with Image.open(root / "panoptic" / x["file_name"]) as image:
            colors = np.asarray(image).astype(int) @ [1, 256, 65536]
        ids = np.full(colors.shape, IGNORE_LABEL, np.uint8)
        for segment in x["segments_info"]:
            name = names[key_of(segment["category_id"])]
            number = CLASSES.index(name) if name in CLASSES else IGNORE_LABEL
            ids[colors == int(key_of(segment["id"]))] = number
        maps[images[key_of(x["image_id"])]] = ids
    return maps


SAYS: dict[str, Callable[[bytes, Path], Said]] = {
    "coco": coco_says,
    "labelme": labelme_says,
    "panoptic": panoptic_says,
}


class MapFolder:
    """A folder with three images and their maps in a format."""

    def __init__(self, root: Path, name: str):
        self.root, self.name = root, name
        for image in IMAGES:
            path = root / "images" / image
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(np.zeros((HEIGHT, WIDTH, 3), np.uint8)))
        self.path = WRITERS[name](root)
        self.content = self.path.read_bytes()
        files = {"IMAGES": str(root / "images")}
        files["MAPS"] = str(self.path.parent if name == "labelme" else self.path)
        keys = {"SEM_SEG_CLASSES": CLASSES, "UNPAINTED": "ground"}
        self.own: OwnData = own_data(("segmentation",), TRAIN=files, **keys)
        self.before = self.read(Notes())

    def read(self, notes: Notes) -> dict[str, Map]:
        return {
            record["image_id"]: load_map(record) if "sem_seg_file_name" in record else None
            for record in self.own.load(TRAIN, FileScanner(notes=notes))
        }

    def complaint(self, content: bytes, path: Path | None = None) -> str:
        """What goes wrong if a file, that of the labels by default, has this content; "": nothing.

        The file has its former content afterwards.
        """
        path = path or self.path
        former = path.read_bytes()
        path.write_bytes(content)
        try:
            return self._complaint(content, path)
        finally:
            path.write_bytes(former)

    def _complaint(self, content: bytes, path: Path) -> str:
        notes = Notes(max_faults=1.0)
        try:
            found = self.read(notes)
        except InputError as error:
            message = message_of(error)
            good = str(path) in message and "\n" not in message and len(message) < 700
            return "" if good else f"a bad message: {message}"
        except Exception as error:
            return f"a traceback: {error!r}"
        lines = [f"{kind}: {x}" for kind, part in notes.lines.items() for x in part]
        noted = any(str(path) in x and NAMED.search(x) and "\n" not in x for x in lines)
        noted |= any(OTHER_CLASSES in kind for kind in notes.lines)
        try:
            said = SAYS[self.name](content if path == self.path else self.content, self.root)
        except Exception:  # the text has no sense
            said = {}
        problems = [self._problem(name, found[name], said, noted) for name in IMAGES]
        return next(filter(None, problems), "")

    def _problem(self, name: str, found: Map, said: Said, noted: bool) -> str:
        before, others = self.before[name], said.get(name)
        if same(found, before) or (name in said and same(found, others)):
            return ""
        if not noted:
            return f"{name} was read wrongly, without a note"
        known = {*range(len(CLASSES)), IGNORE_LABEL}
        is_sane = found is None or set(np.unique(found).tolist()) <= known
        return "" if is_sane else f"{name} has invalid classes"


def same(a: Map, b: Map) -> bool:
    return a is b if a is None or b is None else np.array_equal(a, b)


def map_complaints(name: str, count: int, seed: int, folder: Path) -> list[str]:
    """Corrupt a label file of a format `count` times and return what went wrong."""
    data = MapFolder(folder, name)
    words = b"segmentation counts size points shape_type mask polygon circle id image_id".split()
    words += [b"segments_info", b"category_id", b"file_name", b"a", b"", b"car", b"\\u0000"]
    mutations = (*TEXT_MUTATIONS, *(lambda x, rng: replaced(WORD, words, x, rng),) * 4)
    problems = []
    for i in range(count):
        rng = np.random.default_rng(seed + i)
        path = data.path
        if name == "panoptic" and i % 6 == 0:
            path = data.root / "panoptic" / "a.png"
            mutate = ANY[i // 6 % len(ANY)]
            content = mutate(Source("map", "a", path.read_bytes()), rng).content or b""
        else:
            content = mutations[i % len(mutations)](data.content, rng)
        if problem := data.complaint(content, path):
            problems.append(f"{name}, seed {seed + i}, {content[:300]!r}: {problem}")
    return problems
