"""Find image files and label files, and the image that a name in a label file means."""

import difflib
import glob
import os
import posixpath
import unicodedata
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from ..utils.errors import InputError
from ..utils.files import note_read, reading
from ..utils.notes import Notes
from .data_yaml import YAML_SUFFIXES, split_images

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
# Files beside images that are no images: labels, and what tools leave there.
OTHER_SUFFIXES = (".txt", ".json", ".xml", ".yaml", ".yml", ".csv", ".md", ".cache", ".npy", ".db")

UNREAD = "files of a suffix that is not read"
MISSING = "files that a list names but that do not exist, left out"
REPEATED = "file names that several folders have: labels belong to the image of the first folder"


EXACT = 1 << 20  # agreement of a name with itself, above any number of folders


class FoundFile(NamedTuple):
    """A file below a folder, or in a list of files.

    Attributes:
        path: path to open it.
        name: path relative to its folder, with "/".
    """

    path: str
    name: str


def expand(path: str) -> str:
    """Return a path with ~ and $VAR replaced."""
    return os.path.expanduser(os.path.expandvars(path))


def find_files(
    sources: Sequence[str], suffixes: Sequence[str], key: str, notes: Notes
) -> list[list[FoundFile]]:
    """Find the files of each source: a folder, a glob, a file, or a text file with paths.

    Hidden files and folders are passed over, and each real folder is walked once.

    Raises:
        InputError: a source does not exist, or holds no file of these suffixes.
    """
    seen: set[str] = set()
    return [_find(expand(source), suffixes, key, notes, seen) for source in sources]


def _find(
    source: str, suffixes: Sequence[str], key: str, notes: Notes, seen: set[str]
) -> list[FoundFile]:
    missing: list[str] = []
    files = files_of(source, key, seen, missing)
    notes.check_share(f"{key}: {source}", MISSING, missing, len(files) + len(missing))
    unread = [x.path for x in files if not x.name.lower().endswith((*suffixes, *OTHER_SUFFIXES))]
    notes.add(f"{UNREAD} in {key}", unread)
    kept = [x for x in files if x.name.lower().endswith(tuple(suffixes))]
    if not kept:
        raise InputError(f"{key}: no file in {source} ends in {', '.join(suffixes)}")
    return kept


def files_of(
    source: str, key: str, seen: set[str] | None = None, missing: list[str] | None = None
) -> list[FoundFile]:
    """Return all files of a source, see `find_files`; real folders in `seen` are passed over.

    Args:
        source: folder, glob, file or text file with paths.
        key: config key of the source, for messages.
        seen: real folders that were walked, extended by those of this source.
        missing: takes the paths in a text file that do not exist; None: they are an error.

    Raises:
        InputError: the source does not exist.
    """
    seen = set() if seen is None else seen
    files: list[FoundFile] = []
    for place in _places(source, key, missing):
        base = fixed_part(source) if place != source else place
        walked = _walk(place, seen) if os.path.isdir(place) else [place]
        folder = base if os.path.isdir(base) else os.path.dirname(base)
        files += [FoundFile(x, _relative(x, folder)) for x in walked]
    return files


def _relative(path: str, folder: str) -> str:
    """Return the path below a folder, with "/"."""
    start = os.path.join(folder, "")
    # `relpath` takes seconds for a hundred thousand files.
    name = path.removeprefix(start) if path.startswith(start) else os.path.relpath(path, folder)
    return name.replace(os.sep, "/")


def _places(source: str, key: str, missing: list[str] | None) -> list[str]:
    """Return the existing files and folders that a source means."""
    if source.lower().endswith(".txt") and os.path.isfile(source):
        return _listed_paths(source, key, missing)
    if os.path.exists(source):
        return [source]
    places = sorted(glob.glob(source, recursive=True))
    if not places:
        what = "no file matches" if glob.has_magic(source) else "there is no folder"
        raise InputError(f"{key}: {what} {source!r}")
    return places


def _listed_paths(source: str, key: str, missing: list[str] | None) -> list[str]:
    """Return the paths in a text file, one in each line, relative to its folder or to here."""
    with reading(source), open(source, encoding="utf-8-sig", errors="replace") as file:
        lines = [line.strip().replace("\\", "/") for line in file]
    folder = os.path.dirname(source)
    paths = [expand(line) for line in lines if line]
    for parent in {os.path.dirname(x) for x in paths}:
        note_read(parent or ".")
        note_read(os.path.join(folder, parent) or ".")
    paths = [os.path.normpath(x if os.path.isfile(x) else os.path.join(folder, x)) for x in paths]
    absent = [x for x in paths if not os.path.isfile(x)]
    if absent and missing is None:
        raise InputError(f"{key}: {source} lists {absent[0]}, which does not exist")
    if missing is not None:
        missing += absent
    gone = set(absent)
    return [x for x in paths if x not in gone]


def fixed_part(pattern: str) -> str:
    """Return the folder above the first part of a glob or of a list that varies."""
    folder = os.path.dirname(pattern)
    while glob.has_magic(folder):
        folder = os.path.dirname(folder)
    return folder or "."


def _walk(folder: str, seen: set[str]) -> Iterator[str]:
    note_read(folder)
    for parent, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:  # a link to a folder that was walked
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(x for x in folders if not x.startswith("."))
        for name in folders:
            note_read(os.path.join(parent, name))
        yield from sorted(os.path.join(parent, x) for x in names if not x.startswith("."))


def normal(name: str) -> str:
    """Return a name with "/" for backslashes, composed Unicode, and no "." or leading "/"."""
    name = unicodedata.normalize("NFC", name.strip().replace("\\", "/"))
    return posixpath.normpath(name).lstrip("/") if "/" in name else name


def without_suffix(name: str) -> str:
    """Return a name without the suffix of its file."""
    return posixpath.splitext(name)[0]


class _Entry(NamedTuple):
    image_id: str
    name: str  # normal path relative to its folder
    path: str  # path, made normal and absolute when it is needed

    @property
    def full(self) -> str:
        return normal(os.path.abspath(self.path))


@dataclass
class _Index:
    """Finds images by names, all with or all without suffix."""

    by_name: dict[str, list[_Entry]] = field(default_factory=dict)
    by_base: dict[str, list[_Entry]] = field(default_factory=dict)

    def add(self, entry: _Entry) -> None:
        self.by_name.setdefault(entry.name, []).append(entry)
        self.by_base.setdefault(posixpath.basename(entry.name).casefold(), []).append(entry)

    def find(self, name: str) -> list[tuple[int, _Entry]]:
        """Return the best images for a name, with the number of path parts that agree."""
        if name in self.by_name:
            return [(EXACT, x) for x in self.by_name[name]]
        # Labels may have folders in front of the name, or lack those of the image.
        candidates = [
            (_agreement(name, x.full), x)
            for x in self.by_base.get(posixpath.basename(name).casefold(), [])
            if _ends_with(name, x.name) or _ends_with(x.full, name)
        ]
        best = max((score for score, _ in candidates), default=0)
        return [(score, x) for score, x in candidates if score == best]


def _ends_with(path: str, end: str) -> bool:
    return f"/{path}".casefold().endswith(f"/{end}".casefold())


def _agreement(name: str, path: str) -> int:
    """Return the number of last parts that two paths share."""
    parts = zip(
        reversed(name.casefold().split("/")), reversed(path.casefold().split("/")), strict=False
    )
    count = 0
    for a, b in parts:
        if a != b:
            return count
        count += 1
    return count


@dataclass
class ImageFiles:
    """The images of a split.

    Attributes:
        paths: image id, its name or with several folders its path below all of them, -> file.
        sizes: image id -> [height, width] in pixels after the EXIF rotation; a file that cannot be
            read has none.
        names: image id -> name in its folder.
        sources: folders or files that they were found in, for messages.
        unread: files there with a suffix that is not read.
    """

    paths: dict[str, str]
    sizes: dict[str, list[int]]
    names: dict[str, str]
    sources: str
    unread: Sequence[str] = ()

    @cached_property
    def _full(self) -> _Index:
        index = _Index()
        for image_id, path in self.paths.items():
            index.add(_Entry(image_id, normal(self.names[image_id]), path))
        return index

    @cached_property
    def _stems(self) -> _Index:
        index = _Index()
        for image_id, path in self.paths.items():
            name = without_suffix(normal(self.names[image_id]))
            index.add(_Entry(image_id, name, without_suffix(path)))
        return index

    def match(self, names: Sequence[str], *, by_stem: bool) -> tuple[dict[str, str], list[str]]:
        """Find the images that names in label files mean.

        Backslashes, the form of Unicode, and folders in front do not matter. Of two names for one
        image, the one with more of its folders is right. A name that several images have, such as
        a.jpg and a.png for the stem a, belongs to none.

        Returns:
            name -> image id, and a line for each name without an image, which says why.
        """
        index = self._stems if by_stem else self._full
        matched: dict[str, str] = {}
        found: dict[str, list[tuple[int, _Entry]]] = {}  # of the names that need a closer look
        for name in dict.fromkeys(names):
            entries = index.by_name.get(normal(name), ())
            if len(entries) == 1:
                matched[name] = entries[0].image_id
            else:
                found[name] = index.find(normal(name))
        matched |= self._best_names(found, taken=set(matched.values()))
        alone = [name for name in found if name not in matched]
        lines = [self._why(name, found[name], hint=name == alone[0]) for name in alone]
        return matched, lines

    def _best_names(
        self, found: Mapping[str, list[tuple[int, _Entry]]], taken: Container[str]
    ) -> dict[str, str]:
        """Return name -> image id for the best name of each image that is not taken."""
        clear = {name: x[0] for name, x in found.items() if x and not self._is_ambiguous(x)}
        best: dict[str, set[tuple[int, str]]] = {}  # image id -> score and form of its names
        for name, (score, entry) in clear.items():
            known = best.setdefault(entry.image_id, set())
            if all(score >= other for other, _ in known):
                best[entry.image_id] = {x for x in known if x[0] == score} | {(score, normal(name))}
        return {
            name: entry.image_id
            for name, (score, entry) in clear.items()
            if entry.image_id not in taken and best[entry.image_id] == {(score, normal(name))}
        }

    def _is_ambiguous(self, found: Sequence[tuple[int, _Entry]]) -> bool:
        """Return whether the best images for a name are not one in each of several sources."""
        folders = {os.path.dirname(self.paths[x.image_id]) for _, x in found}
        return len({x.name for _, x in found}) > 1 or len(folders) < len(found)

    def _why(self, name: str, found: Sequence[tuple[int, _Entry]], *, hint: bool) -> str:
        """Return why a name has no image; with a hint at the nearest image, which takes time."""
        paths = [self.paths[x.image_id] for _, x in found[:2]]
        if len(paths) > 1:
            return f"{name!r} is the name of {' and '.join(paths)}"
        if paths:
            return f"{name!r} is one of several names of {paths[0]}"
        return f"{name!r} is not in {self.sources}{self._nearest(name) if hint else ''}"

    def _nearest(self, name: str) -> str:
        """Return a hint at the file that a name without an image may mean."""
        base = posixpath.basename(normal(name))
        unread = [x for x in self.unread if os.path.basename(x) == base]
        if unread:
            return f" (images of the suffix of {unread[0]} are not read)"
        stems = self._stems.by_base.get(without_suffix(base).casefold(), [])
        names = {posixpath.basename(x): x for x in self.names.values()}
        close = [self.names[x.image_id] for x in stems] or [
            names[x] for x in difflib.get_close_matches(base, names, n=1)
        ]
        return f" (the nearest is {close[0]!r})" if close else ""


def image_sources(sources: Sequence[str], key: str) -> list[str]:
    """Return sources of images, for the data.yaml of YOLO the entries of the split in `key`."""
    found = [
        split_images(expand(x), key) if x.lower().endswith(YAML_SUFFIXES) else [x] for x in sources
    ]
    return [x for part in found for x in part]


def find_images(
    sources: Sequence[str], key: str, notes: Notes
) -> tuple[dict[str, str], dict[str, str]]:
    """Return image id -> file and image id -> name in its folder, of all images in the sources.

    A source is one of `find_files`, or the data.yaml of YOLO. With one source an id is the name.
    With several, whose names may repeat, it is the path below the folder that all of them share.
    """
    found = find_files(image_sources(sources, key), IMAGE_SUFFIXES, key, notes)
    files = [x for part in found for x in part]
    if len(found) == 1:
        return {x.name: x.path for x in files}, {x.name: x.name for x in files}
    ids = names_below_top([x.path for x in files])
    _note_repeats(found, notes)
    return (
        {i: x.path for i, x in zip(ids, files, strict=True)},
        {i: x.name for i, x in zip(ids, files, strict=True)},
    )


def names_below_top(paths: Sequence[str]) -> list[str]:
    """Return the paths of files below the folder that all of them share, with "/"."""
    full = [os.path.abspath(x) for x in paths]
    top = os.path.commonpath(full)
    top = os.path.dirname(top) if os.path.isfile(top) else top
    return [os.path.relpath(x, top).replace(os.sep, "/") for x in full]


def _note_repeats(found: Iterable[Sequence[FoundFile]], notes: Notes) -> None:
    first: dict[str, str] = {}
    for part in found:
        repeats = [x for x in part if x.name in first]
        notes.add(REPEATED, [f"{first[x.name]} and {x.path}" for x in repeats])
        first = {x.name: x.path for x in part} | first
