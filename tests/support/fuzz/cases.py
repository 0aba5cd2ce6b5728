"""Cases of corrupt files and annotations, each read as a training reads it."""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mtfixmatch.utils.errors import InputError
from mtfixmatch.utils.notes import Notes
from tests.support.fuzz.dataset import expected_of, message_of, read_all, tree_of, write_tree
from tests.support.fuzz.files import (
    ERROR,
    MUTATIONS,
    NOTED,
    SAME,
    SANE,
    Mutant,
    Mutate,
    Source,
    map_unknown_id,
)
from tests.support.fuzz.labels import EDITS

# By layout: the kind of each file that is mutated.
KINDS = {
    "coco_style": {
        "images/a.png": "png",
        "images/b.jpg": "jpeg",
        "images/c.tif": "tiff",
        "maps/c.png": "map",
    },
    "bdd100k": {
        "images/100k/train/b.jpg": "jpeg",
        "labels/sem_seg/masks/train/a.png": "map",
    },
    "cityscapes": {
        "leftImg8bit/train/c/c_000000_000019_leftImg8bit.png": "png",
        "gtFine/train/a/a_000000_000019_gtFine_labelIds.png": "map",
        "gtFine/train/c/c_000000_000019_gtFine_instanceIds.png": "instances",
    },
}
JSON_FILES = {"coco_style": "boxes.json", "bdd100k": "labels/det_20/det_train.json"}


@dataclass(frozen=True)
class Case:
    """One way to corrupt one file of one layout."""

    layout: str
    path: str
    kind: str
    mutate: Mutate

    def __str__(self) -> str:
        return f"{self.layout}, {self.kind}, {self.mutate.__name__}"


def file_cases() -> list[Case]:
    places = [(layout, *x) for layout, kinds in KINDS.items() for x in kinds.items()]
    places += [(layout, path, "json") for layout, path in JSON_FILES.items()]
    return [Case(*place, mutate) for place in places for mutate in MUTATIONS[place[2]]]


def label_cases() -> list[Case]:
    cases = [
        Case(layout, JSON_FILES[layout], "json", mutate)
        for layout, edits in EDITS.items()
        for mutate in edits
    ]
    path = list(KINDS["cityscapes"])[-1]
    return [*cases, Case("cityscapes", path, "instances", map_unknown_id)]


def complaints(cases: list[Case], count: int, seed: int, folder: Path) -> list[str]:
    """Run `count` tries, each case in turn, and return what went wrong."""
    tries = ((cases[i % len(cases)], seed + i) for i in range(count))
    return [problem for case, i in tries if (problem := complaint(case, i, folder))]


def complaint(case: Case, seed: int, folder: Path) -> str:
    """Corrupt the file and read all; returns "" if the outcome is right, else what is wrong."""
    source = tree_of(case.layout)[case.path]
    name = Path(case.path).name[0]
    mutant = case.mutate(Source(case.kind, name, source), np.random.default_rng(seed))
    long_number = case.layout == "coco_style" and case.mutate.__name__ == "json_long_number"
    if mutant.outcome == ERROR and (case.kind != "json" or long_number):
        mutant.outcome = NOTED
    root = folder / "case"
    shutil.rmtree(root, ignore_errors=True)
    write_tree(tree_of(case.layout), root)
    path = root / case.path
    path.unlink()
    if mutant.content is None:
        path.symlink_to(root / "gone")
    else:
        path.write_bytes(mutant.content)
    problem = _problem(case, mutant, name, path, root)
    return f"{case}, seed {seed}: {problem}" if problem else ""


def _problem(case: Case, mutant: Mutant, name: str, path: Path, root: Path) -> str:
    notes = Notes(max_faults=1.0)
    try:
        examples = read_all(case.layout, root, notes)
    except InputError as error:
        message = message_of(error)
        if mutant.outcome == SAME:
            return f"should have been read, but {message}"
        good = str(path) in message and "\n" not in message and len(message) < 700
        return "" if good else f"a bad message: {message}"
    except Exception as error:
        return f"a traceback: {error!r}"
    if mutant.outcome == ERROR:
        return "was read without an error"
    if not all(x.is_sane() for x in examples.values()):
        return "gave invalid labels"
    if mutant.outcome == SANE or (mutant.outcome == NOTED and _is_noted(notes, path)):
        return ""
    expected = dict(expected_of(case.layout, root.parent))
    if mutant.image is not None:
        expected[name] = replace(expected[name], image=mutant.image)
    same = examples.keys() == expected.keys() and all(
        examples[key].equals(expected[key], mutant.tolerance) for key in expected
    )
    return "" if same else "was read wrongly, without an error"


def _is_noted(notes: Notes, path: Path) -> bool:
    """Whether the notes name a file, each in one line."""
    messages = notes.messages()
    return any(str(path) in x for x in messages) and not any("\n" in x for x in messages)
