"""Read the boxes in the XML files of Pascal VOC, which labelImg and many other tools write."""

from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree

from ..utils.errors import InputError, first_line
from ..utils.files import reading
from ..utils.json_values import parse_number
from .image_files import FoundFile
from .label_files import LabelFile, image_name, read_label_files
from .sources import BoxSource, Scan, pixel_size

SIDES = ("xmin", "ymin", "xmax", "ymax")
MISPLACED = "elements with a box that are no <object>, left out"


class _Builder(ElementTree.TreeBuilder):
    def doctype(self, name: str, pubid: str, system: str) -> None:
        # Entities that a DOCTYPE defines can fill the memory or name other files.
        raise ValueError("a DOCTYPE is not read")


def open_voc(path: str, files: Sequence[FoundFile], scan: Scan) -> BoxSource:
    """Return the boxes in XML files of Pascal VOC; see `voc_boxes`."""
    files = [FoundFile(x.path, image_name(x.name)) for x in files]
    return read_label_files(path, files, scan, voc_boxes)


def voc_boxes(path: str) -> dict[str, Any]:
    """Return the fields of a `LabelFile` from an XML file of Pascal VOC.

    Pixels are counted from 1 and both ends are inside, so that (1, 1, W, H) is the whole image, as
    in Detectron2's reader. A difficult object is a region that is ignored (iscrowd).

    Raises:
        InputError: the file cannot be read, or is no XML with an <annotation>.
    """
    root = _parse(path)
    label = LabelFile(path, "object", image=(root.findtext("filename") or "").strip())
    sides = [parse_number(root.findtext(f"size/{x}") or "") for x in ("height", "width")]
    label.size = pixel_size(*sides)
    for element in root:
        if element.tag == "object":
            label.num_entries += 1
            _add_object(label, element)
        elif element.find(".//bndbox") is not None:
            label.num_entries += 1
            label.fault(label.num_entries, f"is a <{element.tag}>", MISPLACED)
    return vars(label)


def _parse(path: str) -> ElementTree.Element:
    with reading(path), open(path, "rb") as file:
        content = file.read()
    try:
        root = ElementTree.XML(content, ElementTree.XMLParser(target=_Builder()))
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise InputError(f"{path}: is not valid XML ({first_line(error)})") from None
    if root.tag != "annotation":
        hint = "; CVAT's own XML is not read, its exports as COCO, YOLO and Pascal VOC are"
        expected = f"expected Pascal VOC's <annotation>, found <{root.tag[:80]}>"
        raise InputError(f"{path}: {expected}{hint if root.tag == 'annotations' else ''}")
    return root


def _add_object(label: LabelFile, element: ElementTree.Element) -> None:
    """Add the box of an <object>; those of its parts are no boxes."""
    name = (element.findtext("name") or "").strip()
    texts = [(element.findtext(f"bndbox/{side}") or "").strip() for side in SIDES]
    sides = [parse_number(text) for text in texts]
    crowd = (element.findtext("difficult") or "").strip() or "0"
    if not name:
        label.fault(label.num_entries, "has no <name>")
    elif None in sides:
        shown = ", ".join(f"{x} {text[:20]!r}" for x, text in zip(SIDES, texts, strict=True))
        label.fault(label.num_entries, f"has a <bndbox> of {shown}, expected numbers")
    elif crowd not in ("0", "1"):
        label.fault(label.num_entries, f"has <difficult> {crowd[:20]!r}, expected 0 or 1")
    else:
        x0, y0, x1, y1 = sides
        box = [x0 - 1, y0 - 1, x1, y1]  # type: ignore[operator]
        label.boxes.append([name, int(crowd), *box, label.num_entries])
