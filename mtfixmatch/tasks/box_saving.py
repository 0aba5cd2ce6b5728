"""Predicted boxes as a file in COCO's format."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

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
        categories = [{"id": i, "name": x} for i, x in enumerate(self.class_names, start=1)]
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
        height, width = image.size
        entry = {"id": number, "file_name": image.file_name, "height": height, "width": width}
        yield {**entry, "video": image.video, "frame": image.frame} if image.video else entry


def _annotations(images: Iterable[SavedImage], task: str) -> Iterator[dict[str, Any]]:
    """Yield annotations; sides are not rounded, so that x + width is the right end again."""
    count = 0
    for number, image in enumerate(images, start=1):
        for class_id, score, x0, y0, x1, y1 in image.records[task]["boxes"]:
            count += 1
            yield {
                "id": count,
                "image_id": number,
                "category_id": class_id + 1,
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "area": (x1 - x0) * (y1 - y0),
                "iscrowd": 0,
                "score": score,
            }
