"""Random images with boxes and maps, random answers, and Detectron2's own evaluators of them."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator, SemSegEvaluator
from detectron2.structures import Boxes, BoxMode, Instances
from detectron2.utils import comm
from PIL import Image

from mtfixmatch.tasks.coco_ap import CocoApEvaluator
from mtfixmatch.tasks.mean_iou import MeanIoUEvaluator
from mtfixmatch.tasks.segmentation import load_map
from mtfixmatch.utils.labels import IGNORE_LABEL

NAMES = ["car", "road sign", "rider", "never"]  # the last is in no label
HEIGHT, WIDTH = 150, 240
RAW_IDS = [7, 20, 0, 33]  # of the classes in the files of the maps
OTHER_ID = 5  # a raw id that is ignored


def random_records(folder: Path, count: int, seed: int = 0) -> list[dict]:
    """Make labeled images in the order of their ids: boxes of all sizes, some crowds, and maps.

    `stock_records` finds a second file of each map, which has classes instead of raw ids.
    """
    rng = np.random.default_rng([seed, 0])
    lut = bytearray([IGNORE_LABEL] * 256)
    for i, raw in enumerate(RAW_IDS):
        lut[raw] = i
    return [
        {
            **{"image_id": f"{i:04}", "file_name": f"{i:04}.jpg", "height": HEIGHT, "width": WIDTH},
            "annotations": [_annotation(rng) for _ in range(rng.integers(0, 7))],
            **{"sem_seg_file_name": _write_map(rng, folder, i, lut), "sem_seg_lut": bytes(lut)},
        }
        for i in range(count)
    ]


def _annotation(rng: np.random.Generator) -> dict:
    # Detectron2 rounds boxes to three digits when it converts records: eighths stay.
    size = np.exp(rng.uniform(np.log(6), np.log([WIDTH, HEIGHT])))
    corner = rng.uniform(0, [WIDTH, HEIGHT] - size)
    box = np.round(8 * np.concatenate([corner, corner + size])) / 8
    return {
        **{"bbox": box.tolist(), "bbox_mode": BoxMode.XYXY_ABS},
        **{"category_id": int(rng.integers(3)), "iscrowd": int(rng.random() < 0.15)},
    }


def _write_map(rng: np.random.Generator, folder: Path, number: int, lut: Sequence[int]) -> str:
    blocks = rng.choice([*RAW_IDS[:3], OTHER_ID], (HEIGHT // 10, WIDTH // 10)).astype(np.uint8)
    raw = blocks.repeat(10, axis=0).repeat(10, axis=1)
    path = folder / f"map_{number}.png"
    Image.fromarray(raw).save(path)
    Image.fromarray(np.array(lut, dtype=np.uint8)[raw]).save(folder / f"classes_{number}.png")
    return str(path)


def random_answers(records: Sequence[dict], seed: int = 0) -> list[dict]:
    """Answer each image half right, in Detectron2's format; image 0 has over 100 detections."""
    rng = np.random.default_rng([seed, 1])
    return [
        {"instances": _instances(rng, record, 120 if i == 0 else 4), "sem_seg": _map(rng, record)}
        for i, record in enumerate(records)
    ]


def _instances(rng: np.random.Generator, record: dict, more: int) -> Instances:
    annotations = record["annotations"] + [_annotation(rng) for _ in range(more)]
    boxes = np.array([a["bbox"] for a in annotations])
    boxes += rng.normal(0, 0.07, boxes.shape) * np.tile(boxes[:, 2:] - boxes[:, :2], 2)
    classes = np.array([a["category_id"] for a in annotations])
    classes = np.where(rng.random(len(classes)) < 0.2, rng.integers(0, 4, len(classes)), classes)
    instances = Instances((HEIGHT, WIDTH), pred_boxes=Boxes(boxes))
    instances.pred_classes = torch.tensor(classes)
    instances.scores = torch.tensor(rng.random(len(classes)), dtype=torch.float32)
    return instances


def _map(rng: np.random.Generator, record: dict) -> torch.Tensor:
    classes = load_map(record).astype(np.int64)
    wrong = (rng.random(classes.shape) < 0.3) | (classes == IGNORE_LABEL)
    classes[wrong] = rng.integers(0, 4, classes.shape)[wrong]
    return torch.nn.functional.one_hot(torch.tensor(classes), 4).permute(2, 0, 1).float()


def our_figures(
    records: Sequence[dict], answers: Sequence[dict], seen: slice = slice(None)
) -> tuple[dict | None, ...]:
    """Results of our evaluators of boxes and maps, if this process has seen these images."""
    boxes, maps = CocoApEvaluator(records, NAMES), MeanIoUEvaluator(records, NAMES, load_map)
    return tuple(_evaluate(x, records[seen], answers[seen]) for x in (boxes, maps))


def figures_of_a_rank(records: Sequence[dict], answers: Sequence[dict], folder: Path) -> None:
    """Write the results of this rank, which sees its share of the images, into a file."""
    rank = comm.get_rank()
    seen = slice(rank, None, comm.get_world_size())
    torch.save(our_figures(records, answers, seen), folder / f"{rank}.pth")


def stock_boxes(records: Sequence[dict], answers: Sequence[dict], folder: Path) -> dict:
    """Results of Detectron2's evaluator of boxes, which writes into a folder."""
    with _registered(records) as name:
        evaluator = COCOEvaluator(
            name, output_dir=str(folder), use_fast_impl=False, allow_cached_coco=False
        )
    return _evaluate(evaluator, records, answers)["bbox"]


def stock_boxes_of_file(records: Sequence[dict], answers: Sequence[dict], path: Path) -> dict:
    """Results of Detectron2's evaluator of boxes, from a JSON file with all digits."""
    annotations = [
        {**a, "image_id": r["image_id"], "bbox": [x0, y0, x1 - x0, y1 - y0]}
        for r in records
        for a in r["annotations"]
        for x0, y0, x1, y1 in [a["bbox"]]
    ]
    for i, a in enumerate(annotations, start=1):
        a |= {"id": i, "area": a["bbox"][2] * a["bbox"][3]}
    images = [{"id": r["image_id"]} for r in records]
    categories = [{"id": i, "name": name} for i, name in enumerate(NAMES)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(content))
    with _registered(records) as name:
        MetadataCatalog.get(name).json_file = str(path)
        evaluator = COCOEvaluator(name, use_fast_impl=False)
    return _evaluate(evaluator, records, answers)["bbox"]


def stock_maps(records: Sequence[dict], answers: Sequence[dict]) -> dict:
    """Results of Detectron2's evaluator of maps, without those of Boundary IoU."""
    evaluator = stock_map_evaluator(records)
    figures = _evaluate(evaluator, records, answers)["sem_seg"]
    return {k: v for k, v in figures.items() if not k.startswith(("BoundaryIoU", "min("))}


def stock_map_evaluator(records: Sequence[dict]) -> SemSegEvaluator:
    """Detectron2's evaluator of maps, on the files with classes."""
    key = "sem_seg_file_name"
    classes = [r | {key: r[key].replace("map_", "classes_")} for r in records]
    with _registered(classes) as name:
        # Its own loader does not work with NumPy 2.
        return SemSegEvaluator(name, sem_seg_loading_fn=_load_classes)


def _load_classes(path: str, dtype: type) -> np.ndarray:
    return np.array(Image.open(path), dtype=dtype)


@contextmanager
def _registered(records: Sequence[dict]) -> Iterator[str]:
    name = "stock_evaluators"
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).set(thing_classes=NAMES, stuff_classes=NAMES, ignore_label=255)
    try:
        yield name
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def _evaluate(evaluator: DatasetEvaluator, records: Sequence[dict], answers: Sequence[dict]):
    evaluator.reset()
    for record, answer in zip(records, answers, strict=True):
        evaluator.process([{key: record[key] for key in ("image_id", "file_name")}], [answer])
    return evaluator.evaluate()
