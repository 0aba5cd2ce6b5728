"""Qualitative results: predictions of a few runs beside the ground truth (Figures 2, 3)."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from ..data.loader import eval_records
from ..engine import load_config
from ..engine.checkpoint import MultiTaskCheckpointer
from ..engine.visualize import choose_records, prediction_tiles, truth_tiles, write_grid
from ..tasks import build_tasks
from ..utils.errors import InputError
from .layout import matches, read_filter
from .plan import STUDY_FILE, Run, Study

WIDTH = 1024  # largest width of a tile in pixels, so that four tiles fit on a screen
WEIGHTS_FILE = "model_best.pth"  # written by train_net.py


def draw_grid(study: Study, done: Sequence[Run], path: Path) -> str:
    """Draw a column for each experiment that study.yaml names, then the ground truth.

    The file's key "figure" has {images: number or names of the images, columns: [{factor: value},
    ...]}; a column shows its first run among `done`. Return the reason why there is no picture, or
    "". InputError for a name that no test image has.
    """
    figure, where = study.content["figure"], f"{study.folder / STUDY_FILE}: figure"
    if not isinstance(figure, dict) or set(figure) != {"images", "columns"}:
        raise InputError(f"{where} takes the keys images and columns")
    chosen: dict[str, Run | None] = {}
    for factors in figure["columns"]:
        candidates = [run for run in done if matches(run.factors, read_filter(factors))]
        chosen[" ".join(map(str, factors.values()))] = next(iter(candidates), None)
    first = next(filter(None, chosen.values()), None)
    if first is None:
        return "none of its runs is done"
    try:
        cfg = _load_config(first)
        labeled = eval_records(cfg, build_tasks(cfg))
    except InputError as error:
        return str(error)
    images = figure["images"]
    names = images if isinstance(images, list) else []
    records = choose_records(labeled, names, 0 if names else images, f"{where}.images")
    try:
        columns = [_prediction_tiles(run, records) if run else [] for run in chosen.values()]
    except InputError as error:
        return str(error)
    columns.append([_small(tile) for tile in truth_tiles(records, build_tasks(cfg))])
    grey = [_missing(*tile.shape[:2]) for tile in columns[-1]]
    rows = [list(row) for row in zip(*(tiles or grey for tiles in columns), strict=True)]
    write_grid(rows, [*chosen, "ground truth"], str(path))
    return ""


def _load_config(run: Run) -> CfgNode:
    path = run.folder / "config.yaml"
    if not (path.is_file() and (run.folder / WEIGHTS_FILE).is_file()):
        raise InputError(f"the weights of {run.name} are not kept")
    # Training images are not needed, so they may be absent from this machine.
    return load_config(str(path), [], eval_only=True)


@torch.no_grad()
def _prediction_tiles(run: Run, records: Sequence[dict]) -> list[np.ndarray]:
    """Draw a run's predictions on some test images, (H, W, 3) uint8."""
    cfg = _load_config(run)
    tasks = build_tasks(cfg)
    model = build_model(cfg).eval()
    MultiTaskCheckpointer(model).load(str(run.folder / WEIGHTS_FILE))
    tiles = prediction_tiles(model, records, tasks, cfg.TEST.PICTURE_THRESHOLD)
    return [_small(tile) for tile in tiles]


def _small(tile: np.ndarray) -> np.ndarray:
    height, width = tile.shape[:2]
    size = (min(width, WIDTH), round(height * min(width, WIDTH) / width))
    return cv2.resize(tile, size, interpolation=cv2.INTER_AREA)


def _missing(height: int, width: int) -> np.ndarray:
    tile = np.full((height, width, 3), 200, dtype=np.uint8)
    origin = (width // 2 - 28, height // 2)
    return cv2.putText(tile, "missing", origin, cv2.FONT_HERSHEY_SIMPLEX, 0.45, (90, 90, 90), 1)
