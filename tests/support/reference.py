"""One training step from the text of the method, in plain and slow float64 (paper Sec. 3).

It shares no function with the package. From there come only the items of the loader, the forward
passes of both networks, and the drawn strong views: pixels, matrices and masks of Cutout.

Points are (x, y) in corner coordinates: pixel i spans [i, i + 1]. K classes, R anchors, M boxes.
"""

import math
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from torch import Tensor, nn

IGNORED_PIXEL = 255
STRIDES = (8, 16, 32, 64, 128)  # of P3-P7
MOST_GROWTH = math.log(1000 / 16)  # of a decoded box over its anchor, as in Detectron2
PARTS = {"detection": ("cls", "box"), "segmentation": ("ce",)}  # of the losses


class Boxes(NamedTuple):
    corners: np.ndarray  # (M, 4): x0, y0, x1, y1
    classes: np.ndarray  # (M,)
    ignored: np.ndarray  # (M,) bool

    def where(self, mask: np.ndarray) -> "Boxes":
        return Boxes(*(values[mask] for values in self))


class View(NamedTuple):
    image: Tensor  # (3, H, W)
    targets: dict[str, Any]  # task -> Boxes, or a map (H, W) of classes
    is_pseudo: bool
    labeled: Tensor | None = None  # (K,) bool, the classes that its boxes are for; None: all


def weak_view(item: dict) -> View:
    """The weak view of an item of the loader, with its labels."""
    boxes, labels = (item["targets"][task] for task in PARTS)
    targets: dict[str, Any] = {}
    if boxes is not None:
        fields = (boxes.gt_boxes.tensor.double(), boxes.gt_classes, boxes.gt_ignore)
        targets["detection"] = Boxes(*(x.numpy() for x in fields))
    if labels is not None:
        targets["segmentation"] = labels.numpy()
    return View(item["image"] / 255, targets, False, getattr(boxes, "labeled", None))


def areas(corners: np.ndarray) -> np.ndarray:
    return (corners[:, 2:] - corners[:, :2]).prod(axis=1)


def warp_boxes(boxes: Boxes, matrix: np.ndarray, cfg: CfgNode) -> Boxes:
    """The bounds of the warped corners, clipped, and ignored where little of them is inside."""
    corners = np.stack([boxes.corners.T[[x, y]] for x in (0, 2) for y in (1, 3)])  # (4, 2, M)
    points = np.einsum("ij,cjm->cim", matrix[:2, :2], corners) + matrix[:2, 2:]
    bounds = np.concatenate([points.min(axis=0), points.max(axis=0)]).T
    clipped = bounds.clip(0, 2 * list(cfg.INPUT.TRAIN_SIZE[::-1]))
    hidden = areas(clipped) < cfg.TASKS.DETECTION.MIN_VISIBLE * areas(bounds)
    return Boxes(clipped, boxes.classes, boxes.ignored | hidden).where(areas(clipped) > 0)


def pixel_centers(size: Sequence[int]) -> np.ndarray:
    return np.stack(np.meshgrid(np.arange(size[1]) + 0.5, np.arange(size[0]) + 0.5))  # (2, H, W)


def warp_map(labels: np.ndarray, matrix: np.ndarray, erased: np.ndarray) -> np.ndarray:
    """A pixel takes the label at the source of its center; ignored: outside, under Cutout."""
    centers = pixel_centers(labels.shape) - matrix[:2, 2, None, None]
    points = np.einsum("ij,jhw->ihw", np.linalg.inv(matrix[:2, :2]), centers)
    columns, rows = np.floor(points).astype(int)
    (height, width), warped = labels.shape, np.full_like(labels, IGNORED_PIXEL)
    inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height) & ~erased
    warped[inside] = labels[rows[inside], columns[inside]]
    return warped


def make_anchors(cfg: CfgNode) -> np.ndarray:
    """(R, 4), in the order level, row, column, size, ratio of height and width."""
    node, anchors = cfg.MODEL.ANCHOR_GENERATOR, []
    for stride, sides in zip(STRIDES, node.SIZES, strict=True):
        rows, columns = (range(math.ceil(side / stride)) for side in cfg.INPUT.TRAIN_SIZE)
        for row, column, side, ratio in product(rows, columns, sides, node.ASPECT_RATIOS[0]):
            x, y = (column + node.OFFSET) * stride, (row + node.OFFSET) * stride
            w, h = side / math.sqrt(ratio), side * math.sqrt(ratio)
            anchors.append([x - w / 2, y - h / 2, x + w / 2, y + h / 2])
    return np.array(anchors)


def intersections(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    sides = np.minimum(a[:, None, 2:], b[:, 2:]) - np.maximum(a[:, None, :2], b[:, :2])
    return sides.clip(0).prod(axis=2)


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    both = intersections(a, b)
    return both / (areas(a)[:, None] + areas(b)[None] - both)


def decode(deltas: Tensor, anchors: np.ndarray) -> Tensor:
    """Boxes (R, 4) from deltas (R, 4): shift of the center and logarithm of the growth."""
    corners = torch.from_numpy(anchors)
    sides = corners[:, 2:] - corners[:, :2]
    centers = (corners[:, 2:] + corners[:, :2]) / 2 + deltas[:, :2] * sides
    half = sides * deltas[:, 2:].clamp(max=MOST_GROWTH).exp() / 2
    return torch.cat([centers - half, centers + half], dim=1)


def assign(boxes: Boxes, anchors: np.ndarray, background: int, cfg: CfgNode) -> list[Tensor]:
    """The class of each anchor (R,), `background` or -1 for ignored; its box (R, 4)."""
    objects, ignored = boxes.where(~boxes.ignored), boxes.where(boxes.ignored)
    classes, matched = np.full(len(anchors), background), np.zeros_like(anchors)
    if len(objects.classes):
        low, high = cfg.MODEL.RETINANET.IOU_THRESHOLDS
        overlaps = iou(objects.corners, anchors)
        best, most = overlaps.argmax(axis=0), overlaps.max(axis=0)
        matched, classes[most >= low] = objects.corners[best], -1
        # The anchors that overlap a box most are positive, however little that is.
        positive = (most >= high) | (overlaps == overlaps.max(axis=1)[:, None]).any(axis=0)
        classes[positive] = objects.classes[best[positive]]
    if len(ignored.classes):
        covered = intersections(ignored.corners, anchors).max(axis=0) / areas(anchors)
        classes[(classes == background) & (covered > 0.5)] = -1
    return [torch.from_numpy(classes), torch.from_numpy(matched)]


def pseudo_boxes(logits: Tensor, deltas: Tensor, anchors: np.ndarray, cfg: CfgNode) -> Boxes:
    """Predictions over the threshold, best first, after suppression within each class."""
    scores = logits.double().sigmoid().numpy()
    rows, classes = np.nonzero(scores > cfg.TASKS.DETECTION.THRESHOLD)
    order = np.argsort(-scores[rows, classes])
    rows, classes = rows[order], classes[order]
    corners = decode(deltas.double()[rows], anchors[rows]).numpy()
    is_same = iou(corners, corners) > cfg.MODEL.RETINANET.NMS_THRESH_TEST
    is_same &= classes[:, None] == classes
    kept: list[int] = []
    for i in range(len(rows)):
        if not is_same[i, kept].any() and len(kept) < cfg.TEST.DETECTIONS_PER_IMAGE:
            kept.append(i)
    corners = corners[kept].clip(0, 2 * list(cfg.INPUT.TRAIN_SIZE[::-1]))
    ignored = np.zeros(len(kept), dtype=bool)
    return Boxes(corners, classes[kept], ignored).where(areas(corners) > 0)


def full_size(logits: Tensor) -> Tensor:
    """The map logits of an image (K, H / 4, W / 4) at its size."""
    return F.interpolate(logits[None], scale_factor=4, mode="bilinear")[0]


def pseudo_map(logits: Tensor, valid: Tensor) -> np.ndarray:
    """The most likely class of each pixel, ignored outside the box `valid`, in padding."""
    classes = full_size(logits).argmax(dim=0).numpy()
    (x, y), (x0, y0, x1, y1) = pixel_centers(classes.shape), valid.tolist()
    return np.where((x0 <= x) & (x < x1) & (y0 <= y) & (y < y1), classes, IGNORED_PIXEL)


def focal_loss(logits: Tensor, classes: Tensor, cfg: CfgNode) -> Tensor:
    """The sum over anchors and classes, of logits (R, K)."""
    node, is_class = cfg.MODEL.RETINANET, classes[:, None] == torch.arange(logits.shape[1])
    log_p = F.logsigmoid(torch.where(is_class, logits, -logits))
    share = torch.where(is_class, node.FOCAL_LOSS_ALPHA, 1 - node.FOCAL_LOSS_ALPHA)
    return -(share * (1 - log_p.exp()) ** node.FOCAL_LOSS_GAMMA * log_p).sum()


def giou_loss(a: Tensor, b: Tensor) -> Tensor:
    """The sum over pairs of boxes, (M, 4) each."""
    low, high = torch.minimum(a, b), torch.maximum(a, b)
    both = (low[:, 2:] - high[:, :2]).clamp(min=0).prod(dim=1)
    union = sum((x[:, 2:] - x[:, :2]).prod(dim=1) for x in (a, b)) - both
    hull = (high[:, 2:] - low[:, :2]).prod(dim=1)
    return (1 - both / union + (hull - union) / hull).sum()


class Reference:
    """A training: both networks, which its steps change; the package's strong augmentation."""

    def __init__(self, cfg: CfgNode, student: nn.Module, teacher: nn.Module, augment: Callable):
        self.cfg, self.student, self.teacher, self.augment = cfg, student, teacher, augment
        self.anchors = make_anchors(cfg)
        self.velocity: dict[str, Tensor] = {}
        self.running = [100.0, 100.0]  # mean numbers of positives, without and with pseudo-labels

    def step(self, number: int, items: Sequence[dict]) -> dict[str, float]:
        """Train on the items of a batch, and return the losses by name."""
        weak = [weak_view(item) for item in items]
        labeled = [view for view in weak if view.targets]
        losses = self.losses(labeled + self.strong_views(number, weak, items))
        total = sum(self.weight(name, number) * loss for name, loss in losses.items())
        self.update_student(number, total)
        self.update_teacher()
        return {name: float(x.detach()) for name, x in {**losses, "total_loss": total}.items()}

    def strong_views(self, number: int, weak: Sequence[View], items: Sequence[dict]) -> list[View]:
        """The strong views of the images with pseudo-labels, which move along."""
        pseudo = [self.pseudo_labels(view, x["valid"]) for view, x in zip(weak, items, strict=True)]
        chosen, views = [i for i, labels in enumerate(pseudo) if labels], []
        if chosen:
            images = torch.stack([weak[i].image for i in chosen])
            strong = self.augment(images, number, [items[i]["draw"].position for i in chosen])
        for n, i in enumerate(chosen):
            matrix, erased, targets = strong.matrices[n].numpy(), strong.erased[n].numpy(), {}
            if "detection" in pseudo[i]:
                targets["detection"] = warp_boxes(pseudo[i]["detection"], matrix, self.cfg)
            if "segmentation" in pseudo[i]:
                targets["segmentation"] = warp_map(pseudo[i]["segmentation"], matrix, erased)
            views.append(View(strong.images[n], targets, True, pseudo[i].get("labeled")))
        return views

    @torch.no_grad()
    def pseudo_labels(self, view: View, valid: Tensor) -> dict[str, Any]:
        """The teacher's labels for the tasks that the image has none for, or for all tasks."""
        node, labels = self.cfg.FIXMATCH, {}
        on_all, semi = node.UNSUPERVISED_ON == "all", node.METHOD != "Supervised"
        tasks = [t for t in self.cfg.MODEL.TASKS if semi and (on_all or t not in view.targets)]
        outputs, _ = self.teacher(view.image[None], {task: [True] for task in tasks})
        if "detection" in tasks:
            logits, deltas = (output[0] for output in outputs["detection"])
            labels["detection"] = pseudo_boxes(logits, deltas, self.anchors, self.cfg)
        if "segmentation" in tasks:
            labels["segmentation"] = pseudo_map(outputs["segmentation"][0][0], valid)
        return labels

    def losses(self, views: Sequence[View]) -> dict[str, Tensor]:
        """Eq. 3 and 4, from ONE pass in which a head sees the views with a target for its task."""
        tasks = self.cfg.MODEL.TASKS
        kinds = [False] if self.cfg.FIXMATCH.METHOD == "Supervised" else [False, True]
        seen = {task: [view for view in views if task in view.targets] for task in tasks}
        masks = {task: [task in view.targets for view in views] for task in tasks if seen[task]}
        outputs, _ = self.student(torch.stack([view.image for view in views]), masks)
        losses: dict[str, Tensor] = {}
        for task, is_pseudo in product(tasks, kinds):
            rows = [i for i, view in enumerate(seen[task]) if view.is_pseudo == is_pseudo]
            sums = [self.sums(task, [x[i] for x in outputs[task]], seen[task][i]) for i in rows]
            weights = self.image_weights(task, is_pseudo, [count for *_, count in sums])
            for n, part in enumerate(PARTS[task]):
                name = f"loss_{task}_{part}" + ("_unsup" if is_pseudo else "")
                terms = [w * x[n] for w, x in zip(weights, sums, strict=True)]
                losses[name] = sum(terms, torch.tensor(0.0))
        return losses

    def sums(self, task: str, outputs: Sequence[Tensor], view: View) -> tuple[Any, ...]:
        """The losses of an image, each summed over its elements, and their number at the end."""
        if task == "segmentation":
            labels = torch.from_numpy(view.targets[task]).long()
            valid = labels != IGNORED_PIXEL
            log_p = full_size(outputs[0]).double().log_softmax(dim=0)[:, valid]
            return -log_p.gather(0, labels[valid][None]).sum(), int(valid.sum())
        logits, deltas = (output.double() for output in outputs)
        background = logits.shape[1]  # K, after the classes
        classes, matched = assign(view.targets[task], self.anchors, background, self.cfg)
        positive = (classes >= 0) & (classes < background)
        used = positive if view.is_pseudo else classes >= 0  # no background of pseudo-labels
        box = giou_loss(decode(deltas[positive], self.anchors[positive.numpy()]), matched[positive])
        return focal_loss(logits[used], classes[used], self.cfg), box, int(positive.sum())

    def image_weights(self, task: str, is_pseudo: bool, counts: Sequence[int]) -> list[float]:
        """What the sum over an image's elements is multiplied with, for each image."""
        kind = self.cfg.TASKS[task.upper()].NORMALIZER
        if kind == "image":
            return [1 / max(count, 1) / len(counts) for count in counts]
        divisor: float = max(sum(counts), 1)
        if kind == "running" and counts:
            divisor = self.running[is_pseudo] = 0.9 * self.running[is_pseudo] + 0.1 * divisor
        return [1 / divisor] * len(counts)

    def weight(self, name: str, number: int) -> float:
        """Gamma_t of Eq. 5; with lambda_t, which grows to 1 in the first steps."""
        node = self.cfg.TASKS[name.split("_")[1].upper()]
        progress = number / (self.cfg.FIXMATCH.RAMP_UP * self.cfg.SOLVER.MAX_ITER)
        ramp = node.UNSUPERVISED_WEIGHT * math.exp(-5 * (1 - min(progress, 1)) ** 2)
        return node.LOSS_WEIGHT * (ramp if name.endswith("_unsup") else 1)

    def update_student(self, number: int, total: Tensor) -> None:
        """Stochastic gradient descent with Nesterov's momentum and a polynomial learning rate."""
        node = self.cfg.SOLVER
        rate = node.BASE_LR * (1 - number / node.MAX_ITER) ** node.POLY_LR_POWER
        names, values = zip(*self.student.named_parameters(), strict=True)
        gradients = torch.autograd.grad(total, values, allow_unused=True)
        for name, x, gradient in zip(names, values, gradients, strict=True):
            step = self.decay(name) * x.detach() + (0 if gradient is None else gradient)
            self.velocity[name] = node.MOMENTUM * self.velocity.get(name, 0) + step
            x.data -= rate * (step + node.MOMENTUM * self.velocity[name])

    def decay(self, name: str) -> float:
        """The weight decay of a parameter; norm layers have none."""
        module = self.student.get_submodule(name.rpartition(".")[0])
        return 0.0 if isinstance(module, nn.BatchNorm2d) else self.cfg.SOLVER.WEIGHT_DECAY

    def update_teacher(self) -> None:
        """The exponential moving average of parameters and buffers; counters are copied."""
        decay, new = self.cfg.FIXMATCH.EMA_DECAY, self.student.state_dict()
        for name, old in self.teacher.state_dict().items():
            average = decay * old + (1 - decay) * new[name]
            old.copy_(average if old.is_floating_point() else new[name])
