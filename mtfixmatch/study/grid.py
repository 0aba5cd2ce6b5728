"""Qualitative results: predictions of a few runs beside the ground truth (Figures 2, 3)."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
import yaml
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from ..data.loader import eval_records
from ..engine import load_config
from ..engine.checkpoint import MultiTaskCheckpointer
from ..engine.visualize import prediction_tiles, truth_tiles, write_grid
from ..tasks import build_tasks
from ..utils.errors import InputError
from .layout import matches, read_filter
from .plan import STUDY_FILE, Run, Study
from .state import state_of

WIDTH = 1024  # largest width of a tile in pixels, so that four tiles fit on a screen
WEIGHTS_FILE = "model_best.pth"  # written by train_net.py
Tiles = list[np.ndarray]  # (H, W, 3) uint8


def draw_grid(study: Study, runs: Sequence[Run], path: Path) -> str:
    """Draw a column for each experiment that study.yaml names, then the ground truth.

    Args:
        study: with the key "figure": {images: rows, columns: [{factor: value}, ...]}.
        runs: to choose from; a column shows its first run that is done.
        path: of the picture.

    Returns:
        The reason why there is no picture, or "".
    """
    figure = study.content["figure"]
    if not isinstance(figure, dict) or set(figure) != {"images", "columns"}:
        raise InputError(f"{study.folder / STUDY_FILE}: figure takes the keys images and columns")
    chosen = {_title(factors): _choose(runs, factors) for factors in figure["columns"]}
    done = [run for run in chosen.values() if run is not None]
    if not done:
        return "none of its runs is done"
    try:
        columns = [_predictions(run, figure["images"]) if run else [] for run in chosen.values()]
        columns.append(_truth(done[0], figure["images"]))
    except InputError as error:
        return str(error)
    grey = [_missing(*tile.shape[:2]) for tile in columns[-1]]
    columns = [tiles or grey for tiles in columns]
    rows = [list(row) for row in zip(*columns, strict=True)]
    write_grid(rows, [*chosen, "ground truth"], str(path))
    return ""


def _title(factors: dict) -> str:
    return " ".join(str(value) for value in factors.values())


def _choose(runs: Sequence[Run], factors: dict) -> Run | None:
    candidates = (run for run in runs if matches(run.factors, read_filter(factors)))
    return next((run for run in candidates if state_of(run).name == "done"), None)


def _load_config(run: Run) -> CfgNode:
    path = run.folder / "config.yaml"
    if not (path.is_file() and (run.folder / WEIGHTS_FILE).is_file()):
        raise InputError(f"the weights of {run.name} are not kept")
    try:
        datasets = yaml.safe_load(path.read_text())["DATASETS"]
    except (OSError, KeyError, TypeError, yaml.YAMLError):
        raise InputError(f"{path} is not the config of a run") from None
    # Training images are not needed, so they may be absent from this machine.
    return load_config(str(path), ["DATASETS.TRAIN", str(datasets["TEST"])])


@torch.no_grad()
def _predictions(run: Run, count: int) -> Tiles:
    cfg = _load_config(run)
    tasks = build_tasks(cfg)
    model = build_model(cfg)
    MultiTaskCheckpointer(model).load(str(run.folder / WEIGHTS_FILE))
    records = eval_records(cfg, tasks)[:count]
    return _small(prediction_tiles(model.eval(), records, tasks, cfg.TEST.PICTURE_THRESHOLD))


def _truth(run: Run, count: int) -> Tiles:
    cfg = _load_config(run)
    tasks = build_tasks(cfg)
    return _small(truth_tiles(eval_records(cfg, tasks)[:count], tasks))


def _small(tiles: Tiles) -> Tiles:
    sizes = [(WIDTH, round(tile.shape[0] * WIDTH / tile.shape[1])) for tile in tiles]
    return [
        cv2.resize(tile, size, interpolation=cv2.INTER_AREA) if tile.shape[1] > WIDTH else tile
        for tile, size in zip(tiles, sizes, strict=True)
    ]


def _missing(height: int, width: int) -> np.ndarray:
    tile = np.full((height, width, 3), 200, dtype=np.uint8)
    origin = (width // 2 - 28, height // 2)
    return cv2.putText(tile, "missing", origin, cv2.FONT_HERSHEY_SIMPLEX, 0.45, (90, 90, 90), 1)
