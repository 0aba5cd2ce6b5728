"""Match the images that label files list with the images of a split."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..formats.image_files import ImageFiles, normal
from ..formats.sources import LabelSource, Listed
from ..utils.errors import InputError
from ..utils.notes import Notes

# Kinds of notes.
MISSING = "images that a label file lists but that do not exist, left out"
NO_IMAGE = "label files of images that do not exist, left out"
OTHER_NAME = "label files that name another image than their own name does, which counts"
TWICE = "images that are listed twice, whose labels are taken together"
WRONG_SIZE = "images whose labels are for another size, not labeled"


@dataclass
class ImageMatcher:
    """Matches sources of labels with images, and notes what does not fit."""

    images: ImageFiles
    notes: Notes

    def note_entries(self, source: LabelSource) -> None:
        """Note what a source left out; InputError if too many entries are faulty."""
        for kind, lines in source.faults.items():
            self.notes.check_share(source.path, kind, lines, source.num_entries)
        for kind, lines in source.left_out.items():
            self.notes.add(kind, lines)

    def match(self, source: LabelSource, twice: str = TWICE) -> list[tuple[Any, str]]:
        """Return the listed images that exist, with their ids.

        Args:
            source: source of labels.
            twice: kind of the note on an image that is listed again.
        """
        names = [listed.name for listed in source.images]
        found, alone = self.images.match(names, by_stem=source.by_stem)
        unmatched = [name for name in dict.fromkeys(names) if name not in found]
        why = dict(zip(unmatched, alone, strict=True))
        self._match_other_names(source, found)
        self._note_missing(source, {name: why[name] for name in unmatched if name not in found})
        repeated = [name for name, count in Counter(map(normal, names)).items() if count > 1]
        self.notes.add(twice, [f"{source.path}: {name!r}" for name in repeated])
        pairs = [(x, found[x.name]) for x in source.images if x.name in found]
        return [(x, image_id) for x, image_id in pairs if image_id in self.images.sizes]

    def _match_other_names(self, source: LabelSource, found: dict[str, str]) -> None:
        """Add images that a second name means and no first one, to `found`: name -> image id."""
        listed = [x for x in source.images if x.other_name]
        others, _ = self.images.match([x.other_name for x in listed], by_stem=source.by_stem)
        taken = set(found.values())
        for x in listed:
            image_id = others.get(x.other_name)
            if x.name in found and image_id not in (None, found[x.name]):
                self.notes.add(OTHER_NAME, f"{x.file}: {x.other_name!r}")
            elif x.name not in found and image_id is not None and image_id not in taken:
                found[x.name] = image_id
                taken.add(image_id)

    def _note_missing(self, source: LabelSource, why: Mapping[str, str]) -> None:
        """Note names that no image has; a folder may have files for more images than the split.

        Raises:
            InputError: too many images of a list are missing, or no file is named like an image.
        """
        if source.lists_images:
            lines = [f"{source.path}: image {line}" for line in why.values()]
            total = len({x.name for x in source.images})
            self.notes.check_share(source.path, MISSING, lines, total)
            return
        lines = [f"{x.file}: {why[x.name]}" for x in source.images if x.name in why]
        if lines and len(lines) == len(source.images):
            raise InputError(f"{source.path}: no label file is named like an image: {lines[0]}")
        self.notes.add(NO_IMAGE, lines)

    def has_size(self, source: LabelSource, listed: Listed, image_id: str) -> bool:
        """Return whether the labels are for the size of the image; else add a note."""
        size = self.images.sizes[image_id]
        if listed.size in (None, size):
            return True
        path = self.images.paths[image_id]
        assert listed.size is not None
        shown = f"{listed.size[1]}x{listed.size[0]} pixels, but {path} has {size[1]}x{size[0]}"
        rotated = listed.size == size[::-1]
        reason = " (it may be rotated by its EXIF orientation: save it rotated)" if rotated else ""
        where = f"{file_of(source, listed)}: image {listed.name!r}"
        self.notes.add(WRONG_SIZE, f"{where} has {shown}{reason}")
        return False


def file_of(source: LabelSource, listed: Listed) -> str:
    """Return the file that lists an image."""
    return listed.file or source.path
