"""Write boxes in each format that the reader of the user's own data knows."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree


class Box(NamedTuple):
    """A box in corner coordinates, x0, y0, x1, y1."""

    name: str
    corners: Sequence[float]


# Name of each image -> its boxes; None: it is not labeled.
Images = Mapping[str, Sequence[Box] | None]
Size = tuple[int, int]  # height, width


def write_coco(root: Path, images: Images, classes: Sequence[str], size: Size) -> str:
    """An image that is not labeled is not listed."""
    listed, annotations = [], []
    for name, boxes in images.items():
        if boxes is not None:
            key = len(listed) + 1
            listed.append({"id": key, "file_name": name, "height": size[0], "width": size[1]})
        for label, (x0, y0, x1, y1) in boxes or ():
            entry = {"image_id": key, "category_id": classes.index(label) + 1}
            entry |= {"id": len(annotations) + 1, "bbox": [x0, y0, x1 - x0, y1 - y0]}
            annotations.append(entry)
    categories = [{"id": i, "name": name} for i, name in enumerate(classes, start=1)]
    content = {"images": listed, "annotations": annotations, "categories": categories}
    path = root / "boxes.json"
    path.write_text(json.dumps(content))
    return str(path)


def write_yolo(root: Path, images: Images, classes: Sequence[str], size: Size) -> str:
    """An image that is not labeled has no file, here and below."""
    height, width = size
    files = {
        Path(name).stem: [
            f"{classes.index(label)} {(x0 + x1) / 2 / width:.6f} {(y0 + y1) / 2 / height:.6f} "
            f"{(x1 - x0) / width:.6f} {(y1 - y0) / height:.6f}\n"
            for label, (x0, y0, x1, y1) in boxes
        ]
        for name, boxes in images.items()
        if boxes is not None
    }
    _write(root, {f"{stem}.txt": "".join(rows) for stem, rows in files.items()})
    (root / "labels" / "classes.txt").write_text("\n".join(classes) + "\n")
    return str(root / "labels")


def write_voc(root: Path, images: Images, classes: Sequence[str], size: Size) -> str:
    files = {}
    for name, boxes in images.items():
        if boxes is not None:
            content = {"filename": name, "size": {"width": size[1], "height": size[0], "depth": 3}}
            annotation = _element("annotation", content)
            for label, (x0, y0, x1, y1) in boxes:
                bounds = {"xmin": x0 + 1, "ymin": y0 + 1, "xmax": x1, "ymax": y1}
                entry = {"name": label, "difficult": 0, "bndbox": bounds}
                annotation.append(_element("object", entry))
            ElementTree.indent(annotation)
            text = ElementTree.tostring(annotation, encoding="unicode")
            files[f"{Path(name).stem}.xml"] = text
    return _write(root, files)


def _element(tag: str, content: object) -> ElementTree.Element:
    """An XML element with a text, or with an element for each item of a dict."""
    element = ElementTree.Element(tag)
    if isinstance(content, dict):
        element.extend([_element(key, value) for key, value in content.items()])
    else:
        element.text = str(content)
    return element


def write_labelme(root: Path, images: Images, classes: Sequence[str], size: Size) -> str:
    files = {}
    for name, boxes in images.items():
        if boxes is not None:
            shapes = [
                {"label": label, "points": [[x1, y0], [x0, y1]], "group_id": None, "flags": {}}
                | {"shape_type": "rectangle"}
                for label, (x0, y0, x1, y1) in boxes
            ]
            content = {"version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": name}
            content |= {"imageData": None, "imageHeight": size[0], "imageWidth": size[1]}
            files[f"{Path(name).stem}.json"] = json.dumps(content, indent=2)
    return _write(root, files)


def _write(root: Path, files: Mapping[str, str]) -> str:
    folder = root / "labels"
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    return str(folder)


WRITERS: dict[str, Callable[[Path, Images, Sequence[str], Size], str]] = {
    "coco": write_coco,
    "yolo": write_yolo,
    "voc": write_voc,
    "labelme": write_labelme,
}
