"""A page that shows predicted images, in one HTML file that needs no server and no network."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..tasks import Task
from .journal import Done, saved_images

TEMPLATE = Path(__file__).with_name("page.html")
PLACE = "PAGE_DATA"  # in the template, where the data are filled in
DIGITS = 2  # of the positions of boxes, in pixels


def page_parts(
    items: Sequence[Done],
    tasks: Sequence[Task],
    layers: Sequence[tuple[Task, str]],
    info: Mapping[str, Any],
) -> Iterator[str]:
    """Yield the page in parts.

    Args:
        items: the finished images and videos, in their order.
        tasks: the tasks of the network.
        layers: tasks, each with the name of a layer that is written for each image.
        info: what identifies the network and the options.
    """
    before, after = TEMPLATE.read_text(encoding="utf-8").split(PLACE)
    named = {
        task.name: [
            {"name": name, "color": color}
            for name, color in zip(task.class_names, task.colors, strict=True)
        ]
        for task in tasks
    }
    shown = [
        {"task": task.name, "name": name, "hidden": name in task.saved_on_request}
        for task, name in layers
    ]
    head = {"info": info, "classes": named, "layers": shown}
    yield before + _as_script(head)[:-1]
    for key, is_video in (("videos", True), ("images", False)):
        yield f',\n"{key}": ['
        chosen = (done for done in items if done.is_video == is_video)
        entries = map(_video, chosen) if is_video else map(_image, chosen)
        for number, entry in enumerate(entries):
            yield f"{',' if number else ''}\n{_as_script(entry)}"
        yield "]"
    yield "}" + after


def _video(done: Done) -> dict[str, Any]:
    return {"name": done.name, "out": done.out}


def _image(done: Done) -> dict[str, Any]:
    (image,) = saved_images([done])
    records = {task: _rounded(record) for task, record in image.records.items()}
    height, width = image.size
    return {**_video(done), "width": width, "height": height, "records": records}


def _rounded(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record with less digits, which are most of a page."""
    boxes = [
        [class_id, round(score, 4), *(round(x, DIGITS) for x in box)]
        for class_id, score, *box in record.get("boxes", ())
    ]
    return {**record, "boxes": boxes}


def _as_script(value: Any) -> str:
    """Return JSON that cannot end the script element it stands in."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
