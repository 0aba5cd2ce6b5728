"""Warp an image, its label map and its boxes by one 3x3 matrix.

This package uses *corner* coordinates, as Detectron2 does for boxes: an image of width W spans
[0, W], pixel i covers [i, i + 1], and its center is at i + 0.5. These are also the coordinates of
`grid_sample(align_corners=False)`, so a flipped box is the extent of the flipped mask.

A matrix maps points of the source, as column vectors, to points of the destination.
"""

import math
from collections.abc import Sequence

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..utils.devices import to_device

Size = tuple[int, int]  # (height, width) in pixels


def identity() -> Tensor:
    """Return the identity matrix, (3, 3) float64."""
    return torch.eye(3, dtype=torch.float64)


def scaling(x: float, y: float) -> Tensor:
    """Return the matrix of a scaling about the origin, (3, 3)."""
    return torch.diag(torch.tensor([x, y, 1.0], dtype=torch.float64))


def translation(x: float, y: float) -> Tensor:
    """Return the matrix of a translation by (x, y) pixels, (3, 3)."""
    matrix = identity()
    matrix[0, 2], matrix[1, 2] = x, y
    return matrix


def rotation(degrees: float) -> Tensor:
    """Return the matrix of a rotation about the origin, clockwise on the screen, (3, 3)."""
    matrix = identity()
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    matrix[:2, :2] = torch.tensor([[cos, -sin], [sin, cos]], dtype=torch.float64)
    return matrix


def shear(x_degrees: float, y_degrees: float) -> Tensor:
    """Return the matrix of a shear about the origin by angles along x and y, (3, 3)."""
    matrix = identity()
    matrix[0, 1] = math.tan(math.radians(x_degrees))
    matrix[1, 0] = math.tan(math.radians(y_degrees))
    return matrix


def horizontal_flip(width: float) -> Tensor:
    """Return the matrix of the flip x -> width - x, (3, 3)."""
    return translation(width, 0) @ scaling(-1, 1)


def about_center(matrix: Tensor, size: Size) -> Tensor:
    """Return the matrix of the same transform about the center of an image of `size`."""
    height, width = size
    return translation(width / 2, height / 2) @ matrix @ translation(-width / 2, -height / 2)


def _normalized(size: Size) -> Tensor:
    """Return the matrix from corner coordinates to grid_sample's [-1, 1]."""
    height, width = size
    return translation(-1, -1) @ scaling(2 / width, 2 / height)


def warp(images: Tensor, matrices: Tensor, size: Size, *, mode: str, fill: Tensor) -> Tensor:
    """Warp images by their matrices.

    Args:
        images: (N, C, H, W) float.
        matrices: (N, 3, 3) affine, source to destination, in corner coordinates.
        size: (height, width) of the destination.
        mode: "bilinear" or "nearest".
        fill: value of pixels outside the source, broadcastable to (N, C, 1, 1).

    Returns:
        (N, C, height, width), of the dtype of `images`.
    """
    source = _normalized((images.shape[-2], images.shape[-1]))
    to_source = source @ torch.linalg.inv(_normalized(size) @ matrices.double().cpu())
    theta = to_device(to_source[:, :2].to(images.dtype), images.device)
    grid = F.affine_grid(theta, [len(images), images.shape[1], *size], align_corners=False)
    fill = to_device(fill.to(images.dtype), images.device)
    # grid_sample pads with zeros: shift the fill value to zero and back.
    warped = F.grid_sample(images - fill, grid, mode=mode, align_corners=False) + fill
    if size == tuple(images.shape[-2:]):
        # Rounding errors of the grid would blur an image that does not move.
        still = (matrices.cpu() == identity()).all(dim=2).all(dim=1)
        for i in still.nonzero().flatten().tolist():
            warped[i] = images[i]
    return warped


def warp_pixels(
    pixels: np.ndarray, matrix: Tensor, size: Size, fill: Sequence[float]
) -> np.ndarray:
    """Warp an image of bytes bilinearly.

    The result is within one grey level of `warp` and takes a tenth of the time: OpenCV reads only
    the pixels that the view shows, and as bytes.

    Args:
        pixels: (H, W, C) uint8.
        matrix: (3, 3) affine, source to destination, in corner coordinates.
        size: (height, width) of the destination.
        fill: C values in 0-255 of pixels outside the source.

    Returns:
        (height, width, C) uint8.
    """
    # OpenCV's coordinates are 0 at the center of the first pixel, which is at .5 here.
    centers = (translation(-0.5, -0.5) @ matrix.double() @ translation(0.5, 0.5)).numpy()
    return cv2.warpAffine(
        pixels,
        centers[:2],
        size[::-1],
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=tuple(fill),
    )


def warp_map(label_map: Tensor, matrix: Tensor, size: Size, *, ignore: int) -> Tensor:
    """Warp a label map (H, W) of integers by nearest neighbor; pixels outside become `ignore`."""
    if label_map.device.type == "cpu" and not matrix[0, 1] and not matrix[1, 0]:
        return _warp_upright_map(label_map, matrix, size, ignore)
    return warp_maps(label_map[None], matrix[None], size, ignore=ignore)[0]


def warp_maps(label_maps: Tensor, matrices: Tensor, size: Size, *, ignore: int) -> Tensor:
    """Warp label maps (N, H, W) by their matrices (N, 3, 3), as `warp_map` does with one."""
    fill = torch.tensor(float(ignore))
    warped = warp(label_maps[:, None].float(), matrices, size, mode="nearest", fill=fill)
    return warped[:, 0].round().to(label_maps.dtype)


def _warp_upright_map(label_map: Tensor, matrix: Tensor, size: Size, ignore: int) -> Tensor:
    """Do the same for a matrix without rotation and shear, by rows and columns."""
    height, width = label_map.shape
    to_source = _normalized((height, width)) @ torch.linalg.inv(_normalized(size) @ matrix.double())
    theta = to_source[None, :2].float()
    x = F.affine_grid(theta, [1, 1, 1, size[1]], align_corners=False)[0, 0, :, 0]
    y = F.affine_grid(theta, [1, 1, size[0], 1], align_corners=False)[0, :, 0, 1]
    # A first row and column hold the value of pixels outside.
    padded = F.pad(label_map, (1, 0, 1, 0), value=ignore).numpy()
    warped = padded.take(_nearest(y, height), axis=0).take(_nearest(x, width), axis=1)
    return torch.from_numpy(warped)


def _nearest(coordinates: Tensor, side: int) -> np.ndarray:
    """Return 1 + the index of the pixel at each coordinate in [-1, 1], 0 for one outside.

    `grid_sample` rounds them, so that ties fall as in `warp`.
    """
    numbers = torch.arange(1.0, side + 1).view(1, 1, 1, side)
    grid = torch.stack([coordinates, torch.zeros_like(coordinates)], dim=1)[None, None]
    return F.grid_sample(numbers, grid, mode="nearest", align_corners=False).flatten().int().numpy()


def warp_boxes(boxes: Tensor, matrix: Tensor, *, shape: str = "box") -> Tensor:
    """Warp boxes and return their axis-aligned bounds, not clipped.

    Args:
        boxes: (R, 4) as x0, y0, x1, y1 in corner coordinates.
        matrix: (3, 3) affine.
        shape: "box": bounds of the four corners, which contain the whole object but grow under
            rotation. "ellipse": bounds of the inscribed ellipse, which fit a round object better.
            For rotations up to 30 degrees their areas are on average 1.28-1.39 and .88-.96 times
            the area of the bounds of the object's warped mask.

    Returns:
        (R, 4), of the dtype of `boxes`.

    Raises:
        ValueError: `shape` is neither of them.
    """
    linear, shift = matrix[:2, :2].to(boxes), matrix[:2, 2].to(boxes)
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2 @ linear.T + shift
    half = (boxes[:, 2:] - boxes[:, :2]) / 2
    if shape == "box":
        extent = half @ linear.abs().T
    elif shape == "ellipse":
        extent = (half.square() @ linear.square().T).sqrt()
    else:
        raise ValueError(f"shape must be 'box' or 'ellipse', not {shape!r}")
    return torch.cat([centers - extent, centers + extent], dim=1)


def clip_boxes(boxes: Tensor, size: Size) -> Tensor:
    """Clip boxes (R, 4) to an image of `size` (height, width)."""
    height, width = size
    limits = boxes.new_tensor([width, height, width, height])
    return torch.minimum(boxes.clamp(min=0), limits)


def box_areas(boxes: Tensor) -> Tensor:
    """Return the areas (R,) of boxes (R, 4), 0 for an inverted box."""
    return (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(dim=1)


def pixels_inside(boxes: Tensor, size: Size) -> Tensor:
    """Return the pixels whose center is inside the box, (N, H, W) bool, for boxes (N, 4)."""
    x = torch.arange(size[1], device=boxes.device) + 0.5
    y = torch.arange(size[0], device=boxes.device) + 0.5
    x0, y0, x1, y1 = boxes[:, :, None].unbind(dim=1)
    across, down = (x >= x0) & (x < x1), (y >= y0) & (y < y1)
    return down[:, :, None] & across[:, None, :]
