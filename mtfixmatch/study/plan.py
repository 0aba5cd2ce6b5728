"""study.yaml -> the runs of a study: its factors, their products, one list of overrides each."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..utils.errors import InputError

Value = str | int
STUDY_FILE = "study.yaml"
# Keys of a study file; those of the report are read by report.py.
REQUIRED = ("title", "config", "output", "factors", "runs")
OPTIONAL = ("common", "tables", "per_class", "curves", "figure")


@dataclass(frozen=True)
class Run:
    """One training of a study.

    Attributes:
        factors: name -> value, in the order of the study's factors; those that do not apply to it
            (the sampling of a baseline's unlabeled images) are absent.
        overrides: KEY VALUE pairs for train_net.py, in this order.
        folder: where it writes.
    """

    factors: dict[str, Value]
    overrides: list[str]
    folder: Path

    @property
    def name(self) -> str:
        """The name of its folder: its factors' values."""
        return self.folder.name


@dataclass(frozen=True)
class Study:
    """A study file with its runs.

    Attributes:
        folder: of the study file; a paper.csv may lie beside it.
        config: file that all its runs start from.
        output: folder of its runs' folders and its report.
        content: of the study file.
        runs: all of them.
    """

    folder: Path
    config: Path
    output: Path
    content: dict[str, Any]
    runs: list[Run]

    def select(self, only: Mapping[str, Sequence[str]]) -> list[Run]:
        """The runs that have one of the given values in each of the given factors.

        Raises:
            InputError: for a factor or a value that the study does not have, or if nothing is left.
        """
        for factor, wanted in only.items():
            values = {str(run.factors[factor]) for run in self.runs if factor in run.factors}
            unknown = [value for value in wanted if value not in values]
            if unknown or not values:
                known = f"has {sorted(values)}" if values else "does not exist"
                raise InputError(f"--only {factor}={','.join(wanted)}: {factor} {known}")
        runs = [
            run
            for run in self.runs
            if all(str(run.factors.get(factor)) in wanted for factor, wanted in only.items())
        ]
        if not runs:
            raise InputError(f"--only: no run of {self.folder.name} has all of {dict(only)}")
        return runs


def load_study(
    folder: Path,
    *,
    output: str = "",
    seeds: Sequence[int] = (),
    opts: Sequence[str] = (),
) -> Study:
    """Read a study.

    Args:
        folder: that holds study.yaml.
        output: instead of the file's.
        seeds: instead of the file's.
        opts: KEY VALUE pairs for every run, after its own.

    Raises:
        InputError: for a file that is missing or wrong; the message names file and key.
    """
    path = folder / STUDY_FILE
    content = _read(path)
    if seeds:
        content["runs"] = [{**block, "seed": list(seeds)} for block in content["runs"]]
    root = Path(output or content["output"])
    runs: dict[str, Run] = {}
    for index, block in enumerate(content["runs"]):
        for factors in _product(block, content["factors"], f"{path}: runs[{index}]"):
            overrides = _overrides(content, factors, path)
            name = "-".join(_label(factor, value) for factor, value in factors.items())
            runs.setdefault(name, Run(factors, overrides + list(opts), root / name))
    return Study(
        folder=folder,
        config=(folder / content["config"]).resolve(),
        output=root,
        content=content,
        runs=list(runs.values()),
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except yaml.YAMLError as error:
        raise InputError(f"{path}: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected a mapping with {', '.join(REQUIRED)}")
    missing = [key for key in REQUIRED if key not in content]
    unknown = [key for key in content if key not in (*REQUIRED, *OPTIONAL)]
    if missing or unknown:
        raise InputError(f"{path}: missing keys {missing}, unknown keys {unknown}")
    return content


def _product(
    block: Mapping[str, Any], factors: Mapping[str, Any], where: str
) -> Iterator[dict[str, Value]]:
    """All combinations of a block's values, each in the order of the study's factors.

    A key such as "method, sampling" takes its factors together, one from each list of values.
    """
    axes = []
    for key, values in block.items():
        names = [name.strip() for name in key.split(",")]
        unknown = [name for name in names if name not in factors]
        if unknown:
            raise InputError(f"{where}: {unknown[0]!r} is no factor, expected {list(factors)}")
        choices = values if isinstance(values, list) else [values]
        rows = [choice if len(names) > 1 else [choice] for choice in choices]
        if any(not isinstance(row, list) or len(row) > len(names) for row in rows):
            raise InputError(f"{where}: {key!r} takes lists of up to {len(names)} values")
        axes.append([dict(zip(names, row, strict=False)) for row in rows])
    for combination in itertools.product(*axes):
        merged = {name: value for part in combination for name, value in part.items()}
        yield {name: merged[name] for name in factors if name in merged}


def _overrides(content: Mapping[str, Any], factors: Mapping[str, Value], path: Path) -> list[str]:
    """KEY VALUE pairs: those of all runs, then those of each factor's value.

    A factor is a mapping from its values to {KEY: VALUE}, or the list of keys that take its value.
    """
    pairs: dict[str, Any] = dict(content.get("common") or {})
    for factor, value in factors.items():
        meaning = content["factors"][factor]
        if isinstance(meaning, list):
            pairs |= dict.fromkeys(meaning, value)
        elif value in meaning:
            pairs |= meaning[value] or {}
        else:
            raise InputError(f"{path}: factors.{factor} has no {value!r}, only {list(meaning)}")
    return [str(item) for pair in pairs.items() for item in pair]


def _label(factor: str, value: Value) -> str:
    return f"{factor}{value}" if isinstance(value, int) else value
