"""The strong augmentation: RandAugment, flip and Cutout on a batch (paper Sec. 3, Table 10).

The strong view is made from the weak one, so one matrix per image warps every pseudo-label from the
weak view to the strong one. Geometric operations that follow each other are one warp of the pixels,
and the matrix is the product of them all.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import kornia.enhance as enhance
import numpy as np
import torch
from detectron2.config import configurable
from torch import Tensor

from ..utils.devices import to_device
from . import geometry
from .geometry import Size

# Random streams: operations of a batch, keyed on (seed, step); parameters of an image, keyed on
# (seed, step, position).
_OPERATIONS, _PARAMETERS = 101, 102


@dataclass
class StrongView:
    """A batch after the strong augmentation.

    Attributes:
        images: (N, 3, H, W) RGB in [0, 1].
        matrices: (N, 3, 3) affine, weak view to strong view, in corner coordinates.
        erased: (N, H, W) bool, the pixels under Cutout.
        ignore_erased: whether these pixels are ignored in pseudo-maps.
    """

    images: Tensor
    matrices: Tensor
    erased: Tensor
    ignore_erased: bool


def auto_contrast(images: Tensor) -> Tensor:
    """Stretch each channel of images (N, 3, H, W) to [0, 1]; a constant channel is unchanged."""
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    return torch.where(high > low, enhance.normalize_min_max(images, eps=1e-12), images)


# name -> (function of images and one parameter per image, range of it); None: no parameter.
PHOTOMETRIC: dict[str, tuple[Callable[..., Tensor], tuple[float, float] | None]] = {
    "autocontrast": (auto_contrast, None),
    "equalize": (enhance.equalize, None),
    "invert": (lambda images: enhance.invert(images, images.new_ones(1)), None),
    "solarize": (enhance.solarize, (0.1, 1.0)),
    "posterize": (lambda images, bits: enhance.posterize(images, bits.long()), (4, 9)),
    "saturation": (enhance.adjust_saturation_with_gray_subtraction, (0.1, 1.9)),
    "contrast": (enhance.adjust_contrast_with_mean_subtraction, (0.1, 1.9)),
    "brightness": (enhance.adjust_brightness_accumulative, (0.1, 1.9)),
    "sharpness": (enhance.sharpness, (0.1, 1.9)),
}

# name -> (matrix of a parameter and the image size, range of it in degrees or share of the side).
GEOMETRIC: dict[str, tuple[Callable[[float, Size], Tensor], tuple[float, float]]] = {
    "shear_x": (lambda v, size: geometry.about_center(geometry.shear(v, 0), size), (-17, 17)),
    "shear_y": (lambda v, size: geometry.about_center(geometry.shear(0, v), size), (-17, 17)),
    "translate_x": (lambda v, size: geometry.translation(v * size[1], 0), (-0.15, 0.15)),
    "translate_y": (lambda v, size: geometry.translation(0, v * size[0]), (-0.15, 0.15)),
    "rotate": (lambda v, size: geometry.about_center(geometry.rotation(v), size), (-30, 30)),
}


class StrongAugmentation:
    """RandAugment with the ranges of Table 10, a horizontal flip, and one Cutout square per image.

    The operations are a function of (seed, step), the same for all images and ranks; their
    parameters are a function of (seed, step, position in the global batch).
    """

    @configurable
    def __init__(
        self,
        *,
        operations: Sequence[str],
        num_operations: int,
        photometric_first: bool = False,
        flip_prob: float,
        cutout_area: tuple[float, float],
        ignore_erased: bool = True,
        fill: Sequence[float],
        seed: int,
    ):
        """Set the pool of operations and their ranges.

        Args:
            operations: names of operations in PHOTOMETRIC and GEOMETRIC.
            num_operations: number of operations per batch, drawn without replacement.
            photometric_first: apply geometric operations last, so that pixels are resampled once.
            flip_prob: probability of a horizontal flip.
            cutout_area: least and greatest area of Cutout as a share of the image; (0, 0) turns it
                off.
            ignore_erased: ignore the pixels under Cutout in pseudo-maps.
            fill: color of pixels from outside the weak view, RGB in [0, 1].
            seed: seed of all draws.

        Raises:
            ValueError: an operation is unknown, or `num_operations` is more than there are.
        """
        unknown = sorted(set(operations) - set(PHOTOMETRIC) - set(GEOMETRIC))
        if unknown or num_operations > len(operations):
            raise ValueError(f"cannot draw {num_operations} operations of {list(operations)}")
        self.operations = list(operations)
        self.num_operations = num_operations
        self.photometric_first = photometric_first
        self.flip_prob = flip_prob
        self.cutout_area = cutout_area
        self.ignore_erased = ignore_erased
        self.fill = torch.tensor(fill).view(1, 3, 1, 1)
        self.seed = seed

    @classmethod
    def from_config(cls, cfg, *, geometric: bool):
        """Read FIXMATCH.STRONG.

        Args:
            cfg: config of the training.
            geometric: include geometric operations and the flip; an invariant method has none
                (paper Sec. 3).
        """
        node, mean = cfg.FIXMATCH.STRONG, [x / 255 for x in cfg.MODEL.PIXEL_MEAN]
        ignoring = ("always", "geometric") if geometric else ("always",)
        return {
            "operations": [*PHOTOMETRIC, *(GEOMETRIC if geometric else ())],
            "num_operations": node.NUM_OPERATIONS,
            "photometric_first": node.ORDER == "photometric_first",
            "flip_prob": node.FLIP_PROB if geometric else 0.0,
            "cutout_area": tuple(node.CUTOUT_AREA),
            "ignore_erased": node.IGNORE_ERASED in ignoring,
            "fill": mean if node.FILL == "mean" else [0.0, 0.0, 0.0],
            "seed": cfg.SEED,
        }

    def __call__(self, images: Tensor, *, step: int, positions: Sequence[int]) -> StrongView:
        """Augment a batch.

        Args:
            images: weak views, (N, 3, H, W) RGB in [0, 1].
            step: training step.
            positions: position of each image in the global batch.
        """
        size = (images.shape[2], images.shape[3])
        rngs = [np.random.default_rng([self.seed, step, p, _PARAMETERS]) for p in positions]
        names = self._draw_operations(step)
        drawn = [_parameters(name, rngs) for name in names]
        flips = _flip([rng.random() < self.flip_prob for rng in rngs], size)
        squares = _cutout_squares(self.cutout_area, size, rngs)
        # The parameters of all images and operations go to a GPU in one copy.
        columns = torch.tensor(drawn, dtype=torch.float64).view(len(names), len(images)).T
        block = torch.cat([columns, squares], dim=1).to(images.dtype)
        on_device = to_device(block, images.device)
        unmoved = geometry.identity().repeat(len(images), 1, 1)
        matrices = pending = unmoved  # pending: of operations whose warp is not yet done
        for i, name in enumerate(names):
            if name in PHOTOMETRIC:
                images = _photometric(name, self._warp(images, pending), on_device[:, i])
                pending = unmoved
            else:
                matrix = _geometric(name, size, drawn[i])
                matrices, pending = matrix @ matrices, matrix @ pending
        images = self._warp(images, flips @ pending)
        erased = geometry.pixels_inside(on_device[:, len(names) :], size)
        images = images.masked_fill(erased[:, None], 0.5)
        return StrongView(images, flips @ matrices, erased, self.ignore_erased)

    def _warp(self, images: Tensor, matrices: Tensor) -> Tensor:
        if torch.equal(matrices, geometry.identity().expand_as(matrices)):
            return images
        size = (images.shape[2], images.shape[3])
        return geometry.warp(images, matrices, size, mode="bilinear", fill=self.fill)

    def _draw_operations(self, step: int) -> list[str]:
        rng = np.random.default_rng([self.seed, step, _OPERATIONS])
        names = list(rng.choice(self.operations, self.num_operations, replace=False))
        return sorted(names, key=GEOMETRIC.__contains__) if self.photometric_first else names


def _parameters(name: str, rngs: list[np.random.Generator]) -> list[float]:
    """Draw the parameter of an operation for each image; 0 for one without a parameter."""
    limits = (PHOTOMETRIC[name] if name in PHOTOMETRIC else GEOMETRIC[name])[1]
    return [0.0 if limits is None else rng.uniform(*limits) for rng in rngs]


def _photometric(name: str, images: Tensor, parameters: Tensor) -> Tensor:
    function, limits = PHOTOMETRIC[name]
    return function(images) if limits is None else function(images, parameters)


def _geometric(name: str, size: Size, parameters: Sequence[float]) -> Tensor:
    function, _ = GEOMETRIC[name]
    return torch.stack([function(parameter, size) for parameter in parameters])


def _flip(flips: list[bool], size: Size) -> Tensor:
    flipped = geometry.horizontal_flip(size[1])
    return torch.stack([flipped if flip else geometry.identity() for flip in flips])


def _cutout_squares(
    area: tuple[float, float], size: Size, rngs: list[np.random.Generator]
) -> Tensor:
    """Draw one square inside each image, boxes (N, 4) in whole pixels."""
    height, width = size
    boxes = []
    for rng in rngs:
        side = round((rng.uniform(*area) * height * width) ** 0.5)
        side = min(side, height, width)
        top, left = rng.integers(height - side + 1), rng.integers(width - side + 1)
        boxes.append([left, top, left + side, top + side])
    return torch.tensor(boxes, dtype=torch.float64).view(-1, 4)
