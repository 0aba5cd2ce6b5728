"""Generate street scenes in the layout of Cityscapes or BDD100K.

    python -m mtfixmatch.street --root datasets/street --train 400 --val 100

Scene i of a split depends on (seed, split, i) and the size alone, not on the number of workers or
images, nor on the layout.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import cv2
import numpy as np
from tqdm import tqdm

from ..data.datasets.folders import MARK
from ..utils.errors import InputError
from .layouts import LAYOUTS, SPLITS, Frames, write_frames
from .scene import draw_scene

VERSION = 1  # of the drawing; raise it when a scene changes
MIN_SIZE = 32  # pixels

Job = tuple[str, int]  # a split, and the number of a scene in it


def generate(
    root: str | Path,
    *,
    num_train: int,
    num_val: int,
    size: tuple[int, int],
    seed: int,
    workers: int = 1,
    layout: str = "cityscapes",
) -> bool:
    """Write a dataset of street scenes, unless `root` already holds it.

    Args:
        root: Folder to write; it is missing, empty, or was written by this function.
        num_train: Number of scenes in the split "train".
        num_val: Number of scenes in the split "val".
        size: Width and height of the images in pixels.
        seed: Seed of the dataset; every seed gives other scenes.
        workers: Number of processes.
        layout: How files are arranged; a name in LAYOUTS.

    Returns:
        Whether anything was written.

    Raises:
        InputError: An argument is out of range, or `root` holds something else.
    """
    _check_arguments(num_train, num_val, size, seed, workers, layout)
    root = Path(root)
    arguments: dict[str, Any] = {"version": VERSION, "train": num_train, "val": num_val}
    arguments |= {"size": list(size), "seed": seed}
    if layout != "cityscapes":  # the default is not recorded
        arguments["layout"] = layout
    if _is_complete(root, arguments):
        return False
    part = _part(root)
    jobs = [("train", i) for i in range(num_train)] + [("val", i) for i in range(num_val)]
    try:
        root.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(arguments) + "\n")
        frames = _write_all(partial(_write_scene, root, layout, size, seed), jobs, workers)
        write_frames(root, frames)
        os.replace(part, root / MARK)
    except OSError as error:
        raise InputError(f"{root}: cannot be written: {error.strerror or error}") from error
    return True


def _check_arguments(
    num_train: int, num_val: int, size: tuple[int, int], seed: int, workers: int, layout: str
) -> None:
    for name, value in (("train", num_train), ("val", num_val), ("seed", seed)):
        if value < 0:
            raise InputError(f"{name} must not be negative, got {value}")
    if workers < 1:
        raise InputError(f"workers must be at least 1, got {workers}")
    if min(size) < MIN_SIZE:
        raise InputError(f"size must be at least {MIN_SIZE}x{MIN_SIZE}, got {size[0]}x{size[1]}")
    if layout not in LAYOUTS:
        raise InputError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")


def _part(root: Path) -> Path:
    """Return the file that stands in for MARK until the dataset is complete."""
    return root / f"{MARK}.part"


def _is_complete(root: Path, arguments: dict[str, Any]) -> bool:
    """Return whether root holds the whole dataset; False if it is empty or was interrupted."""
    for path in (root / MARK, _part(root)):
        try:
            recorded = json.loads(path.read_text())
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: cannot be read: {error}") from error
        if recorded != arguments:
            raise InputError(
                f"{root}: holds a street dataset of other arguments ({json.dumps(recorded)}); "
                "give another folder or remove this one"
            )
        return path.name == MARK
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise InputError(f"{root}: exists and was not written by street; give another folder")
    return False


def _write_all(write: partial[Frames], jobs: Sequence[Job], workers: int) -> list[Frames]:
    """Write all scenes and show the progress."""

    def collect(results: Iterable[Frames]) -> list[Frames]:
        return list(tqdm(results, "street", len(jobs), unit="img", disable=None))

    if workers == 1:
        return collect(map(write, jobs))
    # Each worker is a process on one core, so OpenCV must not start threads in it.
    with ProcessPoolExecutor(workers, initializer=cv2.setNumThreads, initargs=(0,)) as pool:
        return collect(pool.map(write, jobs, chunksize=4))


def _write_scene(root: Path, layout: str, size: tuple[int, int], seed: int, job: Job) -> Frames:
    split, index = job
    scene = draw_scene(np.random.default_rng([seed, SPLITS.index(split), index]), *size)
    return LAYOUTS[layout](root, split, index, scene)


class _Parser(argparse.ArgumentParser):
    """A parser that reports its errors in one line, as all other errors are."""

    def error(self, message: str) -> NoReturn:
        raise InputError(message)


def _parse_size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"expected WIDTHxHEIGHT such as 512x256, got {text!r}")
    return int(match[1]), int(match[2])


def _parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = _Parser(prog="python -m mtfixmatch.street", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--root", default="datasets/street", help="folder to write")
    add("--train", dest="num_train", type=int, default=400, help="number of training scenes")
    add("--val", dest="num_val", type=int, default=100, help="number of validation scenes")
    add("--size", type=_parse_size, default=(512, 256), help="WIDTHxHEIGHT, pixels")
    add("--seed", type=int, default=0, help="another seed gives other scenes")
    add("--workers", type=int, default=2, help="number of processes")
    add("--layout", choices=LAYOUTS, default="cityscapes", help="how files are arranged")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code, 2 for unusable arguments or folders."""
    try:
        args = _parse_args(argv)
        written = generate(**vars(args))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    state = "written" if written else "complete already"
    print(f"{args.root}: {args.num_train} training and {args.num_val} validation scenes, {state}")
    return 0
