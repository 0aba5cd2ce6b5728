"""Small datasets in the layouts that tools and well-known datasets have."""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from tests.support.box_writers import Box, Images, write_coco, write_labelme, write_voc, write_yolo

SIZE = (96, 128)  # height, width of the images
CLASSES = ("cat", "dog")
BOX = {0: (8, 8, 56, 60), 1: (40, 16, 100, 80)}  # by the index of the class
NUM_TRAIN, NUM_VAL = 5, 2


def copy_photos(source: Path, root: Path) -> None:
    """Copy some photos of shared/data/coco_small with their labels, and the names of its maps."""
    for split, count in (("train", NUM_TRAIN), ("val", NUM_VAL)):
        content = json.loads((source / f"instances_{split}.json").read_text())
        content["images"] = content["images"][:count]
        ids = {image["id"] for image in content["images"]}
        content["annotations"] = [x for x in content["annotations"] if x["image_id"] in ids]
        (root / "images" / split).mkdir(parents=True)
        (root / "sem_seg" / split).mkdir(parents=True)
        (root / f"instances_{split}.json").write_text(json.dumps(content))
        for name in (Path(image["file_name"]) for image in content["images"]):
            shutil.copy(source / "images" / split / name, root / "images" / split)
            label_map = source / "sem_seg" / split / f"{name.stem}.png"
            shutil.copy(label_map, root / "sem_seg" / split)
    shutil.copy(source / "sem_seg_classes.json", root)


def make_image(path: Path, seed: int) -> None:
    """Save a picture that no other seed's is like."""
    patches = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(patches.repeat(8, axis=0).repeat(8, axis=1)).save(path)


def make_images(folder: Path, count: int, seed: int = 0, suffix: str = ".jpg") -> Images:
    """Save images, and return the boxes of each: one, and none of the last, which is unlabeled."""
    images: dict[str, Sequence[Box] | None] = {}
    for i in range(count):
        name = f"img{seed + i}{suffix}"
        make_image(folder / name, seed + i)
        images[name] = [Box(CLASSES[i % 2], BOX[i % 2])] if i < count - 1 else None
    return images


def make_map(path: Path, values: Sequence[int]) -> None:
    """Save a map with stripes of values."""
    path.parent.mkdir(parents=True, exist_ok=True)
    row = np.repeat(np.array(values, np.uint8), SIZE[1] // len(values) + 1)[: SIZE[1]]
    Image.fromarray(np.tile(row, (SIZE[0], 1))).save(path)


def _write(write: Callable, folder: Path, images: Images, target: Path) -> None:
    """Write labels with one of the box writers, and move them to their place."""
    folder.mkdir(parents=True, exist_ok=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    Path(write(folder, images, CLASSES, SIZE)).rename(target)


def detectron2(root: Path) -> Path:
    """COCO as Detectron2 expects it: train2017, val2017, annotations; with files of no boxes."""
    for split, count, seed in (("train", NUM_TRAIN, 0), ("val", NUM_VAL, 100)):
        images = make_images(root / f"{split}2017", count, seed)
        _write(write_coco, root / "w", images, root / f"annotations/instances_{split}2017.json")
        captions = {"images": [], "annotations": []}
        path = root / "annotations" / f"captions_{split}2017.json"
        path.write_text(json.dumps(captions))
    return root


def roboflow(root: Path) -> Path:
    """COCO as Roboflow exports it: the JSON is beside the images of each split."""
    for split, count, seed in (("train", NUM_TRAIN, 0), ("valid", NUM_VAL, 100), ("test", 2, 200)):
        images = make_images(root / split, count, seed)
        _write(write_coco, root / "w", images, root / split / "_annotations.coco.json")
    return root


def ultralytics(root: Path) -> Path:
    """YOLO with a data.yaml, images/train and labels/train."""
    for split, count, seed in (("train", NUM_TRAIN, 0), ("val", NUM_VAL, 100)):
        images = make_images(root / "images" / split, count, seed)
        _write(write_yolo, root / f"w_{split}", images, root / "labels" / split)
        (root / "labels" / split / "classes.txt").unlink()
    names = "".join(f"  {i}: {name}\n" for i, name in enumerate(CLASSES))
    text = f"path: .\ntrain: images/train\nval: images/val\nnames:\n{names}"
    (root / "data.yaml").write_text(text)
    return root


def voc2012(root: Path) -> Path:
    """Pascal VOC: JPEGImages, Annotations, ImageSets, and maps of the first images."""
    images = make_images(root / "JPEGImages", NUM_TRAIN + NUM_VAL)
    images = {name: boxes or [] for name, boxes in images.items()}
    _write(write_voc, root / "w", images, root / "Annotations")
    stems = [Path(name).stem for name in images]
    lists = root / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("\n".join(stems[:NUM_TRAIN]) + "\n")
    (lists / "val.txt").write_text("\n".join(stems[NUM_TRAIN:]) + "\n")
    for stem in [*stems[:2], stems[-1]]:
        make_map(root / "SegmentationClass" / f"{stem}.png", [0, 1, 2, 255])
    return root


def labelme(root: Path) -> Path:
    """A folder with labelme's files beside the images."""
    images = make_images(root, NUM_TRAIN)
    target = root / "w" / "moved"
    _write(write_labelme, root / "w", images, target)
    for path in target.iterdir():
        path.rename(root / path.name)
    target.rmdir()
    (root / "w").rmdir()
    return root


def masks(root: Path) -> Path:
    """Images and maps in folders beside each other; the names of maps have a suffix."""
    names = make_images(root / "images", NUM_TRAIN, suffix=".png")
    for name, boxes in names.items():
        if boxes is not None:
            make_map(root / "masks" / f"{Path(name).stem}_mask.png", [0, 1, 2, 255])
    return root


LAYOUTS: Mapping[str, Callable[[Path], Path]] = {
    make.__name__: make for make in (detectron2, roboflow, ultralytics, voc2012, labelme, masks)
}
