"""Match the shapes of a source of maps with the images and the classes that are trained."""

from collections import Counter
from collections.abc import Sequence

from ..formats.image_files import ImageFiles
from ..formats.labelme_maps import IGNORED
from ..formats.shapes import PackedShapes, Row, ShapeMap, bounds_of
from ..formats.sources import ListedMap, MapSource
from ..utils.boxes import clip_box, is_far
from ..utils.errors import InputError
from ..utils.labels import IGNORE_LABEL, INVALID_LABEL
from .box_labels import MANY_EMPTY
from .image_matcher import file_of
from .map_values import UNPAINTED_KEY
from .own_labels import OwnFiles

# Kinds of notes.
CLIPPED = "shapes that reach over the border of their image, drawn up to it"
OUTSIDE = "shapes outside their image, left out"
OTHER_CLASSES = "shapes of classes that are not trained, left out"
EMPTY = "images without a shape, of which each pixel is of the class UNPAINTED"


class ShapeReader:
    """Makes the maps of a source of shapes.

    Attributes:
        drawn: the classes of the shapes and of the pixels that none covers.
    """

    def __init__(self, files: OwnFiles, images: ImageFiles, classes: Sequence[str], unpainted: int):
        """Set what the shapes are matched with; `unpainted` is that of `ShapeMap`."""
        self.files, self.images, self.notes = files, images, files.notes
        self.numbers = {name: i for i, name in enumerate(classes)} | {IGNORED: IGNORE_LABEL}
        self.unpainted = unpainted
        self.drawn: set[int] = set()

    def read(
        self, source: MapSource, listed: Sequence[tuple[ListedMap, str]]
    ) -> dict[str, tuple[str, ShapeMap]]:
        """Return image id -> label file and map, of the images that are labeled.

        Args:
            source: source of shapes.
            listed: the images that it has, with their ids.
        """
        shapes: dict[str, tuple[str, PackedShapes]] = {}
        for x, image_id in listed:
            assert isinstance(x.label, PackedShapes)
            own = self._inside(source, x, x.label, image_id)
            if image_id in shapes:  # another entry names the same image
                own = PackedShapes.pack([*shapes[image_id][1].rows, *own.rows])
            shapes[image_id] = (file_of(source, x), own)
        self._note_others(source, [x for _, x in shapes.values()])
        self.drawn |= {self.unpainted} if shapes else set()
        maps = {image_id: (path, self._map(x)) for image_id, (path, x) in shapes.items()}
        empty = [x for x, (_, drawn) in maps.items() if not set(drawn.classes) - {INVALID_LABEL}]
        if self.unpainted == IGNORE_LABEL:  # nothing is known of them
            return {x: found for x, found in maps.items() if x not in set(empty)}
        if len(empty) > MANY_EMPTY * len(maps):
            way = f"if nobody looked at them yet, set {UNPAINTED_KEY} to ''"
            self.notes.add(EMPTY, [f"{self.images.paths[x]} ({way})" for x in empty])
        return maps

    def _map(self, shapes: PackedShapes) -> ShapeMap:
        classes = bytes(self.numbers.get(name, INVALID_LABEL) for name in shapes.counts)
        self.drawn |= set(classes)
        return ShapeMap(shapes.data, classes, self.unpainted)

    def _inside(
        self, source: MapSource, listed: ListedMap, shapes: PackedShapes, image_id: str
    ) -> PackedShapes:
        """Return the shapes that are not outside their image, and note those over its border."""
        height, width = self.images.sizes[image_id]
        if shapes.bounds is None or not is_far(shapes.bounds, width, height):
            return shapes
        kept: list[Row] = []
        for row in shapes.rows:
            bounds = bounds_of(row.shape)
            if bounds and is_far(bounds, width, height):
                x0, y0, x1, y1 = clip_box(bounds, width, height)
                is_outside = x1 <= x0 or y1 <= y0
                entry = row.entry if isinstance(row.entry, str) else f"shape {row.entry}"
                image = f"{self.images.paths[image_id]} of {width}x{height} pixels"
                line = f"{file_of(source, listed)}: {entry} in {image}"
                self.notes.add(OUTSIDE if is_outside else CLIPPED, line)
                if is_outside:
                    continue
            kept.append(row)
        return PackedShapes.pack(kept)

    def _note_others(self, source: MapSource, shapes: Sequence[PackedShapes]) -> None:
        """Note classes that are left out.

        Raises:
            InputError: training has the classes of its files, and validation another one.
        """
        counts: Counter = Counter()
        for x in shapes:
            counts.update({name: n for name, n in x.counts.items() if name not in self.numbers})
        lines = [f"{source.path}: {name!r} ({n} shapes)" for name, n in counts.items()]
        if lines and not self.files.is_training and not self.files.options["SEM_SEG_CLASSES"]:
            raise InputError(
                f"{', '.join(lines)}: training does not know the class "
                "(DATASETS.COCO_STYLE.SEM_SEG_CLASSES selects)"
            )
        self.notes.add(OTHER_CLASSES, lines)
