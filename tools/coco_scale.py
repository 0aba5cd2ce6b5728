"""Measure how long a dataset of COCO's size takes from start to first batch.

    python -m tools.coco_scale FOLDER

FOLDER/coco gets 118,287 images, hard links of a few small ones, and a JSON with 860,001 boxes and
polygons, 1,021 images without an object and the two boxes of height 0 of train2017. Then two
processes read it and build a batch, the first without a cache. Each prints seconds and memory.
"""

import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import msgspec
import numpy as np
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES

IMAGES, BOXES, EMPTY = 118_287, 860_001, 1_021
FLAT = (340_038, 918)  # annotations whose box has no height
SIZES = ((480, 640), (640, 480), (427, 640), (640, 427), (500, 375))
POINTS = 27  # of a polygon; the JSON then has the size of the real one


def write_coco(root: Path) -> None:
    """Write the images and both JSON files."""
    rng = np.random.default_rng(0)
    for split, images, boxes in (("train", IMAGES, BOXES), ("val", 50, 350)):
        names = _write_images(root / f"{split}2017", images)
        categories = [
            {"id": x["id"], "name": x["name"], "supercategory": "thing"}
            for x in COCO_CATEGORIES
            if x["isthing"]
        ]
        content = {
            "images": [
                {"id": i, "file_name": x, "height": _size(i)[0], "width": _size(i)[1]}
                for i, x in enumerate(names)
            ],
            "annotations": list(_annotations(images, boxes, [x["id"] for x in categories], rng)),
            "categories": categories,
        }
        path = root / f"annotations/instances_{split}2017.json"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(msgspec.json.encode(content))


def _size(number: int) -> tuple[int, int]:
    return SIZES[number % len(SIZES)]


def _write_images(folder: Path, count: int) -> list[str]:
    folder.mkdir(parents=True)
    sources = []
    for number, (height, width) in enumerate(SIZES):
        sources.append(folder.parent / f"source_{number}.jpg")
        cv2.imwrite(str(sources[-1]), np.full((height, width, 3), 90 + number, np.uint8))
    names = [f"{number:012d}.jpg" for number in range(count)]
    for number, name in enumerate(names):
        os.link(sources[number % len(sources)], folder / name)
    return names


def _annotations(images: int, boxes: int, ids: list[int], rng: np.random.Generator) -> Iterator:
    labeled = rng.permutation(images)[min(EMPTY, images // 2) :]
    for number in range(boxes):
        image = int(labeled[number % len(labeled)])
        height, width = _size(image)
        x, y = rng.uniform(0, width - 60), rng.uniform(0, height - 60)
        polygon = rng.uniform(0, 60, (POINTS, 2)) + np.array([x, y])
        box = [x, y, rng.uniform(1, 60), 0.0 if number in FLAT else rng.uniform(1, 60)]
        yield {
            "id": number,
            "image_id": image,
            "category_id": ids[number % len(ids)],
            "iscrowd": 0,
            "area": round(box[2] * box[3], 2),
            "bbox": [round(value, 2) for value in box],
            "segmentation": [polygon.ravel().round(2).tolist()],
        }


def first_batch(root: str) -> None:
    """Load the data as a training does, and print seconds and memory of the first batch."""
    start = time.perf_counter()
    from mtfixmatch.data.loader import build_train_loader, train_records
    from mtfixmatch.engine import load_config
    from mtfixmatch.tasks.config import build_tasks

    keys = {
        "DATASETS.ROOT": root,
        "DATASETS.CACHE_DIR": f"{root}/cache",
        "MODEL.TASKS": ["detection"],
        "DATALOADER.NUM_WORKERS": 2,
    }
    opts: list = [x for pair in keys.items() for x in pair]
    cfg = load_config("configs/coco/dense_fixmatch.yaml", opts)
    tasks = build_tasks(cfg)
    batch = next(iter(build_train_loader(cfg, tasks, train_records(cfg, tasks))))
    seconds = time.perf_counter() - start
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    cpu = time.process_time()
    print(f"{len(batch)} images after {seconds:.1f} s ({cpu:.1f} s of CPU), {memory:.2f} GiB")


def main(root: str) -> None:
    """Write the data if they are not there, and measure twice."""
    if not Path(root, "coco").exists():
        write_coco(Path(root, "coco"))
    for path in Path(root).glob("cache/*"):
        path.unlink()
    for run in ("first", "later"):
        print(run, end=": ", flush=True)
        subprocess.run([sys.executable, "-W", "ignore", "-m", "tools.coco_scale", root, run])


if __name__ == "__main__":
    if len(sys.argv) == 3:
        first_batch(sys.argv[1])
    else:
        main(sys.argv[1])
