"""What a folder of images and labels holds, without a config: splits, formats, classes."""

import glob
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from tabulate import tabulate

from ..data.datasets.own_data import read_images
from ..data.datasets.pixel_notes import small_range
from ..data.datasets.scan import FileScanner
from ..formats.image_files import ImageFiles, expand
from ..tasks.own_labels import OWN_DATA
from ..utils.errors import InputError, InputErrors
from ..utils.files import write_atomically
from ..utils.images import RANGE_16BIT
from ..utils.notes import Notes
from .agree import agreeing_labels, unknown_classes
from .label_guess import BOXES, EXPECTED, MAPS, Labels, best_labels, recognize
from .layouts import (
    TRAIN,
    VAL,
    Layout,
    find_layout,
    json_files,
    label_parts,
    label_places,
    named_like_maps,
    split_of,
    voc_lists,
)

OPTIONS = {TRAIN: "--labels", VAL: "--val-labels"}
MIXED = 0.25  # share of images named like maps from which on they are taken for maps


@dataclass
class SplitGuess:
    """The images and labels of a split.

    Attributes:
        sources: value of DATASETS.COCO_STYLE.TRAIN.IMAGES or VAL.IMAGES.
        images: the images.
        headers: what `read_image_header` returns for each file.
        labels: the labels of all tasks.
        broken: file -> message, for images that cannot be read.
    """

    sources: list[str]
    images: ImageFiles
    headers: dict[str, list[int]]
    labels: list[Labels] = field(default_factory=list)
    broken: dict[str, str] = field(default_factory=dict)

    def of(self, key: str) -> list[Labels]:
        """Return the labels of a task, by its key BOXES or MAPS."""
        return [x for x in self.labels if x.key == key]

    def folders(self) -> list[str]:
        """Return the folders of the images."""
        paths = [os.path.dirname(os.path.abspath(x)) for x in self.images.paths.values()]
        return [x for x in self.sources if os.path.isdir(x)] or [os.path.commonpath(paths)]

    def labeled(self, key: str) -> set[str]:
        """Return the ids of the images that are labeled for a task."""
        return set().union(*(x.labeled for x in self.of(key)))

    def unreadable(self) -> list[str]:
        """Return a message for each image and each file of labels that cannot be read."""
        broken = [self.broken, *(x.broken for x in self.labels)]
        return list({file: text for part in broken for file, text in part.items()}.values())


@dataclass
class Guess:
    """What was found, and what was not used.

    Attributes:
        train: the training split.
        val: validation; None: no images or no labels of it were found.
        shares_images: whether both splits have the same images, and labels say which are whose.
        ignored: path -> why it is not used.
        remarks: sentences on what the user should know or decide.
        range_16bit: INPUT.RANGE_16BIT, where the default would make images dark.
    """

    train: SplitGuess
    val: SplitGuess | None = None
    shares_images: bool = False
    ignored: dict[str, str] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    range_16bit: tuple[int, int] | None = None

    def train_images(self) -> set[str]:
        """Return the ids of the training images, without those that validation lists."""
        return self.split_images(self.train)

    def split_images(self, split: SplitGuess) -> set[str]:
        """Return the ids of the images of a split; of shared ones, validation has the labeled."""
        images = set(split.images.sizes)  # of those that can be read
        if not self.val or not self.shares_images:
            return images
        held_out = self.val.labeled(BOXES) | self.val.labeled(MAPS)
        return held_out if split is self.val else images - held_out

    def ignore(self, path: str, why: str) -> None:
        """Remember why a path is not used."""
        self.ignored[path] = why


def guess_data(
    images: Sequence[str],
    labels: Sequence[str] = (),
    val_images: Sequence[str] = (),
    val_labels: Sequence[str] = (),
    *,
    output: str,
    cache_dir: str = "",
) -> Guess:
    """Find out what the images and labels of a dataset are.

    Args:
        images: folders, globs, text files with paths, or the data.yaml of YOLO. Of one folder, the
            training part is taken if it has one.
        labels: files and folders with labels of the training images; empty: those at the usual
            places.
        val_images: images of validation; empty: found by the usual names.
        val_labels: their labels; empty: those at the usual places.
        output: existing folder, for lists of images.
        cache_dir: folder in which results of reading are kept, DATASETS.CACHE_DIR; "": the default.

    Raises:
        InputError: files do not exist, or no labels were recognized.
    """
    _check_exist("--images", images)
    _check_exist("--val-images", val_images)
    scan = FileScanner(expand(cache_dir or "~/.cache/mtfixmatch"), notes=Notes())
    layout = _find_layout(images, output)
    train = _read_images(layout.train, TRAIN, scan)
    guess = Guess(train)
    for folder in layout.unused:
        guess.ignore(folder, "other images: as an entry of IMAGES they are trained on as unlabeled")
    tops = [_absolute(x) for x in images]
    finder = _Finder(guess, scan, layout.boxes, tops)
    finder.add(train, TRAIN, labels)
    if not train.labels:
        raise InputError(_nothing(guess, labels or dict.fromkeys([*layout.train, *tops])))
    guess.val = _validation(finder, layout, labels, val_images, val_labels)
    guess.range_16bit = small_range(train.headers, RANGE_16BIT, scan, train.images.sources)
    for split in filter(None, (train, guess.val)):
        guess.remarks += [line for x in split.labels for line in (*x.remarks, *_beside_what(x))]
    guess.remarks += _unreadable(guess)
    return guess


def _unreadable(guess: Guess) -> list[str]:
    """Return remarks on files that cannot be read."""
    notes = Notes()
    what = "files of the training that cannot be read, left out with their images"
    notes.add(f"{what} (DATALOADER.SKIP_BROKEN)", guess.train.unreadable())
    what = "files of validation that cannot be read, but must be: repair or remove them"
    notes.add(what, guess.val.unreadable() if guess.val else [])
    return notes.messages()


def _check_exist(option: str, paths: Sequence[str]) -> None:
    for path in paths:
        if not os.path.exists(expand(path)) and not glob.glob(expand(path), recursive=True):
            raise InputError(f"{option}: there is no file or folder {path!r}")


def _beside_what(labels: Labels) -> list[str]:
    """Return a remark on labels that may be those of other images."""
    text = "lies beside the images and has their names; if it is for others, name yours with"
    text += " --labels or --val-labels"
    return [f"{labels.path}: {text}"] if labels.is_beside else []


def _find_layout(images: Sequence[str], output: str) -> Layout:
    """Return where the images are; the lists of Pascal VOC are written as lists of paths."""
    if len(images) > 1:
        return Layout([_absolute(x) for x in images], [])
    layout, top = find_layout(images[0]), _absolute(images[0])
    lists = voc_lists(top) if os.path.isdir(top) and not layout.val else {}
    if not lists or not all(lists.values()):
        return layout
    files = {split: os.path.abspath(f"{output}/images_{split}.txt") for split in lists}
    for split, paths in lists.items():
        write_atomically(files[split], "".join(f"{path}\n" for path in paths))
    return layout._replace(train=[files[TRAIN]], val=[files[VAL]])


def _absolute(path: str) -> str:
    return os.path.abspath(expand(path))


def _read_images(sources: Sequence[str], split: str, scan: FileScanner) -> SplitGuess:
    broken: dict[str, str] = {}
    key = f"{OWN_DATA}.{split.upper()}.IMAGES"
    images, headers = read_images(sources, key, replace(scan, broken=broken))
    if not headers:
        raise InputErrors(*broken.values())
    like_maps = named_like_maps(images.names.values())
    if len(like_maps) > MIXED * len(images.names):
        shown = f"{len(like_maps)} of {len(images.names)} images are named like maps of others"
        hint = "put the maps into a folder of their own, or name the images by a glob or a list"
        hint += f", and the maps by {OPTIONS[split]}"
        raise InputError(f"{', '.join(sources)}: {shown}, such as {like_maps[0]}: {hint}")
    return SplitGuess(list(sources), images, headers, broken=broken)


@dataclass
class _Finder:
    """Finds the labels of the splits.

    Attributes:
        guess: where it is remembered what is not used.
        scan: scanner that reads files.
        boxes: the data.yaml of YOLO that says where boxes are; "": none.
        tops: what the user named as images.
    """

    guess: Guess
    scan: FileScanner
    boxes: str
    tops: Sequence[str]

    def add(
        self, split: SplitGuess, name: str, given: Sequence[str], more: Sequence[str] = ()
    ) -> None:
        """Add the labels of a split: those given, else those in `more` or at the usual places."""
        if given:
            found = [x for path in given for x in self._read_given(_absolute(path), split, name)]
        else:
            found = self._look_around(split, name, more)
            if self.boxes in split.sources:
                found = [x for x in found if x.key != BOXES]
                found += recognize(self.boxes, split.images, self.scan, f"{name.upper()}.BOXES")
        for key in (BOXES, MAPS):
            split.labels += best_labels([x for x in found if x.key == key], self.guess.ignore)

    def _look_around(self, split: SplitGuess, name: str, more: Sequence[str]) -> list[Labels]:
        """Return the labels at the usual places, those beside `tops` if there are no others."""
        tops = [x if os.path.isdir(x) else os.path.dirname(x) for x in self.tops]
        pairs = [label_places(x, y, name) for x in split.folders() for y in tops]
        inside = [*more, *(x for places, _ in pairs for x in places)]
        beside = [x for _, places in pairs for x in places]
        if name == VAL and self.guess.shares_images:
            # Only labels that are named so are those of validation.
            inside, beside = [x for x in inside if split_of(x) == VAL], []
        if not (found := self._search(inside, split, name)):
            found = [replace(x, is_beside=True) for x in self._search(beside, split, name)]
        return found

    def _read_given(self, path: str, split: SplitGuess, name: str) -> list[Labels]:
        """Return the labels in a path that the user named."""
        option = OPTIONS[name]
        if not os.path.exists(path) and not glob.has_magic(path):
            raise InputError(f"{option}: there is no file or folder {path!r}")
        ignored = dict(self.guess.ignored)
        places = label_parts(path, name) if os.path.isdir(path) else [path]
        found = self._search(places, split, name)
        if not found:
            why = {x: y for x, y in self.guess.ignored.items() if x not in ignored}
            reasons = [f"{x}: {y}" for x, y in why.items()] or [f"expected {EXPECTED}"]
            raise InputError(f"{option} {path}: no labels were recognized; {reasons[0]}")
        return found

    def _search(self, places: Sequence[str], split: SplitGuess, name: str) -> list[Labels]:
        """Return the labels in files and folders; those that are not recognized are ignored."""
        found: list[Labels] = []
        queue, seen = list(places), set()
        while queue:
            place = queue.pop(0)
            if os.path.realpath(place) in seen:
                continue
            seen.add(os.path.realpath(place))
            try:
                found += recognize(place, split.images, self.scan, OPTIONS[name])
            except InputError as error:
                files = json_files(place, name) if os.path.isdir(place) else []
                queue += files
                if not files:
                    self.guess.ignore(place, str(error).removeprefix(f"{place}: "))
        return found


def _validation(
    finder: _Finder,
    layout: Layout,
    labels: Sequence[str],
    val_images: Sequence[str],
    val_labels: Sequence[str],
) -> SplitGuess | None:
    """Return validation if it has images of its own, or label files that list some images."""
    guess, sources = finder.guess, [_absolute(x) for x in val_images] or layout.val
    guess.shares_images = not sources
    if not sources and layout.boxes and not val_labels:  # its data.yaml has no validation
        return None
    split = _read_images(sources or layout.train, VAL, finder.scan)
    finder.tops = [*finder.tops, *map(_absolute, val_images)]
    finder.add(split, VAL, val_labels, _beside(labels))
    train = guess.train.labels
    split.labels = [x for x in split.labels if any(x.key == y.key for y in train)]
    if not sources:
        split.labels = [x for x in split.labels if all(x.path != y.path for y in train)]
    split.labels = agreeing_labels(train, split.labels, guess.ignore)
    if not split.labels:
        if sources:
            what = "images of validation, but no labels of them for what is trained were found"
            guess.ignore(", ".join(sources), what)
        return None
    if others := unknown_classes(train, split.labels):
        text = "classes of validation that the training lacks are left out"
        guess.remarks.append(f"{text}: {', '.join(others)}")
    return split


def _beside(labels: Sequence[str]) -> list[str]:
    """Return the parts for validation in and beside given folders of labels."""
    folders = [y for x in map(_absolute, labels) for y in (x, os.path.dirname(x))]
    parts = [y for x in folders if os.path.isdir(x) for y in label_parts(x, VAL)]
    return [x for x in parts if split_of(x) == VAL]


def _nothing(guess: Guess, places: Iterable[str]) -> str:
    """Return the error of images without labels."""
    seen = "".join(f"; {path}: {why}" for path, why in list(guess.ignored.items())[:3])
    where = f"{', '.join(places)}: no labels were recognized inside or beside"
    return f"{where}: expected {EXPECTED}; --labels names other places{seen}"


def seen_table(guess: Guess) -> str:
    """Return what was seen as Markdown: images, labels, what was ignored, what to decide."""
    rows = []
    splits = {"training": guess.train} | ({"validation": guess.val} if guess.val else {})
    for name, split in splits.items():
        sizes = Counter((w, h) for h, w in split.images.sizes.values())
        ((width, height), _), *others = sizes.most_common(2)
        size = f"{width} x {height}" + (" and others" if others else "")
        count = len(guess.split_images(split))
        rows += [[name, x, "images", count, "", size] for x in split.sources[:1]]
        rows += [[name, x, "images", "", "", ""] for x in split.sources[1:]]
        for x in split.labels:
            classes = ", ".join(x.classes[:4]) + (", ..." if len(x.classes) > 4 else "")
            shown = f"{len(x.classes)}: {classes}"
            rows.append([name, x.path, f"{x.key}: {x.format}", "", len(x.labeled), shown])
    headers = ["", "path", "what", "images", "labeled", "sizes or classes"]
    parts = ["# What was seen", tabulate(rows, headers, tablefmt="pipe", disable_numparse=True)]
    parts.append("\n".join(f"- {text}" for text in dict.fromkeys(guess.remarks)))
    parts.append("\n".join(f"- not used: {path}: {why}" for path, why in guess.ignored.items()))
    return "\n\n".join(filter(None, parts))
