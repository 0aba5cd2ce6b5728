"""What an evaluation costs beside its network, in CPU time (`make bench`).

Images have the size of Cityscapes', 2048x1024. The network has random weights, and all its boxes
score high enough, so that suppression and AP have their most work.
"""

import contextlib
import io
import logging
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.evaluation import SemSegEvaluator
from detectron2.modeling import build_model
from detectron2.modeling.postprocessing import sem_seg_postprocess
from tabulate import tabulate

from mtfixmatch.data.loader import build_eval_loader, eval_records
from mtfixmatch.data.mapper import EvalMapper
from mtfixmatch.engine import load_config
from mtfixmatch.engine.evaluation import evaluate
from mtfixmatch.modeling import MultiTaskNet
from mtfixmatch.street.generate import generate
from mtfixmatch.tasks import average_precision, build_tasks
from mtfixmatch.tasks.average_precision import Truth, evaluate_boxes
from mtfixmatch.tasks.coco_ap import CocoApEvaluator
from mtfixmatch.tasks.dense_head import DenseHead
from mtfixmatch.tasks.mean_iou import MeanIoUEvaluator
from mtfixmatch.tasks.segmentation_head import SegmentationHead

WIDTH, HEIGHT, IMAGES = 2048, 1024, 3  # the first image is not counted
CLASSES, BLOCKS = 19, 3
AP_IMAGES, AP_BOXES, AP_DETECTIONS, AP_CLASSES = 500, 12, 100, 8
# Of the classes' methods: what each part of an evaluation runs.
PARTS = {
    "network": ((MultiTaskNet, "_features"), (MultiTaskNet, "_run_head")),
    "decoding and suppression of boxes": ((DenseHead, "inference_for_evaluator"),),
    "resizing and argmax": ((SegmentationHead, "inference_for_evaluator"),),
    "counting of pixels": ((MeanIoUEvaluator, "process"), (MeanIoUEvaluator, "evaluate")),
    "AP": ((CocoApEvaluator, "process"), (CocoApEvaluator, "evaluate")),
    "reading of images and maps": ((EvalMapper, "__call__"),),
}
# With the heads of the paper's network, and with small ones, beside which all else weighs more.
NETWORKS = {
    "ResNet-50": ("configs/cityscapes/dense_fixmatch.yaml", ()),
    "ResNet-18": (
        "configs/cityscapes/dense_fixmatch.yaml",
        ("MODEL.RESNETS.DEPTH", "18", "MODEL.BACKBONE.ENCODER_STRIDE", "32"),
    ),
    "ResNet-18, small heads": ("configs/Base-Small.yaml", ()),
}


def bench_eval() -> dict[str, float]:
    """Shares of an evaluation, and ratios to the ways of Detectron2 and pycocotools."""
    with tempfile.TemporaryDirectory() as folder:
        size = (WIDTH, HEIGHT)
        generate(Path(folder, "street"), num_train=1, num_val=IMAGES, size=size, seed=0)
        figures: dict[str, float] = {}
        for name, (config, opts) in NETWORKS.items():
            cfg = _config(folder, config, *opts)
            figures |= {f"evaluation, {name}: {key}": x for key, x in _shares(cfg).items()}
    return figures | bench_maps() | bench_ap()


def _config(folder: str, config: str, *opts: str) -> CfgNode:
    given = {
        **{
            "DATASETS.ROOT": folder,
            "DATASETS.CACHE_DIR": folder,
            "DATASETS.TEST": "('street_val',)",
        },
        **{"DATALOADER.NUM_WORKERS": "0", "MODEL.DEVICE": "cpu", "MODEL.WEIGHTS": ""},
        **{"MODEL.RESNETS.NORM": "BN", "MODEL.SEM_SEG_HEAD.NORM": "BN"},
        "MODEL.RETINANET.SCORE_THRESH_TEST": "0.0",
    }
    return load_config(config, [*sum(given.items(), ()), *opts], eval_only=True)


def _shares(cfg: CfgNode) -> dict[str, float]:
    """The share of each part, after a first image that fills the caches."""
    tasks = build_tasks(cfg)
    records = eval_records(cfg, tasks)
    torch.manual_seed(0)
    model = build_model(cfg)
    seconds: dict[str, float] = {}
    for part in (records[:1], records[1:]):
        with _timed_parts() as spent:
            start = time.process_time()
            evaluate(model, build_eval_loader(cfg, part, tasks), part, tasks)
            seconds = {**spent, "all": time.process_time() - start}
    total = seconds.pop("all")
    shares = {f"share of the {name}": x / total for name, x in seconds.items()}
    return {**shares, "share of all but the network": 1 - seconds["network"] / total}


@contextmanager
def _timed_parts() -> Iterator[dict[str, float]]:
    """Sum up the CPU seconds of each part."""
    seconds: dict[str, float] = defaultdict(float)
    with ExitStack() as stack:
        for part, methods in PARTS.items():
            for owner, name in methods:
                timed = _timed(getattr(owner, name), seconds, part)
                stack.enter_context(patch.object(owner, name, timed))
        yield seconds


def _timed(method: Callable, seconds: dict[str, float], part: str) -> Callable:
    def timed(*args, **kwargs):
        start = time.process_time()
        result = method(*args, **kwargs)
        seconds[part] += time.process_time() - start
        return result

    return timed


def bench_maps() -> dict[str, float]:
    """From the head's output to the counts of an image, relative to Detectron2's way."""
    net = torch.nn.Identity()
    net.in_features = []  # type: ignore[assignment]
    head, size = SegmentationHead(head=net, stride=4), (HEIGHT, WIDTH)
    torch.manual_seed(0)
    logits = torch.randn(1, CLASSES, HEIGHT // 4, WIDTH // 4)
    logits = logits.contiguous(memory_format=torch.channels_last)
    labels = np.random.default_rng(0).integers(0, CLASSES, size, dtype=np.uint8)
    labels[:40] = 255
    record = {"image_id": "0", "file_name": "0", "sem_seg_file_name": "0"}
    names = [str(i) for i in range(CLASSES)]
    ours, stock = (MeanIoUEvaluator([record], names, lambda record: labels) for _ in range(2))
    stock.encode_json_sem_seg = lambda *args: []  # type: ignore[method-assign]

    def here() -> None:
        (classes,) = head.inference_for_evaluator((logits,), size, size, [size])
        ours.process([record], [{"sem_seg": classes}])

    def there() -> None:
        resized = sem_seg_postprocess(head._full_size(logits)[0], size, *size)
        SemSegEvaluator.process(stock, [record], [{"sem_seg": resized}])

    ratio = _ratio(here, there)
    if repr(ours.evaluate()) != repr(stock.evaluate()):
        raise RuntimeError("the two ways count differently")
    return {"argmax and counting over Detectron2's, 19 classes at 2048x1024": ratio}


def bench_ap() -> dict[str, float]:
    """AP of a set of the size of Cityscapes' validation, relative to pycocotools."""
    rng = np.random.default_rng(0)
    count = AP_IMAGES * AP_BOXES
    boxes = np.concatenate([rng.uniform(0, 900, (count, 2)), rng.uniform(8, 300, (count, 2))], 1)
    ids, kinds = (
        np.repeat(np.arange(1, AP_IMAGES + 1), AP_BOXES),
        rng.integers(0, AP_CLASSES, count),
    )
    names = [str(i) for i in range(AP_CLASSES)]
    truth = Truth(AP_IMAGES, names, ids, kinds, boxes, rng.random(count) < 0.03)
    rows = np.repeat(np.arange(count), AP_DETECTIONS // AP_BOXES + 1)
    moved = boxes[rows] * rng.normal(1, 0.04, (len(rows), 4))
    detections = np.column_stack([ids[rows], moved, rng.random(len(rows)), kinds[rows]])
    found: list[np.ndarray] = []

    def run() -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            found.append(evaluate_boxes(truth, detections).eval["precision"])

    def stock() -> None:
        with patch.object(average_precision, "hotcoco", None):
            run()

    ratio = _ratio(run, stock, blocks=1)
    if not all(np.array_equal(x, found[0]) for x in found):
        raise RuntimeError("hotcoco and pycocotools count differently")
    return {f"AP over pycocotools', {AP_IMAGES} images, {len(rows)} detections": ratio}


def _ratio(ours: Callable[[], None], theirs: Callable[[], None], blocks: int = BLOCKS) -> float:
    """Median over alternating runs of the ratio of CPU times; a first run is not counted."""
    ratios = []
    for _ in range(blocks + 1):
        seconds = []
        for run in (ours, theirs):
            start = time.process_time()
            run()
            seconds.append(time.process_time() - start)
        ratios.append(seconds[0] / seconds[1])
    return statistics.median(ratios[1:])


if __name__ == "__main__":
    logging.disable(logging.INFO)
    print(tabulate(bench_eval().items(), headers=["figure", "value"], floatfmt=".3f"))
