"""What a kind of task reads from a user's label files (DATASETS.COCO_STYLE)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ..formats.image_files import ImageFiles
from ..formats.sources import Scan
from ..utils.notes import Notes

OWN_DATA = "DATASETS.COCO_STYLE"


@dataclass
class OwnFiles:
    """The label files of one task in a split of the user's data.

    Attributes:
        task: name of the task.
        paths: files and folders.
        key: config key of the paths, for messages.
        options: the keys of DATASETS.COCO_STYLE that the kind of task has, without the task's name.
        is_training: whether it is the training split.
        scan: function that reads files.
        notes: notes on the dataset.
    """

    task: str
    paths: list[str]
    key: str
    options: Mapping[str, Any]
    is_training: bool
    scan: Scan
    notes: Notes


@dataclass
class OwnLabels:
    """The labels of one task on the images of a split.

    Attributes:
        labels: image id -> the keys of its record that hold its label.
        listed: ids of the images that the files list, labeled or not; empty if the files are a
            folder with a file for each image.
        absent: names of the classes that no label has.
        broken: ids of the images whose label file cannot be read; they take no part.
        remark: what the log says beside the number of labeled images.
    """

    labels: dict[str, dict[str, Any]]
    listed: set[str] = field(default_factory=set)
    absent: list[str] = field(default_factory=list)
    broken: set[str] = field(default_factory=set)
    remark: str = ""


class OwnLabelsReader:
    """The part of a kind of task that reads labels from a user's files.

    Attributes:
        own_key: key below DATASETS.COCO_STYLE.TRAIN and VAL of the files with its labels; "": the
            kind reads none.
    """

    own_key: ClassVar[str] = ""

    @classmethod
    def own_config(cls) -> dict[str, Any]:
        """Return the keys in DATASETS.COCO_STYLE that say how its label files are read."""
        return {}

    @classmethod
    def own_classes(cls, files: OwnFiles) -> list[str]:
        """Return the classes in the label files of the training split; [] if they say none."""
        return []

    @classmethod
    def read_own_labels(
        cls, files: OwnFiles, images: ImageFiles, classes: Sequence[str]
    ) -> OwnLabels:
        """Read the labels of a split in the user's own files.

        Args:
            files: the files and how they are read.
            images: the images of the split.
            classes: names of the classes, empty for a kind without classes.

        Raises:
            InputError: the files have no form that can be read, or too many faults.
        """
        raise NotImplementedError
