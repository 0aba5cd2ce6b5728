"""Write semantic maps in each format that the reader of the user's own data knows."""

import base64
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from mtfixmatch.utils.labels import IGNORE_LABEL

# Name of each image -> (H, W) uint8 classes or IGNORE_LABEL; None: it is not labeled.
Maps = Mapping[str, np.ndarray | None]
# What DATASETS.COCO_STYLE has: MAPS, and keys such as MAP_VALUES.
Written = tuple[str, dict[str, Any]]


def table_of(classes: Sequence[str]) -> list[list[int]]:
    """A color for each class, one of them with a byte of another."""
    return [[10 * i, 255 - i, i] for i in range(len(classes))]


def values_of(classes: Sequence[str]) -> list[int]:
    """A value for each class, none its number, in descending order."""
    return [100 - 3 * i for i in range(len(classes))]


def looked_up(ids: np.ndarray, values: Sequence, ignored: Any) -> np.ndarray:
    """The value of each class, and one for ignored pixels."""
    table = np.array([*values, ignored])
    return table[np.where(ids == IGNORE_LABEL, len(values), ids)]


def _save_all(root: Path, maps: Maps, convert: Callable[[np.ndarray], Image.Image]) -> str:
    folder = root / "maps"
    folder.mkdir()
    for name, ids in maps.items():
        if ids is not None:
            convert(ids).save(folder / f"{Path(name).stem}.png")
    return str(folder)


def write_index(root: Path, maps: Maps, classes: Sequence[str]) -> Written:
    return _save_all(root, maps, Image.fromarray), {}


def write_values(root: Path, maps: Maps, classes: Sequence[str]) -> Written:
    """As the labelIds of Cityscapes: 0 is ignored."""
    values = values_of(classes)
    table = [*zip(values, classes, strict=True), (0, "")]
    folder = _save_all(
        root, maps, lambda ids: Image.fromarray(looked_up(ids, values, 0).astype(np.uint8))
    )
    return folder, {"MAP_VALUES": table}


def write_16_bits(root: Path, maps: Maps, classes: Sequence[str]) -> Written:
    """Also the ignored value is above 255."""
    values = [1000 * x for x in range(1, len(classes) + 1)]
    table = [*zip(values, classes, strict=True), (65535, "")]
    folder = _save_all(
        root, maps, lambda ids: Image.fromarray(looked_up(ids, values, 65535).astype(np.uint16))
    )
    return folder, {"MAP_VALUES": table}


def write_colors(root: Path, maps: Maps, classes: Sequence[str]) -> Written:
    colors = table_of(classes)
    table = [*zip(colors, classes, strict=True), ([0, 0, 0], "")]
    folder = _save_all(
        root, maps, lambda ids: Image.fromarray(looked_up(ids, colors, [0, 0, 0]).astype(np.uint8))
    )
    return folder, {"MAP_VALUES": table}


def _palette(ids: np.ndarray, colors: Sequence[Sequence[int]]) -> Image.Image:
    image = Image.fromarray(ids).convert("P")
    image.putdata(ids.ravel().tolist())
    image.putpalette(np.ravel(colors).tolist())
    return image


def write_palette(root: Path, maps: Maps, classes: Sequence[str]) -> Written:
    """The index counts, whatever the colors are."""
    colors = np.random.default_rng(0).integers(0, 256, (256, 3))
    return _save_all(root, maps, lambda ids: _palette(ids, colors)), {}


def write_palette_colors(root: Path, maps: Maps, classes: Sequence[str]) -> Written:
    """The colors count, whatever the index is."""
    colors = [[9, 9, 9], *reversed(table_of(classes))]
    order = range(len(classes), 0, -1)
    table = [*zip(table_of(classes), classes, strict=True), ([9, 9, 9], "")]
    folder = _save_all(
        root, maps, lambda ids: _palette(looked_up(ids, order, 0).astype(np.uint8), colors)
    )
    return folder, {"MAP_VALUES": table}


# Shapes


def rectangles(mask: np.ndarray) -> list[list[float]]:
    """A rectangle [x0, y0, x1, y1] for each run of a row."""
    found = []
    for y, row in enumerate(mask):
        edges = np.flatnonzero(np.diff(np.concatenate([[0], row.astype(int), [0]])))
        found += [[float(a), float(y), float(b), y + 1.0] for a, b in edges.reshape(-1, 2)]
    return found


def as_polygons(mask: np.ndarray) -> Any:
    return [[x0, y0, x1, y0, x1, y1, x0, y1] for x0, y0, x1, y1 in rectangles(mask)]


def as_runs(mask: np.ndarray) -> Any:
    flat = np.append(0, mask.T.ravel().astype(int))
    ends = np.append(np.flatnonzero(np.diff(flat)), mask.size)
    return {"size": list(mask.shape), "counts": np.diff(ends, prepend=0).tolist()}


def as_compressed(mask: np.ndarray) -> Any:
    counts = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]
    return {"size": list(mask.shape), "counts": counts.decode()}


def classes_in(ids: np.ndarray) -> list[int]:
    return [x for x in np.unique(ids).tolist() if x != IGNORE_LABEL]


def coco_writer(encode: Callable[[np.ndarray], Any]) -> "Writer":
    def write(root: Path, maps: Maps, classes: Sequence[str]) -> Written:
        """Category ids begin at 3; the first shape is covered by the others."""
        images, annotations = [], []
        for key, (name, ids) in enumerate(maps.items()):
            if ids is None:
                continue
            height, width = ids.shape
            images.append({"id": key, "file_name": name, "height": height, "width": width})
            for number, i in enumerate(classes_in(ids)):
                mask = (ids == i) if number else (ids != IGNORE_LABEL)
                entry = {"id": len(annotations), "image_id": key, "category_id": i + 3}
                annotations.append(entry | {"segmentation": encode(mask), "iscrowd": 0})
        categories = [{"id": i, "name": name} for i, name in enumerate(classes, start=3)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        path = root / "maps.json"
        path.write_text(json.dumps(content))
        return str(path), {}

    return write


def write_labelme(root: Path, maps: Maps, classes: Sequence[str]) -> Written:
    """The first class as masks, the others as rectangles and polygons."""
    folder = root / "maps"
    folder.mkdir()
    for name, ids in maps.items():
        if ids is not None:
            shapes = [
                {"label": classes[i], **shape}
                for number, i in enumerate(classes_in(ids))
                for shape in (_labelme_shapes(ids == i) if number else [_labelme_mask(ids == i)])
            ]
            content = {"imagePath": f"../images/{name}", "imageData": None, "shapes": shapes}
            content |= {"imageHeight": ids.shape[0], "imageWidth": ids.shape[1]}
            (folder / f"{Path(name).stem}.json").write_text(json.dumps(content, indent=1))
    return str(folder), {}


def _labelme_shapes(mask: np.ndarray) -> list[dict]:
    shapes = []
    for number, (x0, y0, x1, y1) in enumerate(rectangles(mask)):
        points = [[x0, y0], [x1, y0], [x1, y1], [x0, y1]]
        shape = {"shape_type": "polygon", "points": points}
        if number % 2:
            shape = {"shape_type": "rectangle", "points": [[x1, y0], [x0, y1]]}
        shapes.append(shape)
    return shapes


def _labelme_mask(mask: np.ndarray) -> dict:
    ys, xs = np.nonzero(mask)
    x0, y0, x1, y1 = (int(x) for x in (xs.min(), ys.min(), xs.max(), ys.max()))
    file = io.BytesIO()
    Image.fromarray(mask[y0 : y1 + 1, x0 : x1 + 1]).save(file, "PNG")
    text = base64.b64encode(file.getvalue()).decode()
    return {"shape_type": "mask", "points": [[x0, y0], [x1, y1]], "mask": text}


def write_panoptic(root: Path, maps: Maps, classes: Sequence[str]) -> Written:
    """Each class is a segment, whose id needs three bytes; the box is that of its pixels."""
    folder = root / "panoptic"
    folder.mkdir()
    images, annotations = [], []
    for key, (name, ids) in enumerate(maps.items()):
        if ids is None:
            continue
        height, width = ids.shape
        images.append({"id": key, "file_name": name, "height": height, "width": width})
        colors, segments = np.zeros((height, width, 3), np.uint8), []
        for i in classes_in(ids):
            color = [i + 1, 200 - i, 7]
            ys, xs = np.nonzero(ids == i)
            x, y = int(xs.min()), int(ys.min())
            box = [x, y, int(xs.max()) + 1 - x, int(ys.max()) + 1 - y]
            number = color[0] + 256 * color[1] + 65536 * color[2]
            segment = {"id": number, "category_id": 10 + i, "bbox": box, "area": len(xs)}
            segments.append(segment | {"iscrowd": 0})
            colors[ids == i] = color
        file = f"{Path(name).stem}.png"
        Image.fromarray(colors).save(folder / file)
        annotations.append({"image_id": key, "file_name": file, "segments_info": segments})
    categories = [{"id": 10 + i, "name": name, "isthing": i % 2} for i, name in enumerate(classes)]
    path = root / "panoptic.json"
    content = {"images": images, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(content))
    return str(path), {}


Writer = Callable[[Path, Maps, Sequence[str]], Written]
PNG_WRITERS: dict[str, Writer] = {
    "index": write_index,
    "values": write_values,
    "16 bits": write_16_bits,
    "colors": write_colors,
    "palette": write_palette,
    "palette colors": write_palette_colors,
}
SHAPE_WRITERS: dict[str, Writer] = {
    "polygons": coco_writer(as_polygons),
    "runs": coco_writer(as_runs),
    "compressed runs": coco_writer(as_compressed),
    "labelme": write_labelme,
}
WRITERS = PNG_WRITERS | SHAPE_WRITERS | {"panoptic": write_panoptic}
