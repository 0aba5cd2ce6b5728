"""Driving-like scenes in the layout of Cityscapes or BDD100K, drawn instead of downloaded.

    python -m mtfixmatch.street --root datasets/street --train 400 --val 100

Scene i of a split is a function of (seed, split, i) and the size alone: neither the number of
workers nor the number of images nor the layout changes it.
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
from typing import NoReturn

import cv2
import numpy as np
from tqdm import tqdm

from ..data.datasets.folders import MARK
from ..utils.errors import InputError
from .layouts import LAYOUTS, SPLITS, Frames, write_frames
from .scene import draw_scene

VERSION = 1  # of the drawing; a folder of another version is not the same data
SMALLEST = 32  # pixels

Job = tuple[str, int]


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
    """Write the data set, unless `root` holds it already.

    Args:
        root: The folder; it is made, empty, or one that this function wrote.
        num_train: Number of scenes in the split "train".
        num_val: Number of scenes in the split "val".
        size: Width and height of the pictures in pixels.
        seed: Which data set; every seed gives other scenes.
        workers: Number of processes.
        layout: Name of the folders and files, see LAYOUTS.

    Returns:
        Whether anything had to be written.

    Raises:
        InputError: An argument is out of range, or `root` holds something else.
    """
    if layout not in LAYOUTS:
        raise InputError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
    _check(num_train, num_val, size, seed, workers)
    root = Path(root)
    wanted: dict[str, object] = {"version": VERSION, "train": num_train, "val": num_val}
    wanted |= {"size": list(size), "seed": seed}
    if layout != "cityscapes":  # what a root does not say
        wanted["layout"] = layout
    if _is_complete(root, wanted):
        return False
    started = root / f"{MARK}.part"
    jobs = [("train", i) for i in range(num_train)] + [("val", i) for i in range(num_val)]
    try:
        root.mkdir(parents=True, exist_ok=True)
        started.write_text(json.dumps(wanted) + "\n")
        frames = _write_all(partial(_write_scene, root, layout, size, seed), jobs, workers)
        write_frames(root, frames)
        os.replace(started, root / MARK)
    except OSError as error:
        raise InputError(f"{root}: cannot be written: {error.strerror or error}") from error
    return True


def _check(num_train: int, num_val: int, size: tuple[int, int], seed: int, workers: int) -> None:
    for name, value in (("train", num_train), ("val", num_val), ("seed", seed)):
        if value < 0:
            raise InputError(f"{name} must not be negative, got {value}")
    if workers < 1:
        raise InputError(f"workers must be at least 1, got {workers}")
    if min(size) < SMALLEST:
        raise InputError(f"size must be at least {SMALLEST}x{SMALLEST}, got {size[0]}x{size[1]}")


def _is_complete(root: Path, wanted: dict) -> bool:
    """Whether root holds the wanted data; what was interrupted is to be written again."""
    for name in (MARK, f"{MARK}.part"):
        try:
            found = json.loads((root / name).read_text())
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, ValueError) as error:
            raise InputError(f"{root / name}: cannot be read: {error}") from error
        if found != wanted:
            raise InputError(
                f"{root}: holds a street data set of other arguments ({json.dumps(found)}); "
                "give another folder or remove this one"
            )
        return name == MARK
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise InputError(f"{root}: exists and was not written by street; give another folder")
    return False


def _write_all(write: partial[Frames], jobs: Sequence[Job], workers: int) -> list[Frames]:
    def show(done: Iterable[Frames]) -> list[Frames]:
        return list(tqdm(done, "street", len(jobs), unit="img", disable=None))

    if workers == 1:
        return show(map(write, jobs))
    # Each worker is one process on one core: no threads of OpenCV within it.
    with ProcessPoolExecutor(workers, initializer=cv2.setNumThreads, initargs=(0,)) as pool:
        return show(pool.map(write, jobs, chunksize=4))


def _write_scene(root: Path, layout: str, size: tuple[int, int], seed: int, job: Job) -> Frames:
    split, index = job
    scene = draw_scene(np.random.default_rng([seed, SPLITS.index(split), index]), *size)
    return LAYOUTS[layout](root, split, index, scene)


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are shown like all others, as one line."""

    def error(self, message: str) -> NoReturn:
        raise InputError(message)


def _parse_size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"expected WIDTHxHEIGHT such as 512x256, got {text!r}")
    return int(match[1]), int(match[2])


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m mtfixmatch.street", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--root", default="datasets/street", help="folder to write")
    parser.add_argument("--train", type=int, default=400, help="number of training scenes")
    parser.add_argument("--val", type=int, default=100, help="number of validation scenes")
    parser.add_argument("--size", type=_parse_size, default=(512, 256), help="WIDTHxHEIGHT, pixels")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other scenes")
    parser.add_argument("--workers", type=int, default=2, help="number of processes")
    parser.add_argument("--layout", choices=LAYOUTS, default="cityscapes", help="how files lie")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code is 2 for what cannot be used."""
    try:
        args = _parser().parse_args(argv)
        written = generate(
            args.root,
            num_train=args.train,
            num_val=args.val,
            size=args.size,
            seed=args.seed,
            workers=args.workers,
            layout=args.layout,
        )
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    state = "written" if written else "complete already"
    print(f"{args.root}: {args.train} training and {args.val} validation scenes, {state}")
    return 0
