"""How the start of a training grows with the images of a dataset and with its labels.

    python -m tools.scale_records FOLDER IMAGES LABELED

FOLDER gets IMAGES names of a few small images (hard links, in folders of 10,000) and a JSON with
two boxes on each of LABELED images. Then two processes start as a training does, the first without
a cache, and each prints the seconds and the memory of every stage.
"""

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import msgspec
import numpy as np
import psutil

from mtfixmatch.utils.files import note_read

PER_FOLDER = 10_000
LINKS = 60_000  # of a file: ext4 allows 65,000
SIZE = 64  # pixels, both sides
WORKERS = 2
STAGES = ("datasets", "labels hidden", "pools and loader", "manifest", "first batch")
CONFIG = "configs/Base-Small.yaml"
MOST_READ, LINKED = 1_000_000, 10  # see `keep_listing`
VALIDATION = 8  # images
BATCH, HIDDEN = 8, 4  # images of a batch; every fourth label is hidden


def write_listing(root: Path, images: int, labeled: int) -> None:
    """Write the images and the JSON of training, and a few of validation, unless they are there."""
    for split, count, boxes in (("train", images, labeled), ("val", VALIDATION, VALIDATION)):
        if not (root / split).exists():
            _write_images(root / split, count)
        if not (path := root / f"{split}_{boxes}.json").exists():
            with open(path, "wb") as file:
                file.writelines(_json_parts(count, boxes))


def _write_images(folder: Path, count: int) -> None:
    folder.mkdir(parents=True)
    for number in range(count):
        path = image_path(folder, number)
        if number % PER_FOLDER == 0:
            path.parent.mkdir()
        if number % LINKS == 0:
            source = path
            cv2.imwrite(str(path), np.full((SIZE, SIZE, 3), 90, np.uint8))
        else:
            os.link(source, path)


def image_path(folder: Path, number: int) -> Path:
    """Return the path of an image of a split."""
    return folder / f"{number // PER_FOLDER:04d}" / f"{number:09d}.png"


def _json_parts(images: int, labeled: int) -> Iterator[bytes]:
    """Yield a JSON of COCO in parts; the labeled images are spread evenly."""
    numbers = np.linspace(0, images - 1, labeled).astype(int).tolist()
    names = (str(image_path(Path(), n)) for n in numbers)
    images_part = [
        {"id": i, "file_name": name, "height": SIZE, "width": SIZE} for i, name in enumerate(names)
    ]
    yield b'{"categories": [{"id": 1, "name": "car"}], "images": '
    yield msgspec.json.encode(images_part)
    yield b', "annotations": '
    boxes = [
        {"id": 2 * i + k, "image_id": i, "category_id": 1, "iscrowd": 0, "area": 100.0}
        | {"bbox": [4.0 + 20 * k, 6.0, 10.0, 10.0]}
        for i in range(labeled)
        for k in range(2)
    ]
    yield msgspec.json.encode(boxes) + b"}"


def keep_listing(root: str, images: int, labeled: int) -> None:
    """Keep the records of a listing too long to read here, as its reader would.

    The images of a listing a tenth as long have ten names each, by links to its folder.
    """
    from mtfixmatch.data.datasets import catalog, register_datasets
    from mtfixmatch.data.record_block import RecordBlock
    from mtfixmatch.data.records import make_annotation, make_record
    from mtfixmatch.engine.setup import resolve_config

    cfg = resolve_config(CONFIG, [x for pair in _keys(root, labeled).items() for x in pair])
    register_datasets(cfg)
    cache, every = catalog._caches["coco_style_train"], images // labeled
    own = {"classes": {"detection": ["car"]}, "folders": _image_folders(Path(root, "train"))}
    cache.set_state({"own": own, "notes": {"lines": {}, "texts": []}, "broken": {}})
    boxes = [make_annotation([4, 6, 14, 16], 0, 0), make_annotation([24, 6, 34, 16], 0, 0)]

    def records() -> Iterator[dict]:
        for number in range(images):
            part, place = divmod(number, images // LINKED)
            name = f"{part}/{place // PER_FOLDER:04d}/{place:09d}.png"
            note_read(path := f"{root}/train/{name}")
            record = make_record(path, name, [SIZE, SIZE])
            yield record | ({"annotations": boxes} if number % every == 0 else {})

    with cache.recording():
        block = RecordBlock.of(records())
        if cache.save(block) is None:
            sys.exit("the records were not kept")


def _image_folders(train: Path) -> list[str]:
    return sorted({os.path.realpath(folder) for folder in train.glob("*/*")})


def start(root: str, labeled: int) -> dict:
    """Start as a training does; return seconds, memory and digests of what it would do."""
    from mtfixmatch.data.loader import build_train_loader, train_records
    from mtfixmatch.data.partial_labels import write_manifest
    from mtfixmatch.engine import load_config
    from mtfixmatch.tasks.config import build_tasks

    process = psutil.Process()
    before = _own_memory("RssAnon")
    seconds: dict[str, float] = {}
    cpu: dict[str, float] = {}
    clocks = [(time.perf_counter(), sum(os.times()[:4]))]

    def done(stage: str) -> None:
        clocks.append((time.perf_counter(), sum(os.times()[:4])))
        seconds[stage], cpu[stage] = (b - a for a, b in zip(*clocks[-2:], strict=True))

    cfg = load_config(CONFIG, [x for pair in _keys(root, labeled).items() for x in pair])
    done(STAGES[0])
    tasks = build_tasks(cfg)
    records = train_records(cfg, tasks)
    done(STAGES[1])
    loader = build_train_loader(cfg, tasks, records)
    done(STAGES[2])
    manifest = Path(root, "label_subsets.json")
    write_manifest(records, {x.name: x.label_key for x in tasks}, str(manifest))
    done(STAGES[3])
    held = _own_memory("RssAnon") - before
    batches = iter(loader)
    first = [next(batches) for _ in range(4)]
    done(STAGES[4])
    drawn = [[item["file_name"].removeprefix(root) for item in batch] for batch in first]
    return {
        "seconds": seconds,
        "cpu_seconds": cpu,
        "rank_mib": held / 2**20,
        "mapped_mib": _own_memory("RssFile") / 2**20,
        "worker_mib": max(x.memory_full_info().uss for x in process.children()) / 2**20,
        "digest": _digest(manifest.read_bytes(), json.dumps(drawn).encode()),
    }


def _keys(root: str, labeled: int) -> dict:
    own = "DATASETS.COCO_STYLE"
    return {
        "DATASETS.TRAIN": ("coco_style_train",),
        "DATASETS.TEST": ("coco_style_val",),
        f"{own}.TRAIN.IMAGES": f"{root}/train",
        f"{own}.TRAIN.BOXES": f"{root}/train_{labeled}.json",
        f"{own}.VAL.IMAGES": f"{root}/val",
        f"{own}.VAL.BOXES": f"{root}/val_{VALIDATION}.json",
        "DATASETS.CACHE_DIR": f"{root}/cache",
        "MODEL.TASKS": ["detection"],
        "TASKS.DETECTION.LABELS": labeled - labeled // HIDDEN,
        "DATALOADER.NUM_WORKERS": WORKERS,
        "DATALOADER.LABELED_PER_BATCH": BATCH // 2,
        "SOLVER.IMS_PER_BATCH": BATCH,
        "SEED": 1,
        "MODEL.DEVICE": "cpu",
    }


def _own_memory(kind: str) -> int:
    """Return the resident bytes of this process of a kind, such as RssAnon."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(x.split()[1]) * 1024 for x in status if x.startswith(kind))


def _digest(*parts: bytes) -> str:
    return hashlib.sha256(b"".join(parts)).hexdigest()[:12]


def measure(root: Path, images: int, labeled: int) -> dict:
    """Return what the first and a later start cost; the listing is written if it is not there."""
    runs = ("first", "later")
    if images > MOST_READ:
        runs = ("keep", "later")
        link_listing(root, images, labeled)
    else:
        write_listing(root, images, labeled)
    for path in root.glob("cache/*"):
        path.unlink()
    command = [sys.executable, "-W", "ignore", "-m", "tools.scale_records", str(root)]
    found = {}
    for run in runs:
        text = subprocess.check_output([*command, str(images), str(labeled), run], text=True)
        found[run] = json.loads(text.splitlines()[-1])
    return {"images": images, "labeled": labeled, **found}


def link_listing(root: Path, images: int, labeled: int) -> None:
    """Write a listing of links to the images of a listing beside it, a tenth as long."""
    if root.exists():
        return
    small = root.with_name(str(images // LINKED))
    write_listing(small, images // LINKED, VALIDATION)
    (root / "train").mkdir(parents=True)
    (root / "val").symlink_to(small / "val")
    (root / f"val_{VALIDATION}.json").symlink_to(small / f"val_{VALIDATION}.json")
    # The records are made without the boxes of this file, which names their class.
    (root / f"train_{labeled}.json").symlink_to(small / f"train_{VALIDATION}.json")
    for part in range(LINKED):
        (root / f"train/{part}").symlink_to(small / "train")


def main(root: str, images: str, labeled: str, run: str = "") -> None:
    """Measure a listing, or in a process of its own (`run`) one start."""
    if run == "keep":
        keep_listing(root, int(images), int(labeled))
        print("{}")
    elif run:
        print(json.dumps(start(root, int(labeled))))
        sys.stdout.flush()
        os._exit(0)  # workers of an endless loader
    else:
        print(json.dumps(measure(Path(root), int(images), int(labeled)), indent=1))


if __name__ == "__main__":
    main(*sys.argv[1:])
