"""Write boxes and maps as COCO instances JSON, with ids from 1."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as coco_mask


class ImageBoxes(NamedTuple):
    """The boxes of an image.

    Attributes:
        file_name: path of the image.
        size: (height, width) in pixels.
        boxes: annotations of a record: "bbox" [x0, y0, x1, y1], "category_id" and "iscrowd", and
            maybe "score" and "provenance".
    """

    file_name: str
    size: tuple[int, int]
    boxes: Sequence[Mapping[str, Any]]


def coco_boxes(images: Sequence[ImageBoxes], classes: Mapping[int, str]) -> str:
    """Return the JSON of boxes, for class id -> name; the ids of categories are one higher."""
    entries: list[dict[str, Any]] = []
    for number, image in enumerate(images, start=1):
        entries += [
            box_entry(i, number, box) for i, box in enumerate(image.boxes, start=len(entries) + 1)
        ]
    return _content([(x.file_name, x.size) for x in images], classes, entries)


def image_entry(number: int, name: str, size: tuple[int, int]) -> dict[str, Any]:
    """Return the entry of an image of a size (height, width)."""
    return {"id": number, "file_name": name, "height": size[0], "width": size[1]}


def category_entries(classes: Mapping[int, str]) -> list[dict[str, Any]]:
    """Return the categories of class id -> name; their ids are one higher."""
    return [{"id": number + 1, "name": name} for number, name in classes.items()]


def box_entry(number: int, image: int, box: Mapping[str, Any]) -> dict[str, Any]:
    """Return the annotation of a box, see `ImageBoxes`, in the image with this id.

    Its sides are not rounded, so that x + width is the right end again.
    """
    x0, y0, x1, y1 = box["bbox"]
    width, height = x1 - x0, y1 - y0
    return _entry(number, image, box, {"bbox": [x0, y0, width, height], "area": width * height})


def coco_maps(maps: Iterable[tuple[str, np.ndarray, str]], classes: Sequence[str]) -> str:
    """Return the JSON of maps as a mask (RLE) for each class.

    Args:
        maps: file name of each image, class ids of its pixels (H, W), and their provenance.
        classes: names of the classes; pixels of other ids have no mask.
    """
    entries: list[dict[str, Any]] = []
    images: list[tuple[str, tuple[int, int]]] = []
    for name, pixels, provenance in maps:
        images.append((name, (pixels.shape[0], pixels.shape[1])))
        for category in np.flatnonzero(np.bincount(pixels.ravel())[: len(classes)]).tolist():
            label = {"category_id": category, "iscrowd": 0, "provenance": provenance}
            shape = _mask(pixels == category)
            entries.append(_entry(len(entries) + 1, len(images), label, shape))
    return _content(images, dict(enumerate(classes)), entries)


def _mask(mask: np.ndarray) -> dict[str, Any]:
    runs = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {
        "segmentation": {"size": runs["size"], "counts": runs["counts"].decode()},
        "bbox": coco_mask.toBbox(runs).tolist(),
        "area": int(mask.sum()),
    }


def _entry(
    number: int, image: int, box: Mapping[str, Any], shape: Mapping[str, Any]
) -> dict[str, Any]:
    entry = {"id": number, "image_id": image, "category_id": box["category_id"] + 1, **shape}
    entry["iscrowd"] = box["iscrowd"]
    return entry | {key: box[key] for key in ("score", "provenance") if key in box}


def _content(
    images: Sequence[tuple[str, tuple[int, int]]],
    classes: Mapping[int, str],
    entries: Sequence[Mapping[str, Any]],
) -> str:
    content = {
        "images": [image_entry(i, name, size) for i, (name, size) in enumerate(images, start=1)],
        "categories": category_entries(classes),
        "annotations": entries,
    }
    return json.dumps(content, ensure_ascii=False)
