"""Driving-like scenes in the layout of Cityscapes, drawn instead of downloaded.

    python -m mtfixmatch.data.datasets.street --root datasets/street --train 400 --val 100

Scene i of a split is a function of (seed, split, i) and the size alone: neither the number of
workers nor the number of images changes it.
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

from ...errors import InputError
from .street_scene import draw_scene

CITIES = ("northtown", "southport", "westfield")
SPLITS = ("train", "val")
MARK = "street.json"  # written last: the folder is complete
VERSION = 1  # of the drawing; a folder of another version is not the same data
SMALLEST = 32  # pixels
PNG = [cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE]

Job = tuple[str, int]


def generate(
    root: str | Path,
    *,
    num_train: int,
    num_val: int,
    size: tuple[int, int],
    seed: int,
    workers: int = 1,
) -> bool:
    """Write the data set, unless `root` holds it already.

    Args:
        root: The folder; it is made, empty, or one that this function wrote.
        num_train: Number of scenes in the split "train".
        num_val: Number of scenes in the split "val".
        size: Width and height of the pictures in pixels.
        seed: Which data set; every seed gives other scenes.
        workers: Number of processes.

    Returns:
        Whether anything had to be written.

    Raises:
        InputError: An argument is out of range, or `root` holds something else.
    """
    _check(num_train, num_val, size, seed, workers)
    root = Path(root)
    wanted: dict[str, object] = {"version": VERSION, "train": num_train, "val": num_val}
    wanted |= {"size": list(size), "seed": seed}
    if _is_complete(root, wanted):
        return False
    started = root / f"{MARK}.part"
    jobs = [("train", i) for i in range(num_train)] + [("val", i) for i in range(num_val)]
    try:
        _make_folders(root)
        started.write_text(json.dumps(wanted) + "\n")
        _write_all(partial(_write_scene, root, size, seed), jobs, workers)
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


def _make_folders(root: Path) -> None:
    for kind in ("leftImg8bit", "gtFine"):
        for split in SPLITS:
            for city in CITIES:
                (root / kind / split / city).mkdir(parents=True, exist_ok=True)


def _write_all(write: partial[None], jobs: Sequence[Job], workers: int) -> None:
    def show(done: Iterable[None]) -> None:
        for _ in tqdm(done, "street", len(jobs), unit="img", disable=None):
            pass

    if workers == 1:
        show(map(write, jobs))
        return
    # Each worker is one process on one core: no threads of OpenCV within it.
    with ProcessPoolExecutor(workers, initializer=cv2.setNumThreads, initargs=(0,)) as pool:
        show(pool.map(write, jobs, chunksize=4))


def _write_scene(root: Path, size: tuple[int, int], seed: int, job: Job) -> None:
    split, index = job
    scene = draw_scene(np.random.default_rng([seed, SPLITS.index(split), index]), *size)
    labels = np.where(scene.ids >= 1000, scene.ids // 1000, scene.ids).astype(np.uint8)
    city = CITIES[index % len(CITIES)]
    name = f"{city}_{index:06d}_000019"
    truth = root / "gtFine" / split / city / f"{name}_gtFine"
    picture = cv2.cvtColor(scene.rgb, cv2.COLOR_RGB2BGR)
    _write_png(root / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png", picture)
    _write_png(truth.with_name(f"{truth.name}_instanceIds.png"), scene.ids)
    _write_png(truth.with_name(f"{truth.name}_labelIds.png"), labels)


def _write_png(path: Path, image: np.ndarray) -> None:
    _, data = cv2.imencode(".png", image, PNG)
    path.write_bytes(data.tobytes())


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
    parser = _Parser(prog="python -m mtfixmatch.data.datasets.street", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--root", default="datasets/street", help="folder to write")
    parser.add_argument("--train", type=int, default=400, help="number of training scenes")
    parser.add_argument("--val", type=int, default=100, help="number of validation scenes")
    parser.add_argument("--size", type=_parse_size, default=(512, 256), help="WIDTHxHEIGHT, pixels")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other scenes")
    parser.add_argument("--workers", type=int, default=2, help="number of processes")
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
        )
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    state = "written" if written else "complete already"
    print(f"{args.root}: {args.train} training and {args.val} validation scenes, {state}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
