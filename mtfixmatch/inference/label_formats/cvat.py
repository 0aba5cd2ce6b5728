"""CVAT for images 1.1: boxes with their score as an attribute, and masks."""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from xml.etree.ElementTree import Element, SubElement, indent, tostring

import numpy as np

from ...tasks.auto_labels import HUMAN, LabeledImage
from ...utils.files import write_atomically
from ...utils.images import read_label_map

FILE = "annotations.xml"
SCORE, UNSURE = "score", "unsure"  # attributes of each label


def write_cvat(
    images: Sequence[LabeledImage], classes: Mapping[str, Sequence[str]], folder: str
) -> list[str]:
    """Write annotations.xml for the images of a CVAT task, which need these names.

    An ignored region is a box with the attribute `unsure`; ignored pixels have no mask.
    """
    root = Element("annotations")
    SubElement(root, "version").text = "1.1"
    labels = SubElement(SubElement(SubElement(root, "meta"), "task"), "labels")
    for name in dict.fromkeys(name for names in classes.values() for name in names):
        _add_label(labels, name)
    for number, image in enumerate(images, start=1):
        size = {"width": str(image.size[1]), "height": str(image.size[0])}
        element = SubElement(root, "image", {"id": str(number), "name": image.name} | size)
        for task, names in classes.items():
            label = image.labels[task]
            for box in label.boxes or ():
                _add_box(element, box, names)
            if label.map_file:
                source = _source(label.provenance)
                element.extend(_masks(read_label_map(label.map_file), names, source))
    indent(root)
    content = tostring(root, encoding="utf-8", xml_declaration=True)
    write_atomically(os.path.join(folder, FILE), content)
    return []


def _add_label(labels: Element, name: str) -> None:
    label = SubElement(labels, "label")
    SubElement(label, "name").text = name
    attributes = SubElement(label, "attributes")
    for attribute, kind, default in ((SCORE, "text", ""), (UNSURE, "checkbox", "false")):
        element = SubElement(attributes, "attribute")
        values = {"name": attribute, "mutable": "False", "input_type": kind}
        for key, value in {**values, "default_value": default, "values": default}.items():
            SubElement(element, key).text = value


def _source(provenance: str) -> str:
    """Return CVAT's word for who made a label."""
    return "manual" if provenance == HUMAN else "auto"


def _add_box(image: Element, box: Mapping[str, Any], names: Sequence[str]) -> None:
    corners = {
        x: f"{y:.2f}" for x, y in zip(("xtl", "ytl", "xbr", "ybr"), box["bbox"], strict=True)
    }
    label = {"label": names[box["category_id"]], "source": _source(box["provenance"])}
    element = SubElement(image, "box", {**label, "occluded": "0", **corners, "z_order": "0"})
    unsure = "true" if box["iscrowd"] else "false"
    score = str(box["score"]) if "score" in box else ""
    for name, value in ((SCORE, score), (UNSURE, unsure)):
        SubElement(element, "attribute", {"name": name}).text = value


def _masks(pixels: np.ndarray, names: Sequence[str], source: str) -> Iterator[Element]:
    """Yield the mask of each class: lengths of runs of 0 and 1 in its bounds, row by row."""
    for category, name in enumerate(names):
        mask = pixels == category
        if not mask.any():
            continue
        rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
        top, left = int(rows[0]), int(columns[0])
        part = mask[top : rows[-1] + 1, left : columns[-1] + 1]
        place = {"left": left, "top": top, "width": part.shape[1], "height": part.shape[0]}
        values = {"label": name, "source": source, "occluded": "0", "rle": run_lengths(part)}
        yield Element("mask", values | {x: str(y) for x, y in place.items()} | {"z_order": "0"})


def run_lengths(mask: np.ndarray) -> str:
    """Return the lengths of runs in the rows of a mask (H, W), the first of zeros, maybe 0."""
    flat = np.concatenate([[False], mask.ravel(), [not mask.ravel()[-1]]])
    ends = np.flatnonzero(flat[1:] != flat[:-1])
    return ", ".join(map(str, np.diff(ends, prepend=0).tolist()))
