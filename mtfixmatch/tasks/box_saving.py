"""Predicted boxes as a file in COCO's format."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from ..formats.coco_writer import box_entry, category_entries, image_entry
from .saving import SavedImage, SavedResults


class SavedBoxes(SavedResults):
    """The part of a detection task that writes boxes to files."""

    name: str
    class_names: list[str]
    result_key: str
    saved_list = "boxes"

    def record(self, result: dict[str, Any], target: Any, threshold: float) -> dict[str, Any]:
        """See base class; the boxes are in the order of the network."""
        instances = result[self.result_key].to("cpu")
        kept = instances[instances.scores > threshold]
        columns = kept.pred_classes, kept.scores, kept.pred_boxes.tensor
        rows = zip(*(column.tolist() for column in columns), strict=True)
        return {"boxes": [[class_id, score, *box] for class_id, score, box in rows]}

    def list_parts(
        self, images: Callable[[], Iterable[SavedImage]], info: Mapping[str, Any]
    ) -> Iterator[str]:
        """Yield a COCO file whose annotations have scores; all of its ids start at 1."""
        categories = category_entries(dict(enumerate(self.class_names)))
        yield f'{{"info": {json.dumps(info)},\n"categories": {json.dumps(categories)},\n"images": ['
        yield from _lines(_images(images()))
        yield '],\n"annotations": ['
        yield from _lines(_annotations(images(), self.name))
        yield "]}\n"


def _lines(entries: Iterable[dict[str, Any]]) -> Iterator[str]:
    """Yield the entries of a JSON list, one in each line."""
    for number, entry in enumerate(entries):
        yield f"{',' if number else ''}\n{json.dumps(entry, ensure_ascii=False)}"


def _images(images: Iterable[SavedImage]) -> Iterator[dict[str, Any]]:
    for number, image in enumerate(images, start=1):
        entry = image_entry(number, image.file_name, image.size)
        yield {**entry, "video": image.video, "frame": image.frame} if image.video else entry


def _annotations(images: Iterable[SavedImage], task: str) -> Iterator[dict[str, Any]]:
    count = 0
    for number, image in enumerate(images, start=1):
        for class_id, score, *box in image.records[task]["boxes"]:
            count += 1
            label = {"category_id": class_id, "iscrowd": 0, "bbox": box, "score": score}
            yield box_entry(count, number, label)
