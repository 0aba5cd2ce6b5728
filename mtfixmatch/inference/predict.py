"""Predict images and videos, and write the results to a folder; an interrupted run goes on."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..runtime.lock import locked
from ..utils.errors import InputError, check_choice
from ..utils.files import read_json, write_atomically
from ..utils.notes import Notes
from .journal import Done, finished
from .output import Output, save_choices
from .predictor import Predictor, load
from .processes import predict_in_processes
from .sources import KEY, Item, find_paths, make_items
from .work import predict_items

SETTINGS = "predict.json"


@dataclass(frozen=True)
class Settings:
    """What must not change in a folder of predictions.

    Attributes:
        model: identity of the network.
        threshold: least score of an object that is saved or drawn, in [0, 1].
        save: names of what is saved.
        sources: absolute paths and globs.
    """

    model: str
    threshold: float
    save: list[str]
    sources: list[str]

    @property
    def info(self) -> dict[str, Any]:
        """What the files say of their origin."""
        return {"model": self.model, "threshold": self.threshold}


@dataclass(frozen=True)
class Summary:
    """What a prediction did.

    Attributes:
        new, before: number of images and videos that are finished now, and were before.
        broken: number of those that cannot be read.
        notes: lines on what was left out.
        files: paths of the files for all images.
    """

    new: int
    before: int
    broken: int
    notes: list[str]
    files: list[str]


def predict(
    model: str,
    sources: Sequence[str],
    folder: str,
    *,
    threshold: float = 0.5,
    save: Sequence[str] | None = None,
    devices: Sequence[str | None] = (None,),
) -> Summary:
    """Predict all images and videos that are not finished in a folder.

    A file that cannot be read is a line on stderr and is left out.

    Args:
        model: see `load`.
        sources: see `find_items`.
        folder: folder of the output, created if it does not exist.
        threshold: least score of an object that is saved or drawn, in [0, 1].
        save: names of what is saved, see `save_choices`; None: all that needs no request.
        devices: device of each process; None: a GPU if there is one.

    Raises:
        InputError: there is nothing to predict or to read, the folder has results of another
            network or of other options, or a file cannot be written.
    """
    if not 0 <= threshold <= 1:
        raise InputError(f"--threshold is {threshold}, expected a number from 0 to 1")
    notes = Notes(max_faults=1.0)
    paths = find_paths(sources, folder, notes)
    predictor = load(model, device=devices[0] if len(devices) == 1 else "cpu")
    places = [os.path.abspath(os.path.expanduser(source)) for source in sources]
    settings = Settings(predictor.identity, threshold, _wanted(predictor, save), places)
    with locked(folder, "--output"):
        _check_settings(settings, folder)
        options: dict[str, Any] = {
            "folder": folder,
            "wanted": settings.save,
            "threshold": threshold,
        }
        output = Output(tasks=predictor.tasks, **options)
        output.clean()
        done = finished(folder)
        left = _items_left(paths, done)
        if len(devices) == 1:
            broken = predict_items(predictor, left, output)
        else:
            broken = predict_in_processes(model, left, options, devices)
        now = finished(folder)
        if broken and not now:
            raise InputError(f"{KEY}: none of {broken} images can be read")
        files = output.finish(list(now.values()), settings.info)
    return Summary(len(now) - len(done), len(done), broken, notes.messages(), files)


def _items_left(paths: Mapping[str, str], done: Mapping[str, Done]) -> list[Item]:
    items = make_items(paths, {x.name: x.out for x in done.values()})
    return [item for item in items if item.name not in done]


def _wanted(predictor: Predictor, save: Sequence[str] | None) -> list[str]:
    choices = save_choices(predictor.tasks)
    for name in save or ():
        check_choice("--save", name, choices)
    return [name for name, by_default in choices.items() if (name in save if save else by_default)]


def _check_settings(settings: Settings, folder: str) -> None:
    """Keep the settings in a new folder, or raise InputError if those of the folder are others."""
    path = os.path.join(folder, SETTINGS)
    own = asdict(settings)
    if not os.path.exists(path):
        write_atomically(path, json.dumps(own, indent=2) + "\n")
        return
    before = read_json(path)
    for key, value in own.items():
        found = before.get(key) if isinstance(before, dict) else None
        if found != value:
            values = f" {found!r}, not of {value!r}" if key != "sources" else ""
            other = f"has results of another {key}{values}"
            raise InputError(f"--output {folder} {other}: choose another folder")
