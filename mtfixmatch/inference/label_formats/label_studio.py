"""Label Studio: a task for each image, with predictions and annotations."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote
from xml.etree.ElementTree import Element, SubElement, indent, tostring

import numpy as np

from ...tasks.auto_labels import HUMAN, AutoLabel, LabeledImage
from ...utils.files import write_atomically
from ...utils.images import read_label_map
from .labels import has_boxes, has_maps

TASKS, INTERFACE = "tasks.json", "interface.xml"
# Label Studio serves local files below a root, which here is "/".
ADDRESS = "/data/local-files/?d="
IMAGE = "image"
# Bits of a value in a mask, and of the length of a run, of which the fewest are taken.
VALUE_BITS, LENGTH_BITS = 8, (3, 4, 8, 16)
CHANNELS = 4  # of the picture of a mask, which are equal

Regions = list[tuple[str, dict[str, Any]]]  # provenance and region


def write_label_studio(
    images: Sequence[LabeledImage], classes: Mapping[str, Sequence[str]], folder: str
) -> list[str]:
    """Write tasks.json and the labeling interface.

    What the network has labeled is a prediction, with the score of each box; what a human has
    labeled is an annotation. Ignored pixels are in no mask.
    """
    entries = [_entry(number, x, classes) for number, x in enumerate(images, start=1)]
    content = json.dumps(entries, ensure_ascii=False)
    write_atomically(os.path.join(folder, TASKS), content)
    write_atomically(os.path.join(folder, INTERFACE), _interface(images, classes))
    return []


def _entry(
    number: int, image: LabeledImage, classes: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    regions: Regions = []
    for task, names in classes.items():
        label = image.labels[task]
        regions += [*_boxes(label, task, names, image.size), *_masks(label, task, names)]
    height, width = image.size
    size = {"original_width": width, "original_height": height, "image_rotation": 0}
    for i, (_, region) in enumerate(regions, start=1):
        region |= {"id": str(i), "to_name": IMAGE, **size}
    humans = [region for source, region in regions if source == HUMAN]
    networks = [(source, region) for source, region in regions if source != HUMAN]
    return {
        "id": number,
        "data": {IMAGE: ADDRESS + quote(image.path.lstrip("/"))},
        "annotations": [{"result": humans}] if humans else [],
        "predictions": [_prediction(networks)] if networks else [],
    }


def _prediction(regions: Regions) -> dict[str, Any]:
    """Return a prediction, whose score is the least one of its boxes."""
    scores = [region["score"] for _, region in regions if "score" in region]
    version = {"model_version": regions[0][0]} | ({"score": min(scores)} if scores else {})
    return version | {"result": [region for _, region in regions]}


def _boxes(
    label: AutoLabel, task: str, names: Sequence[str], size: tuple[int, int]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the regions of boxes, whose places are in percent of the image."""
    height, width = size
    for box in label.boxes or ():
        x0, y0, x1, y1 = box["bbox"]
        value = {
            "x": 100 * x0 / width,
            "y": 100 * y0 / height,
            "width": 100 * (x1 - x0) / width,
            "height": 100 * (y1 - y0) / height,
            "rotation": 0,
            "rectanglelabels": [names[box["category_id"]]],
        }
        region = {"type": "rectanglelabels", "from_name": task, "value": value}
        if "score" in box:
            region["score"] = box["score"]
        if box["iscrowd"]:
            region["meta"] = {"text": ["unsure"]}
        yield box["provenance"], region


def _masks(
    label: AutoLabel, task: str, names: Sequence[str]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the mask of each class in a map."""
    pixels = read_label_map(label.map_file) if label.map_file else np.zeros((0, 0), np.uint8)
    for category in np.flatnonzero(np.bincount(pixels.ravel())[: len(names)]).tolist():
        value = {"format": "rle", "rle": brush_runs(pixels == category)}
        value["brushlabels"] = [names[category]]
        yield label.provenance, {"type": "brushlabels", "from_name": task, "value": value}


def brush_runs(mask: np.ndarray) -> list[int]:
    """Return the bytes of a mask (H, W): runs of 0 and 255 in the four channels of a picture."""
    flat = mask.ravel()
    starts = np.flatnonzero(np.append(True, flat[1:] != flat[:-1]))
    lengths = np.diff(starts, append=flat.size) * CHANNELS
    bits = [f"{flat.size * CHANNELS:032b}{VALUE_BITS - 1:05b}"]
    bits += [f"{x - 1:04b}" for x in LENGTH_BITS]
    for value, length in zip(flat[starts].tolist(), lengths.tolist(), strict=True):
        bits += _run(255 * value, length)
    text = "".join(bits)
    text += "0" * (-len(text) % 8)
    return [int(text[i : i + 8], 2) for i in range(0, len(text), 8)]


def _run(value: int, length: int) -> Iterator[str]:
    """Yield the bits of a run, in several parts if it is long."""
    while length:
        part = min(length, 1 << LENGTH_BITS[-1])
        index = next(i for i, bits in enumerate(LENGTH_BITS) if part <= 1 << bits)
        yield f"1{index:02b}{part - 1:0{LENGTH_BITS[index]}b}{value:0{VALUE_BITS}b}"
        length -= part


def _interface(images: Sequence[LabeledImage], classes: Mapping[str, Sequence[str]]) -> str:
    view = Element("View")
    SubElement(view, "Image", {"name": IMAGE, "value": f"${IMAGE}"})
    for task, names in classes.items():
        for tag, is_used in (("RectangleLabels", has_boxes), ("BrushLabels", has_maps)):
            if is_used(task, images):
                labels = SubElement(view, tag, {"name": task, "toName": IMAGE})
                for name in names:
                    SubElement(labels, "Label", {"value": name})
    indent(view)
    return tostring(view, encoding="unicode") + "\n"
