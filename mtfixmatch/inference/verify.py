"""Compare an exported network with the one in PyTorch, on images of three sizes each."""

from collections.abc import Callable, Sequence

import cv2
import numpy as np
import torch
from tabulate import tabulate
from torch import Tensor

from ..street.scene import draw_scene
from ..tasks import Task
from ..tasks.exported import Difference, Exports
from ..utils.errors import InputError

Run = Callable[[Tensor], dict[str, Exports]]  # images (N, 3, H, W) uint8 RGB -> task -> exports

LONGEST = 1024  # greatest side of a compared image, in pixels
SCALES = (1, 0.7, 0.45)
SCENES = 3  # generated images where the caller has none


def generated_images() -> list[np.ndarray]:
    """Return scenes of streets, (H, W, 3) uint8 RGB."""
    return [draw_scene(np.random.default_rng(i), 512, 256).rgb for i in range(SCENES)]


def compare(
    tasks: Sequence[Task], expected: Run, exported: Run, images: Sequence[np.ndarray]
) -> dict[str, list[Difference]]:
    """Return task -> differences over all images, each at three sizes, the first twice in a batch.

    Args:
        tasks: tasks of both networks.
        expected: the network in PyTorch, or another one to compare with.
        exported: the exported network.
        images: at least one image, (H, W, 3) uint8 RGB.
    """
    batches = [view for image in images for view in _views(image)]
    batches[0] = torch.cat([batches[0], batches[0].flip(3)])
    total: dict[str, list[Difference]] = {}
    for batch in batches:
        sides = expected(batch), exported(batch)
        for task in tasks:
            new = task.export_differences(*(side[task.name] for side in sides))
            known = total.get(task.name)
            total[task.name] = [a + b for a, b in zip(known, new, strict=True)] if known else new
    return total


def _views(image: np.ndarray) -> list[Tensor]:
    """Return an image at three sizes, (1, 3, H, W); sides of the smaller ones are odd."""
    factor = min(LONGEST / max(image.shape[:2]), 1)
    views = []
    for scale in SCALES:
        height, width = (round(side * factor * scale) | (scale < 1) for side in image.shape[:2])
        view = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
        views.append(torch.from_numpy(np.ascontiguousarray(view.transpose(2, 0, 1)))[None])
    return views


def difference_table(differences: dict[str, list[Difference]]) -> str:
    """Return a table with a row for each difference."""
    rows = [
        [task, x.name, f"{x.value:.2g}", f"{x.tolerance:.2g}", x.total]
        for task, own in differences.items()
        for x in own
    ]
    headers = ["task", "difference", "value", "tolerance", "compared"]
    return tabulate(rows, headers=headers, tablefmt="pipe", disable_numparse=True)


def check_differences(differences: dict[str, list[Difference]], path: str) -> None:
    """Raise InputError, with the file that is not written, if rounding does not explain them."""
    for task, own in differences.items():
        for x in own:
            if not x.is_rounding:
                figures = f"{x.name} {x.value:.3g} of {x.total}, tolerance {x.tolerance:.3g}"
                problem = f"{task} differs from the network in PyTorch ({figures})"
                raise InputError(f"{path} is not written: {problem}")
