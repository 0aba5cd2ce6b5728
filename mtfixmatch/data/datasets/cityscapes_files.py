"""Find the files of Cityscapes as downloaded, and explain what is missing or misplaced.

leftImg8bit/<train | val | train_extra>/<city>/<image_id>_leftImg8bit.png
leftImg8bit_sequence/train/<city>/<image_id>_leftImg8bit.png                 (split "sequence")
gtFine/<train | val>/<city>/<image_id>_gtFine_<instanceIds | labelIds>.png
"""

import glob
import logging
import os

from ...utils.errors import InputError
from .folders import check_unmixed, is_generated

logger = logging.getLogger(__name__)

IMAGE_SUFFIX = "_leftImg8bit.png"
INSTANCES_SUFFIX = "_gtFine_instanceIds.png"
LABELS_SUFFIX = "_gtFine_labelIds.png"

SEQUENCE = "sequence"
UNLABELED_SPLITS = ("train_extra", SEQUENCE)
# Images in the official download. A snippet has 30 frames; the annotated one is in "train".
OFFICIAL_COUNTS = {"train": 2975, "val": 500, "train_extra": 19998, SEQUENCE: 29 * 2975}
IMAGE_PACKAGES = {"train_extra": "trainextra", SEQUENCE: "sequence_trainvaltest"}
BDD100K_FOLDERS = ("images/100k", "images/10k", "labels/det_20")


def find_images(root: str, split: str) -> list[str]:
    """Return the images of a split, sorted; "sequence" excludes the frames that are in "train".

    InputError if images are missing or misplaced, or `root` holds another dataset as well.
    """
    check_unmixed(root, "Cityscapes", "BDD100K", BDD100K_FOLDERS)
    images = _list_images(root, split)
    if split == SEQUENCE:
        why = " (the annotated frames, which the sequences exclude)"
        annotated = set(map(image_id, _list_images(root, "train", why)))
        images = [image for image in images if image_id(image) not in annotated]
    if not is_generated(root):
        if split not in UNLABELED_SPLITS:
            _check_cities(root, split, images)
        expected = OFFICIAL_COUNTS.get(split, len(images))
        if len(images) != expected:
            rest = " without the images of leftImg8bit/train" if split == SEQUENCE else ""
            text = "%s: found %d images in %s%s, the official Cityscapes has %d"
            logger.warning(text, root, len(images), _image_pattern(split), rest, expected)
    return images


def find_maps(root: str, split: str, images: list[str], suffix: str) -> dict[str, str]:
    """Return image -> map for the images that have one, and warn of the others."""
    if split in UNLABELED_SPLITS:
        return {}
    folder = os.path.join(root, "gtFine", split)
    paths = {x: os.path.join(folder, _city(x), image_id(x) + suffix) for x in images}
    existing = {image: path for image, path in paths.items() if os.path.isfile(path)}
    missing = [path for image, path in paths.items() if image not in existing]
    if missing:
        text = "%s: %d of %d images of %s have no *%s and count as unlabeled (the first: %s)"
        logger.warning(text, root, len(missing), len(paths), split, suffix, missing[0])
    return existing


def image_id(image: str) -> str:
    """Return the id of an image, <city>_<sequence>_<frame>, which is the same in all splits."""
    return os.path.basename(image).removesuffix(IMAGE_SUFFIX)


def _list_images(root: str, split: str, why: str = "") -> list[str]:
    """Return the images of a split, sorted; `why` explains in an error what they are for."""
    pattern = _image_pattern(split)
    parts = pattern.split("/")
    for place in (os.path.join(root, *parts[:n]) for n in range(3)):
        if not os.path.isdir(place):
            package = IMAGE_PACKAGES.get(split, "trainvaltest")
            advice = _explain(root, f"leftImg8bit_{package}.zip")
            problem = f"looked for images in {pattern}{why}, but there is no folder {place}"
            raise InputError(f"{root}: {problem}; {advice}")
    images = glob.glob(os.path.join(glob.escape(root), pattern))
    if not images:
        raise InputError(f"{root}: there is no image {pattern}{why}")
    return sorted(images)


def _image_pattern(split: str) -> str:
    folder = "leftImg8bit_sequence/train" if split == SEQUENCE else f"leftImg8bit/{split}"
    return f"{folder}/*/*{IMAGE_SUFFIX}"


def _city(image: str) -> str:
    return os.path.basename(os.path.dirname(image))


def _check_cities(root: str, split: str, images: list[str]) -> None:
    """Raise InputError if most cities have no maps: the download is unfinished."""
    folder = os.path.join(root, "gtFine", split)
    cities = sorted(set(map(_city, images)))
    missing = [city for city in cities if not os.path.isdir(os.path.join(folder, city))]
    if 2 * len(missing) > len(cities):
        expected = f"the maps of the {len(cities)} cities in leftImg8bit/{split}"
        problem = f"{len(missing)} have no folder there (the first: {missing[0]})"
        advice = _explain(root, "gtFine_trainvaltest.zip")
        raise InputError(f"{folder}: expected {expected}, but {problem}; {advice}")


def _explain(root: str, package: str) -> str:
    """Return advice on files that `root` lacks: where they are, or which package holds them."""
    advice = "expected the folder that holds leftImg8bit and gtFine"
    path = os.path.abspath(root)
    above = [os.path.normpath(os.path.join(path, *[os.pardir] * n)) for n in (1, 2, 3)]
    near = [root, *sorted(glob.glob(os.path.join(glob.escape(path), "*"))), *above]
    holders = [x for x in near if os.path.isdir(os.path.join(x, "leftImg8bit"))]
    if holders and holders[0] != root:
        return f"{advice}, which is {holders[0]} (DATASETS.ROOT is the folder above it)"
    folders = [glob.escape(folder) for folder in (root, os.path.dirname(root))]
    patterns = [os.path.join(x, f"{y}*.zip") for x in folders for y in ("gtFine", "leftImg8bit")]
    archives = [path for pattern in patterns for path in sorted(glob.glob(pattern))]
    packed = f" (found as zip files: {', '.join(archives)})" if archives else ""
    return f"{advice}, with {package} unzipped in it{packed}"
