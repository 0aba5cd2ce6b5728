"""Write a config to start from, for what was found in the user's data."""

import json
import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ..utils.checkout import spell_commands
from ..utils.errors import InputError
from ..utils.files import write_atomically
from .guess import Guess, SplitGuess
from .label_guess import BOXES, MAPS

CONFIG = "config.yaml"
TASKS = {BOXES: "detection", MAPS: "segmentation"}
# Largest side of a crop: what a GPU trains on, and what a CPU trains on in seconds a step.
MAX_CROP = {"cuda": 800, "cpu": 320}
STRIDE = 32
BATCH, LABELED = 8, 4  # images in a batch, and labeled ones among them


def write_config(guess: Guess, output: str, base: str, device: str) -> str:
    """Write the config into the folder `output`, and return its path.

    Args:
        guess: what was found.
        output: existing folder.
        base: path of the config that it is based on.
        device: "cuda" or "cpu".

    Raises:
        InputError: there is another config already, or it cannot be written.
    """
    path = os.path.abspath(os.path.join(output, CONFIG))
    text = config_text(guess, os.path.dirname(path), base, device)
    if os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            if file.read() == text:
                return path
        hint = "name another folder with --output, or remove the file"
        raise InputError(f"{path} exists and is not overwritten: {hint}")
    write_atomically(path, text)
    return path


def config_text(guess: Guess, output: str, base: str, device: str) -> str:
    """Return the YAML of a config; see `write_config`."""
    train, val = guess.train, guess.val
    tasks = [task for key, task in TASKS.items() if train.of(key)]
    lines = [
        f"# Written by {spell_commands('projects/check_data.py')}; paths are absolute.",
        *(f"# {' '.join(text.split())}" for text in dict.fromkeys(guess.remarks)),
        f"_BASE_: {_yaml(base)}  # a small network, trained from scratch",
        "MODEL:",
        f"  TASKS: {_yaml(tasks)}",
        f"  DEVICE: {_yaml(device)}",
        "DATASETS:",
        '  TRAIN: ("coco_style_train",)',
    ]
    if val:
        lines.append('  TEST: ("coco_style_val",)')
    else:
        hint = (
            'no validation was found: add COCO_STYLE.VAL like TRAIN, and TEST: ("coco_style_val",)'
        )
        lines.append(f"  TEST: ()  # {hint}")
    lines += ["  COCO_STYLE:", *_options(guess), *_split("TRAIN", train)]
    lines += _split("VAL", val) if val else []
    lines += ["INPUT:", f"  TRAIN_SIZE: {_yaml(crop_size(train, device))}"]
    if guess.range_16bit:
        lines.append(f"  RANGE_16BIT: {_yaml(guess.range_16bit)}  # the values in a sample")
    lines += [*_sampling(guess), *_training(output)]
    return "\n".join(lines) + "\n"


def crop_size(split: SplitGuess, device: str) -> list[int]:
    """Return INPUT.TRAIN_SIZE, height and width: the median of the images, at most MAX_CROP."""
    medians = np.median(list(split.images.sizes.values()), axis=0)
    return [int(max(1, min(x, MAX_CROP[device]) // STRIDE) * STRIDE) for x in medians]


def _yaml(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _options(guess: Guess) -> Iterable[str]:
    """Yield the classes and the names and values of maps."""
    split, images = guess.train, guess.train_images()
    if boxes := split.of(BOXES):
        names = list(dict.fromkeys(name for x in boxes for name in x.classes))
        yield f"    THING_CLASSES: {_yaml(names)}{_rename(names)}"
        empty, others = sum(x.empty for x in boxes), len(images - split.labeled(BOXES))
        counts = f"{empty} labeled images have no box, {others} are not labeled"
        yield f"    UNANNOTATED: auto  # {counts}"
    maps = [x.options for y in (split, guess.val) if y for x in y.of(MAPS)]
    for key in dict.fromkeys(key for x in maps for key in x):
        yield _map_option(key, [x[key] for x in maps if key in x])


def _map_option(key: str, values: Sequence[Any]) -> str:
    """Return the line of a key of maps, for its values in both splits."""
    if key != "SEM_SEG_CLASSES":  # of PNGs, where both splits have the same
        comment = "  # rename the classes" if key == "MAP_VALUES" else ""
        return f"    {key}: {_yaml(values[0])}{comment}"
    names = list(dict.fromkeys(name for x in values for name in x))
    return f"    {key}: {_yaml(names)}{_rename(names)}"


def _rename(names: Sequence[str]) -> str:
    return "  # rename the classes" if "class_0" in names else ""


def _split(key: str, split: SplitGuess) -> list[str]:
    files = {"IMAGES": split.sources}
    files |= {key: [x.path for x in split.of(key)] for key in TASKS if split.of(key)}
    items = [f"      {x}: {_yaml(y[0] if len(y) == 1 else y)}" for x, y in files.items()]
    return [f"    {key}:", *items]


def _sampling(guess: Guess) -> list[str]:
    """Return how batches are drawn: explicit sampling needs unlabeled images."""
    labeled = [guess.train.labeled(key) for key in TASKS if guess.train.of(key)]
    images = guess.train_images()
    some, every = images.intersection(set().union(*labeled)), images.intersection(*labeled)
    lines = ["DATALOADER:"]
    if some < images:
        count = f"{len(some)} of {len(images)} images are labeled"
        lines += [f'  SAMPLING: "explicit"  # {count}', f"  LABELED_PER_BATCH: {LABELED}"]
    else:
        lines.append('  SAMPLING: "implicit"  # each image is labeled')
    if broken := guess.train.unreadable():
        lines.append(f"  SKIP_BROKEN: true  # files that cannot be read: {len(broken)}")
    if every == images:
        hint = "nothing is unlabeled: with more images, DenseFixMatch and explicit sampling"
        lines.append(f'FIXMATCH: {{METHOD: "Supervised"}}  # {hint}')
    return lines


def _training(output: str) -> list[str]:
    return [
        "SOLVER:",
        f"  IMS_PER_BATCH: {BATCH}",
        "  MAX_ITER: 1000  # a first look; more steps for a result",
        f"OUTPUT_DIR: {_yaml(os.path.join(output, 'training'))}",
    ]
