"""Generate street scenes in the layout of Cityscapes or BDD100K.

    python -m mtfixmatch.street --root datasets/street --train 400 --val 100

Scene i of a split depends on (seed, split, i) and the size alone, not on the number of workers or
images, nor on the layout.
"""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import cv2
import numpy as np
from tqdm import tqdm

from ..data.datasets.folders import MARK
from ..utils.errors import InputError
from ..utils.files import read_json, reading
from .layouts import LAYOUTS, SPLITS, Frames, write_frames
from .scene import draw_scene

VERSION = 1  # of the drawing; raise it when a scene changes
MIN_SIZE = 32  # pixels
PART = f"{MARK}.part"  # stands in for MARK until the dataset is complete

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
    """Write a dataset of street scenes, unless `root` holds it; return whether it was written.

    `root` is missing, empty, or was written by this function. Images have `size` (width, height) in
    pixels, every `seed` gives other scenes, and `layout` is a name in LAYOUTS.

    Raises:
        InputError: An argument is out of range, or `root` holds something else.
    """
    root = Path(root)
    arguments: dict[str, Any] = {"version": VERSION, "train": num_train, "val": num_val}
    arguments |= {"size": list(size), "seed": seed}
    _check_arguments(arguments, workers, layout)
    if layout != "cityscapes":  # the default is not recorded
        arguments["layout"] = layout
    if _is_complete(root, arguments):
        return False
    jobs = [("train", i) for i in range(num_train)] + [("val", i) for i in range(num_val)]
    try:
        root.mkdir(parents=True, exist_ok=True)
        (root / PART).write_text(json.dumps(arguments) + "\n")
        write = partial(_write_scene, root, layout, size, seed)
        write_frames(root, _write_all(write, jobs, workers))
        (root / PART).replace(root / MARK)
    except OSError as error:
        raise InputError(f"{root}: cannot be written: {error.strerror or error}") from error
    return True


def _check_arguments(arguments: dict[str, Any], workers: int, layout: str) -> None:
    width, height = arguments["size"]
    for name in ("train", "val", "seed"):
        if arguments[name] < 0:
            raise InputError(f"{name} must not be negative, got {arguments[name]}")
    if workers < 1:
        raise InputError(f"workers must be at least 1, got {workers}")
    if min(width, height) < MIN_SIZE:
        raise InputError(f"size must be at least {MIN_SIZE}x{MIN_SIZE}, got {width}x{height}")
    if layout not in LAYOUTS:
        raise InputError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")


def _is_complete(root: Path, arguments: dict[str, Any]) -> bool:
    """Return whether root holds the whole dataset; False if it is empty or was interrupted."""
    with reading(root):
        for name in (MARK, PART):
            if (root / name).exists():
                recorded = read_json(root / name)
                if recorded == arguments:
                    return name == MARK
                raise InputError(
                    f"{root}: holds a street dataset of other arguments ({json.dumps(recorded)}); "
                    "give another folder or remove this one"
                )
        if root.exists() and (not root.is_dir() or any(root.iterdir())):
            raise InputError(f"{root}: exists and was not written by street; give another folder")
    return False


def _write_all(write: partial[Frames], jobs: Sequence[Job], workers: int) -> Frames:
    """Write all scenes, show the progress, and return the entries of the JSON."""
    # Each worker is a process on one core, so OpenCV must not start threads in it.
    with ProcessPoolExecutor(workers, initializer=cv2.setNumThreads, initargs=(0,)) as pool:
        results = map(write, jobs) if workers == 1 else pool.map(write, jobs, chunksize=4)
        progress = tqdm(results, desc="street", total=len(jobs), unit="img", disable=None)
        return [frame for frames in progress for frame in frames]


def _write_scene(root: Path, layout: str, size: tuple[int, int], seed: int, job: Job) -> Frames:
    split, index = job
    scene = draw_scene(np.random.default_rng([seed, SPLITS.index(split), index]), *size)
    return LAYOUTS[layout](root, split, index, scene)


class _Parser(argparse.ArgumentParser):
    """A parser that reports its errors in one line, as all other errors are."""

    def error(self, message: str) -> NoReturn:
        raise InputError(message)


def _parse_size(text: str) -> tuple[int, int]:
    if not (match := re.fullmatch(r"(\d+)x(\d+)", text)):
        raise argparse.ArgumentTypeError(f"expected WIDTHxHEIGHT such as 512x256, got {text!r}")
    return int(match[1]), int(match[2])


def _parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
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
        state = "written" if generate(**vars(args)) else "complete already"
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{args.root}: {args.num_train} training and {args.num_val} validation scenes, {state}")
    return 0
