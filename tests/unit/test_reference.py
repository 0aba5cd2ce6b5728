"""The trainer against a reference from the text of the method, and the draws against their law."""

import copy
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, islice
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode

from mtfixmatch.augmentation import geometry
from mtfixmatch.data.samplers import MixedBatchSampler, build_pools
from mtfixmatch.methods import build_method
from mtfixmatch.tasks import dense_head
from tests.support.engine_helpers import build_trainer, losses_of, run_config, run_step
from tests.support.partial import partial_dataset
from tests.support.reference import IGNORED_PIXEL, Reference, View

STEPS = 4
# Boxes and the weights of images are float32: losses and gradients have errors of a few 1e-7.
TOLERANCE = 1e-6
OPTIONS = (
    # Fast in float64: 50 layers, but few channels.
    *("MODEL.RESNETS.DEPTH", 50, "MODEL.RESNETS.STEM_OUT_CHANNELS", 8),
    *("MODEL.RESNETS.RES2_OUT_CHANNELS", 16, "MODEL.RESNETS.WIDTH_PER_GROUP", 4),
    *("MODEL.FPN.OUT_CHANNELS", 32, "MODEL.FPN.NORM", "", "MODEL.RETINANET.NORM", ""),
    # Coordinates without rounding errors: anchors that overlap a box equally do so in float32 too.
    *("MODEL.ANCHOR_GENERATOR.SIZES", [[8, 12], [16, 24], [24, 32], [32, 48], [48, 56]]),
    *("MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", [[0.25, 1.0, 4.0]]),
    # Small images with objects, and with padding.
    *("INPUT.SCALE_RANGE", (0.4, 0.8)),
    # Images with both labels, one and none.
    *("TASKS.DETECTION.LABELS", 9, "TASKS.SEGMENTATION.LABELS", 8),
    *("DATASETS.LABEL_SUBSETS", "random"),
    # The weight of the unsupervised loss grows in the first two steps. No value is a neutral one.
    *("SOLVER.MAX_ITER", 2 * STEPS, "FIXMATCH.RAMP_UP", 0.25, "FIXMATCH.EMA_DECAY", 0.9),
    *("TASKS.DETECTION.THRESHOLD", 0.5, "TASKS.DETECTION.LOSS_WEIGHT", 0.7),
    *("TASKS.DETECTION.MIN_VISIBLE", 0.8),
    *("TASKS.SEGMENTATION.UNSUPERVISED_WEIGHT", 0.6),
    # A small step and a large weight decay, so that both can be seen.
    *("SOLVER.BASE_LR", 1e-5, "SOLVER.WEIGHT_DECAY", 1.5),
    *("SOLVER.CLIP_GRADIENTS.ENABLED", False),
)
NORMALIZERS = [("image", "batch"), ("batch", "image"), ("running", "batch")]  # boxes, maps
METHODS = [
    ("Supervised", "unlabeled"),  # it has no unsupervised loss
    *((method, on) for method in ("FixMatch", "DenseFixMatch") for on in ("unlabeled", "all")),
]


@dataclass
class Training:
    """A training: networks, batches, and losses by name."""

    student: torch.nn.Module
    teacher: torch.nn.Module
    augment: Any
    batches: Sequence[list[dict]]
    losses: list[dict[str, float]]


@pytest.fixture(autouse=True)
def in_float64(monkeypatch):
    """Compute losses in float64, because steps would multiply the rounding of fvcore's float32."""
    to_float32 = torch.Tensor.float

    def keep_float64(x):
        return x if x.dtype is torch.float64 else to_float32(x)

    def in_own_type(function):
        def call(*args, **kwargs):
            with monkeypatch.context() as patch:
                patch.setattr(torch.Tensor, "float", keep_float64)
                return function(*args, **kwargs)

        return call

    for name in ("sigmoid_focal_loss", "giou_loss"):
        monkeypatch.setattr(dense_head, name, in_own_type(getattr(dense_head, name)))


@pytest.fixture(autouse=True)
def exact_warps(monkeypatch):
    """Warp at positions in float64, since float32 moves some across the border of two pixels."""
    warp = geometry.warp

    def in_float64(images, *args, **kwargs):
        return warp(images.double(), *args, **kwargs).to(images.dtype)

    monkeypatch.setattr(geometry, "warp", in_float64)


def config(root, output, method, on, sampling, normalizers, *opts) -> CfgNode:
    boxes, maps = normalizers
    return run_config(
        root,
        output,
        *OPTIONS,
        *("FIXMATCH.METHOD", method, "DATALOADER.SAMPLING", sampling),
        *("FIXMATCH.UNSUPERVISED_ON", on, "TASKS.DETECTION.NORMALIZER", boxes),
        *("TASKS.SEGMENTATION.NORMALIZER", maps, *opts),
    )


@torch.no_grad()
def prepare(student: torch.nn.Module, teacher: torch.nn.Module, images: torch.Tensor) -> None:
    """Use float64, where rounding decides nothing, and weights that predict all kinds of scores.

    BatchNorm over the few values of a small image multiplies rounding errors in each step; a large
    eps prevents that.
    """
    norms = [x for x in student.modules() if isinstance(x, torch.nn.BatchNorm2d)]
    for norm in [*norms, *(x for x in teacher.modules() if isinstance(x, torch.nn.BatchNorm2d))]:
        norm.eps = 1.0
    for parameter in student.parameters():
        if parameter.dim() == 1:  # biases, and those of norm layers: else 0
            parameter += torch.empty_like(parameter).uniform_(-0.2, 0.2)
    detector = student.heads["detection"].detector.head
    for subnet, last, gain in (
        (detector.cls_subnet, detector.cls_score, 30),
        (detector.bbox_subnet, detector.bbox_pred, 10),
    ):
        subnet[0].weight *= 5
        last.weight *= gain
    detector.cls_score.bias[:] = -4
    student.heads["segmentation"].head.predictor.weight *= 1000
    for norm in norms:  # in evaluation mode, too, features have the statistics of images
        norm.momentum = 1.0
    student.double()(images, {task: [True] * len(images) for task in student.heads})
    for norm in norms:
        norm.momentum = 0.1
    teacher.double().load_state_dict(student.state_dict())


def as_function(augmentation: Any) -> Any:
    """Strong views of images, from the step and their positions."""
    return lambda images, step, positions: augmentation(images, step=step, positions=positions)


def train(cfg: CfgNode, steps: int = STEPS) -> tuple[Training, Training]:
    """The networks before a training by the package, and that training."""
    trainer = build_trainer(cfg)
    student, teacher = trainer._trainer.student, trainer.teacher
    augment = as_function(trainer.method.strong_augmentation)
    batches = list(islice(trainer._trainer.data_loader, steps))
    prepare(student, teacher, torch.stack([item["image"] for item in batches[0]]) / 255)
    before = Training(copy.deepcopy(student), copy.deepcopy(teacher), augment, batches, [])
    losses = []
    for step, batch in enumerate(batches):
        losses.append(losses_of(run_step(trainer, batch, step=step)))
        trainer.scheduler.step()
    return before, Training(student, teacher, augment, batches, losses)


def repeat(
    cfg: CfgNode, before: Training, reference_class: type[Reference] = Reference
) -> Training:
    """The same training by the reference."""
    student, teacher = copy.deepcopy(before.student), copy.deepcopy(before.teacher)
    reference = reference_class(cfg, student, teacher, before.augment)
    losses = [reference.step(step, batch) for step, batch in enumerate(before.batches)]
    return Training(student, teacher, before.augment, before.batches, losses)


def difference(found: Training, expected: Training) -> float:
    """The greatest difference of a loss, on its scale, or of a weight, on that of its tensor."""
    differences = []
    for a, b in zip(found.losses, expected.losses, strict=True):
        assert a.keys() == b.keys()
        differences += [abs(a[name] - b[name]) / (abs(b[name]) or 1) for name in b]
    for network in ("student", "teacher"):
        new, old = (getattr(x, network).state_dict() for x in (found, expected))
        for name in old:
            scale = float(old[name].abs().max()) or 1
            differences.append(float((new[name] - old[name]).abs().max()) / scale)
    return float(np.max(differences))


@pytest.mark.parametrize("normalizers", NORMALIZERS, ids="-".join)
@pytest.mark.parametrize("sampling", ["implicit", "explicit"])
@pytest.mark.parametrize(("method", "on"), METHODS)
def test_steps_are_those_of_the_text(street_root, tmp_path, method, on, sampling, normalizers):
    """All combinations, but UNSUPERVISED_ON for Supervised, which does not read it."""
    cfg = config(street_root, tmp_path, method, on, sampling, normalizers)
    before, found = train(cfg)
    expected = repeat(cfg, before)
    assert difference(found, expected) < TOLERANCE
    for name in found.losses[0]:
        assert max(losses[name] for losses in found.losses) > 0, name


class PartialReference(Reference):
    """The reference for boxes of some classes alone, and for maps that are not finished."""

    def pseudo_labels(self, view: View, valid: torch.Tensor) -> dict[str, Any]:
        """As of an image without them, then without what the labels say."""
        node, labeled = self.cfg.FIXMATCH, view.labeled
        if node.UNSUPERVISED_ON == "all" or node.METHOD == "Supervised":
            return super().pseudo_labels(view, valid)
        is_whole = "detection" in view.targets and labeled is None
        whole = {"detection": view.targets["detection"]} if is_whole else {}
        labels = super().pseudo_labels(view._replace(targets=whole), valid)
        if labeled is not None:
            boxes = labels["detection"].where(~labeled.numpy()[labels["detection"].classes])
            labels |= {"detection": boxes, "labeled": ~labeled}
        if "segmentation" in view.targets:
            left = view.targets["segmentation"] == IGNORED_PIXEL
            labels["segmentation"] = np.where(left, labels["segmentation"], IGNORED_PIXEL)
        return labels

    def sums(self, task: str, outputs: Sequence[torch.Tensor], view: View) -> tuple[Any, ...]:
        """A class without labels has no loss, as one that is surely absent."""
        if task == "detection" and view.labeled is not None:
            outputs = [torch.where(view.labeled, outputs[0], -torch.inf), outputs[1]]
        return super().sums(task, outputs, view)


@pytest.mark.parametrize(("method", "on"), METHODS)
def test_steps_on_labels_for_some_of_the_classes(street_root, tmp_path, method, on):
    with partial_dataset(street_root) as opts:
        cfg = config(street_root, tmp_path, method, on, "explicit", NORMALIZERS[0], *opts)
        before, found = train(cfg, steps=2)
    assert difference(found, repeat(cfg, before, PartialReference)) < TOLERANCE
    items = [item for batch in before.batches for item in batch]
    for task in ("detection", "segmentation"):
        assert any(item["targets"][task] is not None and task in item["partial"] for item in items)
    # The reference for whole labels differs.
    assert difference(found, repeat(cfg, before)) > 5 * TOLERANCE


# Other choices, and values that are close to those of the training.
CHANGES = {
    "TASKS.DETECTION.THRESHOLD": 0.6,
    "TASKS.DETECTION.MIN_VISIBLE": 0.6,
    "TASKS.DETECTION.NORMALIZER": "image",
    "TASKS.DETECTION.LOSS_WEIGHT": 0.71,
    "TASKS.DETECTION.UNSUPERVISED_WEIGHT": 0.99,
    "TASKS.SEGMENTATION.NORMALIZER": "image",
    "FIXMATCH.UNSUPERVISED_ON": "unlabeled",
    "FIXMATCH.RAMP_UP": 0.3,
    "FIXMATCH.EMA_DECAY": 0.91,
    "MODEL.RETINANET.IOU_THRESHOLDS": [0.4, 0.55],
    "MODEL.RETINANET.NMS_THRESH_TEST": 0.45,
    "MODEL.RETINANET.FOCAL_LOSS_ALPHA": 0.26,
    "MODEL.RETINANET.FOCAL_LOSS_GAMMA": 2.01,
    "MODEL.ANCHOR_GENERATOR.OFFSET": 0.5,
    "SOLVER.BASE_LR": 1.03e-5,
    "SOLVER.MOMENTUM": 0.89,
    "SOLVER.POLY_LR_POWER": 2.0,
    "SOLVER.WEIGHT_DECAY": 1.45,
}


def test_the_comparison_sees_a_change_of_each_value(street_root, tmp_path):
    combination = ("DenseFixMatch", "all", "explicit", ("running", "batch"))
    cfg = config(street_root, tmp_path, *combination)
    before, found = train(cfg, steps=2)
    seen = {}
    for key, value in CHANGES.items():
        changed = cfg.clone()
        changed.merge_from_list([key, value])
        assert changed.dump() != cfg.dump(), key
        seen[key] = difference(found, repeat(changed, before))
    assert min(seen.values()) > 5 * TOLERANCE, seen


def p_value(counts: Sequence[int]) -> float:
    """Probability of a chi-square as large as that of counts with equal expectations."""
    counts = torch.tensor(counts, dtype=torch.float64)
    chi_square = ((counts - counts.mean()) ** 2 / counts.mean()).sum()
    return float(torch.special.gammaincc(torch.tensor((len(counts) - 1) / 2.0), chi_square / 2))


def test_p_values_by_hand():
    # A table of the chi-square distribution: 10.828 with 1 degree of freedom, 34.528 with 13.
    assert p_value([50, 50]) == 1
    deviation = (10.828 * 100 / 2) ** 0.5  # of two counts: 2 * deviation^2 / 100 is the chi-square
    assert p_value([100 + deviation, 100 - deviation]) == pytest.approx(0.001, rel=1e-3)
    deviation = (34.528 * 100 / 14) ** 0.5
    assert p_value([100 + deviation, 100 - deviation] * 7) == pytest.approx(0.001, rel=1e-3)


def draws(sampling, labeled=(0, 1, 2, 3), number=12, batches=6000):
    """Count (image, position in the batch) over batches of 4 images."""
    records = [{"label": 1} if i in labeled else {} for i in range(number)]
    pools, counts = build_pools(
        records,
        {"task": "label"},
        sampling=sampling,
        labeled="any",
        batch_size=4,
        labeled_per_batch=2,
    )
    sampler = MixedBatchSampler(pools=pools, counts=counts, seed=5)
    return pools, Counter(x[::2] for batch in islice(sampler, batches) for x in batch)


@pytest.mark.parametrize("sampling", ["uniform", "implicit", "explicit"])
def test_every_image_is_drawn_equally_often_at_every_position(sampling):
    pools, counts = draws(sampling)
    images = {"uniform": [4], "implicit": [12], "explicit": [4, 8]}[sampling]
    assert [len(pool) for pool in pools] == images
    positions = {"uniform": [4], "implicit": [4], "explicit": [2, 2]}[sampling]
    first = 0
    for pool, width in zip(pools, positions, strict=True):
        places = range(first, first + width)
        assert p_value([counts[i, place] for i in pool for place in places]) > 0.001
        first += width
    assert sum(counts.values()) == 4 * 6000


def test_an_image_that_is_drawn_twice_as_often_is_found():
    sampler = MixedBatchSampler(pools=[[*range(12), 7]], counts=[4], seed=5)
    counts = Counter(draw.index for batch in islice(sampler, 300) for draw in batch)
    assert p_value([counts[i] for i in range(12)]) < 0.001


@pytest.mark.parametrize(("method", "number"), [("FixMatch", 9), ("DenseFixMatch", 14)])
def test_every_operation_and_every_pair_is_drawn_equally_often(
    street_root, tmp_path, method, number
):
    cfg = config(street_root, tmp_path, method, "all", "implicit", NORMALIZERS[0])
    augment = build_method(cfg).strong_augmentation
    drawn = [augment._draw_operations(step) for step in range(10000)]
    names = sorted(augment.operations)
    assert len(names) == number
    for place in (0, 1):
        counts = Counter(operations[place] for operations in drawn)
        assert p_value([counts[name] for name in names]) > 0.001
    pairs = Counter(tuple(sorted(operations)) for operations in drawn)
    assert p_value([pairs[pair] for pair in combinations(names, 2)]) > 0.001
    assert sum(pairs[pair] for pair in combinations(names, 2)) == len(drawn)
