"""The images and videos of a prediction, with the names of the files that are written for each."""

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ..formats.image_files import (
    IMAGE_SUFFIXES,
    find_files,
    image_sources,
    names_below_top,
    without_suffix,
)
from ..utils.errors import InputError
from ..utils.files import is_path
from ..utils.notes import Notes

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")
KEY = "SOURCE"


@dataclass(frozen=True)
class Item:
    """An image file or a video file.

    Attributes:
        name: path below the folder of all sources, with "/"; no other item has it.
        path: path to open it.
        out: path of its output files below their folder, without suffix; no other item has it.
    """

    name: str
    path: str
    out: str

    @property
    def is_video(self) -> bool:
        """Whether it is a video."""
        return is_video(self.name)

    def frame_out(self, frame: int) -> str:
        """Return `out` of a frame: in a folder of the video's full name, which no image has."""
        return f"{self.name}/{frame:06d}" if self.is_video else self.out


def is_video(name: str) -> bool:
    """Return whether the file of this name is a video."""
    return name.lower().endswith(VIDEO_SUFFIXES)


def find_paths(sources: Sequence[str], output: str, notes: Notes) -> dict[str, str]:
    """Return name -> path of all images and videos, sorted by name.

    Args:
        sources: folders, globs, image or video files, text files with paths, or a data.yaml.
        output: folder of the output, whose files are passed over.
        notes: takes what is left out.

    Raises:
        InputError: a source does not exist, or there is nothing to predict.
    """
    suffixes = (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES)
    found = find_files(image_sources(sources, KEY), suffixes, KEY, notes)
    files = [x for part in found for x in part if not _is_below(x.path, output)]
    unreadable = [x for x in files if not is_path(x.path)]
    notes.add("files whose names are no valid Unicode, left out", map(repr, unreadable))
    files = [x for x in files if is_path(x.path)]
    if not files:
        raise InputError(f"{KEY}: there is no image outside of the output folder {output}")
    names = [x.name for x in files]
    if len(found) > 1 or any(x.startswith("../") for x in names):
        names = names_below_top([x.path for x in files])
    return dict(sorted(zip(names, (x.path for x in files), strict=True)))


def make_items(paths: Mapping[str, str], known: Mapping[str, str]) -> list[Item]:
    """Return the items of name -> path.

    Args:
        paths: see `find_paths`.
        known: name -> `Item.out` of items whose files are there already.
    """
    outs = _unique_outs(paths, known)
    return [Item(name, path, outs[name]) for name, path in paths.items()]


def _is_below(path: str, folder: str) -> bool:
    return os.path.abspath(path).startswith(os.path.join(os.path.abspath(folder), ""))


def _unique_outs(names: Collection[str], known: Mapping[str, str]) -> dict[str, str]:
    """Return the path of the output of each name: without its suffix, if no other name has it."""
    outs = {name: known[name] for name in names if name in known}
    # Some file systems do not tell upper from lower case.
    taken = {x.casefold() for x in known.values()}
    for name in names:
        if name not in outs:
            outs[name] = next(x for x in _candidates(name) if x.casefold() not in taken)
            taken.add(outs[name].casefold())
    return outs


def _candidates(name: str) -> Iterator[str]:
    yield from (without_suffix(name), name)
    number = 2
    while True:
        yield f"{name}_{number}"
        number += 1
