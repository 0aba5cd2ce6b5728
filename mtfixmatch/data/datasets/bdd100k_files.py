"""Find the files of BDD100K, under their names of today and of older downloads.

images/100k/<split>/<image_id>.jpg
labels/det_20/det_<split>.json                    (see `bdd100k_json`)
images/10k/<split>/<image_id>.jpg
labels/sem_seg/masks/<split>/<image_id>.png       (8 bits: 0-18 as in Cityscapes, 255 = ignore)

Older names are in PLACES. All of it may be in a folder `bdd100k`, as the archives are packed. Boxes
need the first two, maps the last two. Images of the other part are unlabeled if they are there.
"""

import logging
import os
from collections.abc import Collection
from dataclasses import dataclass

from ...utils.errors import InputError
from ...utils.files import reading
from ...utils.notes import Notes
from ..records import BOX_KEY, MAP_KEY
from .folders import check_unmixed

logger = logging.getLogger(__name__)

LARGE, SMALL = "images of the 100K part", "images of the 10K part"
BOXES, MAPS = "boxes", "maps"
# Candidates for each kind of file, the newest names first: folder and suffix, or a file and "".
PLACES = {
    LARGE: (("images/100k/{}", ".jpg"),),
    BOXES: (
        ("labels/det_20/det_{}.json", ""),
        ("labels/bdd100k_labels_images_{}.json", ""),
        ("bdd100k_labels_images_{}.json", ""),
    ),
    SMALL: (("images/10k/{}", ".jpg"), ("seg/images/{}", ".jpg")),
    MAPS: (("labels/sem_seg/masks/{}", ".png"), ("seg/labels/{}", "_train_id.png")),
}
PARENTS = ("", "bdd100k")
MISSING = "images that have labels but do not exist, left out"  # for notes
CITYSCAPES_FOLDERS = ("leftImg8bit", "gtFine")


@dataclass(frozen=True)
class SplitFiles:
    """The files of one split."""

    large: dict[str, str]  # image id -> image of the 100K part
    small: dict[str, str]  # image id -> image of the 10K part; no image of `held_out`
    maps: dict[str, str]  # image id -> label map of the 10K part
    boxes: str  # JSON with the boxes of the 100K part; "": they are not read
    held_out: frozenset[str]  # in training, ids of the validation images of the 100K part


def find_files(root: str, split: str, labels: Collection[str], notes: Notes) -> SplitFiles:
    """Find the files of a split.

    Args:
        root: folder of the dataset.
        split: "train" or "val".
        labels: those of BOX_KEY and MAP_KEY that are read. The other ones, and the images of their
            part, may be missing.
        notes: notes on the dataset.

    Raises:
        InputError: files are missing or of another dataset.
    """
    check_unmixed(root, "BDD100K", "Cityscapes", CITYSCAPES_FOLDERS)
    has_boxes, has_maps = BOX_KEY in labels, MAP_KEY in labels
    large = _list_files(root, LARGE, split, needed=has_boxes)
    small = _list_files(root, SMALL, split, needed=has_maps)
    maps = _list_files(root, MAPS, split) if has_maps else {}
    boxes = _find(root, BOXES, split) if has_boxes else ("", "")
    if maps:
        check_images(list(maps), small, os.path.dirname(next(iter(maps.values()))), notes)
    held_out = _list_files(root, LARGE, "val", needed=False) if split == "train" else {}
    if has_boxes and small and split == "train" and not held_out:
        text = "%s: there are no %s for validation, so those in the 10K part are trained on"
        logger.warning(text, root, LARGE)
    small = {x: path for x, path in small.items() if x not in held_out}
    return SplitFiles(
        large=large, small=small, maps=maps, boxes=boxes[0], held_out=frozenset(held_out)
    )


def check_images(
    labeled: Collection[str], images: dict[str, str], source: str, notes: Notes
) -> None:
    """Note ids with labels in `source` but no image, or raise InputError for too many of them."""
    folder = os.path.dirname(next(iter(images.values())))
    missing = [f"{source}: {x!r} is not in {folder}" for x in labeled if x not in images]
    notes.check_share(source, MISSING, missing, len(labeled))


def _find(root: str, kind: str, split: str) -> tuple[str, str]:
    """Return the file or folder of a kind, and the suffix of the files in it."""
    suffixes = {
        os.path.join(parent, place.format(split)): suffix
        for place, suffix in PLACES[kind]
        for parent in PARENTS
    }
    places = [place for place in suffixes if os.path.exists(os.path.join(root, place))]
    if not places:
        problem = f"looked for the {kind} in {' and '.join(suffixes)}, but there is none"
        raise InputError(f"{root}: {problem}; give the folder that holds images and labels")
    first, *others = [os.path.join(root, place) for place in places]
    if others:
        logger.info("The %s are read from %s, not from %s", kind, first, ", ".join(others))
    return first, suffixes[places[0]]


def _list_files(root: str, kind: str, split: str, *, needed: bool = True) -> dict[str, str]:
    """Return image id -> file; unless they are `needed`, {} without any."""
    try:
        folder, suffix = _find(root, kind, split)
    except InputError:
        if needed:
            raise
        return {}
    with reading(folder):
        names = [x for x in sorted(os.listdir(folder)) if not x.startswith(".")]
    files = {x.removesuffix(suffix): os.path.join(folder, x) for x in names if x.endswith(suffix)}
    if needed and not files:
        raise InputError(f"{folder}: expected the {kind}, found no file that ends in {suffix}")
    return files
