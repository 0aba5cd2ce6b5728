"""Label images: what a human has labeled is copied, the network adds what is missing."""

import os
from collections.abc import Mapping, Sequence

from detectron2.config import CfgNode
from torch import nn

from ..data.records import Record
from ..formats.image_files import expand
from ..tasks import Task
from ..tasks.auto_labels import LabeledImage, Thresholds, WrittenLabels
from ..utils.errors import InputError
from ..utils.files import write_atomically
from .results import network_results

IMAGES = "images.txt"


class ImageLabeler:
    """Labels the images of a split for all tasks, in a folder."""

    def __init__(
        self,
        tasks: Sequence[Task],
        thresholds: Mapping[str, Thresholds],
        folder: str,
        provenance: str,
    ):
        """Take the thresholds of each task; see `Task.auto_labeler`."""
        self.tasks, self.folder = tasks, folder
        self.labelers = {
            task.name: task.auto_labeler(thresholds[task.name], folder, provenance)
            for task in tasks
        }

    def copy(self, records: Sequence[Record]) -> list[LabeledImage]:
        """Return the images with their human labels alone."""
        names = image_names(records)
        return [self._image(record, None, names) for record in records]

    def label(
        self, model: nn.Module, cfg: CfgNode, records: Sequence[Record]
    ) -> tuple[list[LabeledImage], list[str]]:
        """Return the labeled images, and a line on those that cannot be read, which are left out.

        The network sees the images that lack a label, or have a partial one.
        """
        names, images = image_names(records), []
        broken: list[str] = []
        lacking = [record for record in records if self._lacks_label(record)]
        results = network_results(model, cfg, lacking, "labeling")
        for record in records:
            result = next(results) if self._lacks_label(record) else None
            if isinstance(result, InputError):
                broken.append(str(result))
            else:
                images.append(self._image(record, result, names))
        if broken:
            return images, [f"images that cannot be read, left out: {len(broken)} ({broken[0]})"]
        return images, []

    def write(self, images: Sequence[LabeledImage]) -> dict[str, WrittenLabels]:
        """Write the list of the images, and the label files of each task."""
        paths = "".join(f"{image.path}\n" for image in images)
        write_atomically(os.path.join(self.folder, IMAGES), paths)
        return {name: labeler.write(images) for name, labeler in self.labelers.items()}

    def _lacks_label(self, record: Record) -> bool:
        return any(t.label_key not in record or t.is_partial(record) for t in self.tasks)

    def _image(self, record: Record, result: dict | None, names: Mapping[str, str]) -> LabeledImage:
        path = os.path.abspath(record["file_name"])
        labels = {
            task.name: self.labelers[task.name].label(record, result, names[path])
            for task in self.tasks
        }
        size = (record["height"], record["width"])
        return LabeledImage(record=record, path=path, name=names[path], size=size, labels=labels)


def image_names(records: Sequence[Record]) -> dict[str, str]:
    """Return absolute path of each image -> its path below the folder that all of them share.

    Raises:
        InputError: a list of files cannot hold a path.
    """
    paths = [os.path.abspath(record["file_name"]) for record in records]
    for path in paths:
        if "\n" in path or "\\" in path or expand(path.strip()) != path:
            what = "has a $, a backslash, a line break, or a space at its end"
            raise InputError(f"{path!r} {what}: rename it, a list of files cannot hold it")
    top = os.path.commonpath([os.path.dirname(path) for path in paths])
    return {path: os.path.relpath(path, top).replace(os.sep, "/") for path in paths}


def label_counts(tasks: Sequence[Task], images: Sequence[LabeledImage]) -> str:
    """Return a line for each task: how many images have a label, and how many a human's."""
    lines = []
    for task in tasks:
        labels = [image.labels[task.name] for image in images if image.labels[task.name].keys]
        human = sum(task.label_key in image.record for image in images)
        line = f"{task.name}: {len(labels)} of {len(images)} images are labeled, {human} by humans"
        boxes = [box for label in labels for box in label.boxes or () if "score" in box]
        if boxes:
            unsure = sum(box["iscrowd"] for box in boxes)
            line += f"; the network adds {len(boxes) - unsure} objects, {unsure} ignored regions"
        lines.append(line)
    return "\n".join(lines)
