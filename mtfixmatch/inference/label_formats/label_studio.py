"""Label Studio: a task for each image, with predictions and annotations of boxes."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from ...tasks.auto_labels import HUMAN, LabeledImage
from ...utils.files import write_atomically
from .labels import has_boxes

TASKS, INTERFACE = "tasks.json", "interface.xml"
# Label Studio serves local files below a root, which here is "/".
ADDRESS = "/data/local-files/?d="
IMAGE = "image"


def write_label_studio(
    images: Sequence[LabeledImage], classes: Mapping[str, Sequence[str]], folder: str
) -> list[str]:
    """Write tasks.json and the labeling interface.

    Boxes of the network are predictions with their score, those of humans annotations.
    """
    tasks = [name for name in classes if has_boxes(name, images)]
    entries = [_entry(number, x, tasks, classes) for number, x in enumerate(images, start=1)]
    content = json.dumps(entries, ensure_ascii=False)
    write_atomically(os.path.join(folder, TASKS), content)
    write_atomically(os.path.join(folder, INTERFACE), _interface(tasks, classes))
    return [f"{name}: maps are left out" for name in classes if name not in tasks]


def _entry(
    number: int, image: LabeledImage, tasks: Sequence[str], classes: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    boxes = [(task, box) for task in tasks for box in image.labels[task].boxes or ()]
    humans = [x for x in boxes if x[1]["provenance"] == HUMAN]
    networks = [x for x in boxes if x[1]["provenance"] != HUMAN]
    entry: dict[str, Any] = {
        "id": number,
        "data": {IMAGE: ADDRESS + quote(image.path.lstrip("/"))},
        "annotations": [],
        "predictions": [],
    }
    if humans:
        entry["annotations"] = [{"result": list(_regions(humans, image, classes))}]
    if networks:
        prediction = {
            "model_version": networks[0][1]["provenance"],
            "score": min(box["score"] for _, box in networks),
            "result": list(_regions(networks, image, classes)),
        }
        entry["predictions"] = [prediction]
    return entry


def _regions(
    boxes: Sequence[tuple[str, Mapping[str, Any]]],
    image: LabeledImage,
    classes: Mapping[str, Sequence[str]],
) -> Iterator[dict[str, Any]]:
    """Yield the regions of boxes, whose places are in percent of the image."""
    height, width = image.size
    for number, (task, box) in enumerate(boxes, start=1):
        x0, y0, x1, y1 = box["bbox"]
        region = {
            "id": str(number),
            "type": "rectanglelabels",
            "from_name": task,
            "to_name": IMAGE,
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "value": {
                "x": 100 * x0 / width,
                "y": 100 * y0 / height,
                "width": 100 * (x1 - x0) / width,
                "height": 100 * (y1 - y0) / height,
                "rotation": 0,
                "rectanglelabels": [classes[task][box["category_id"]]],
            },
        }
        if "score" in box:
            region["score"] = box["score"]
        if box["iscrowd"]:
            region["meta"] = {"text": ["unsure"]}
        yield region


def _interface(tasks: Sequence[str], classes: Mapping[str, Sequence[str]]) -> str:
    view = Element("View")
    SubElement(view, "Image", {"name": IMAGE, "value": f"${IMAGE}"})
    for task in tasks:
        labels = SubElement(view, "RectangleLabels", {"name": task, "toName": IMAGE})
        for name in classes[task]:
            SubElement(labels, "Label", {"value": name})
    indent(view)
    return tostring(view, encoding="unicode") + "\n"
