"""Files and folders with labels, whatever the labels are, before they are matched with images."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from ..utils.json_values import is_number
from .shapes import PackedShapes


class Scan(Protocol):
    """Reads files in parallel, and recalls the results of those that did not change."""

    def __call__(
        self,
        paths: Iterable[str],
        function: Callable[[str], Any],
        *,
        name: str,
        source: str,
        strict: bool = False,
    ) -> dict[str, Any]:
        """Return file -> result of a function of one path, which survives JSON.

        Where DATALOADER.SKIP_BROKEN allows it, files that cannot be read are absent, unless
        `strict`; elsewhere, they are an InputError.
        """


class Listed(Protocol):
    """An image that a source lists, with its label; a NamedTuple.

    Attributes:
        name: path of the image as the source writes it.
        size: [height, width] in pixels that the source says; None: it does not.
        file: its label file, for messages; "": the source is one file.
        other_name: another name, in case that no image has the first; "": none.
    """

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def size(self) -> list[int] | None: ...  # noqa: D102
    @property
    def file(self) -> str: ...  # noqa: D102
    @property
    def other_name(self) -> str: ...  # noqa: D102


@dataclass
class LabelSource:
    """A file or a folder with labels.

    Attributes:
        path: the file or folder, for messages.
        classes: names of its classes, in its order.
        images: the images that it lists.
        lists_images: whether it lists the images of a split; False: it has a file for each image,
            and an image without one is not listed.
        by_stem: whether the names of images lack their suffix.
        faults: kind -> a line for each entry that is faulty and left out, see `Notes`.
        num_entries: number of its entries, faulty or not.
        left_out: kind -> a line for each thing that is sound and left out all the same.
        broken: names of images whose label file cannot be read.
    """

    path: str
    classes: list[str]
    images: Sequence[Listed]
    lists_images: bool = True
    by_stem: bool = False
    faults: dict[str, list[str]] = field(default_factory=dict)
    num_entries: int = 0
    left_out: dict[str, list[str]] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)


class ListedImage(NamedTuple):
    """An image that a source lists, with its boxes.

    Attributes:
        name: path of the image as the source writes it.
        size: [height, width] in pixels that the source says; None: it does not.
        boxes: [class index, iscrowd, x0, y0, x1, y1, name or number for messages] of each box, ends
            exclusive; empty: none; None: the source says that the image is not labeled.
        file: its label file, for messages; "": the source is one file.
        other_name: another name, in case that no image has the first; "": none.
    """

    name: str
    size: list[int] | None
    boxes: list[list] | None
    file: str = ""
    other_name: str = ""


@dataclass
class BoxSource(LabelSource):
    """A file or a folder with boxes.

    Attributes:
        images: the images that it lists.
        relative: whether boxes are in shares of the image's width and height, not in pixels.
        of_all_classes: whether an image is labeled for all classes that are trained, because the
            files have no list of classes; False: for `classes`.
        entry: word in front of the number of a box, for messages.
    """

    images: list[ListedImage]
    relative: bool = False
    of_all_classes: bool = False
    entry: str = ""


class Segments(NamedTuple):
    """The segments of an image in a PNG of panoptic annotations.

    Attributes:
        path: the PNG, whose colors r + 256 g + 65536 b are ids of segments; 0: none.
        ids: id of each segment.
        classes: name of the class of each.
    """

    path: str
    ids: Sequence[int]
    classes: Sequence[str]


class ListedMap(NamedTuple):
    """An image that a source lists, with its map; see `Listed`.

    Attributes:
        label: the map; None: the image is not labeled.
    """

    name: str
    size: list[int] | None
    label: PackedShapes | Segments | None
    file: str = ""
    other_name: str = ""


@dataclass
class MapSource(LabelSource):
    """A file or a folder with maps; see `LabelSource`."""

    images: list[ListedMap]


def pixel_size(height: Any, width: Any) -> list[int] | None:
    """Return [height, width], None if one of them is absent or no number of pixels."""
    sides = [height, width]
    if all(is_number(x) and x > 0 and x == int(x) for x in sides):
        return [int(x) for x in sides]
    return None
