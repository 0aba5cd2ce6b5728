"""The plan of a study: study.yaml turned into runs, each with its own config overrides."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ..utils.errors import InputError
from .archive import ARCHIVE_FILE, read_archive

Value = str | int
STUDY_FILE = "study.yaml"
# Keys of a study file; layout.py and report.py read those of the report.
REQUIRED = ("title", "config", "output", "factors", "runs")
OPTIONAL = ("common", "tables", "per_class", "curves", "figure")


@dataclass(frozen=True)
class Run:
    """One training of a study.

    Attributes:
        factors: name -> value, in the order of the study's factors; a factor that does not apply
            is absent, such as the unlabeled images of a supervised baseline.
        overrides: KEY VALUE pairs for train_net.py, in this order.
        folder: OUTPUT_DIR of the training.
        archived: file name -> content, read where the folder does not exist.
    """

    factors: dict[str, Value]
    overrides: list[str]
    folder: Path
    archived: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name of its folder, made of its factors' values."""
        return self.folder.name

    @property
    def source(self) -> str:
        """Where its files are read from, for messages."""
        archived = self.archived and not self.folder.is_dir()
        return f"{ARCHIVE_FILE}/{self.name}" if archived else str(self.folder)

    def read(self, name: str) -> str | None:
        """Return the text of one of its files, from the folder or else from the archive.

        Returns:
            None if there is no such file.

        Raises:
            InputError: for a file that cannot be read.
        """
        try:
            in_folder = self.folder.is_dir()
            return (self.folder / name).read_text() if in_folder else self.archived[name].decode()
        except (FileNotFoundError, KeyError):
            return None
        except (OSError, ValueError) as error:
            raise InputError(f"{self.source}/{name}: cannot be read ({error})") from None


@dataclass(frozen=True)
class Study:
    """A study file with its runs.

    Attributes:
        folder: of the study file; paper.csv, README.md and the archive of runs lie beside it.
        config: the config file that all runs start from.
        output: where the runs' folders are.
        content: of the study file.
        runs: all of them.
        own_output: whether `output` is that of the study file, which the archive belongs to.
    """

    folder: Path
    config: Path
    output: Path
    content: dict[str, Any]
    runs: list[Run]
    own_output: bool

    @property
    def archive(self) -> Path:
        """The archive of its finished runs."""
        return self.folder / ARCHIVE_FILE

    def select(self, only: Mapping[str, Sequence[str]]) -> list[Run]:
        """Return the runs that have one of the given values in each of the given factors.

        Raises:
            InputError: for an unknown factor or value, or if no run is left.
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

    Runs of the study's own output may be archived; with another output every run starts anew.

    Args:
        folder: of study.yaml.
        output: replaces the file's output folder.
        seeds: replace the file's seeds.
        opts: KEY VALUE pairs for every run, after its own.

    Raises:
        InputError: for a missing or wrong file; the message names file and key.
    """
    path = folder / STUDY_FILE
    content = _read(path)
    if seeds:
        content["runs"] = [{**block, "seed": list(seeds)} for block in content["runs"]]
    root = Path(output or content["output"])
    own_output = root == Path(content["output"])
    archive = read_archive(folder / ARCHIVE_FILE) if own_output else {}
    runs: dict[str, Run] = {}
    for index, block in enumerate(content["runs"]):
        for factors in _product(block, content["factors"], f"{path}: runs[{index}]"):
            overrides = _overrides(content, factors, path) + list(opts)
            name = "-".join(_label(factor, value) for factor, value in factors.items())
            runs.setdefault(name, Run(factors, overrides, root / name, archive.get(name, {})))
    return Study(
        folder=folder,
        config=(folder / content["config"]).resolve(),
        output=root,
        content=content,
        runs=list(runs.values()),
        own_output=own_output,
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
    """Yield all combinations of a block's values, each in the order of the study's factors.

    A key such as "method, sampling" varies its factors together; each of its values is a list.
    """
    axes = []
    for key, values in block.items():
        names = [name.strip() for name in key.split(",")]
        unknown = [name for name in names if name not in factors]
        if unknown:
            raise InputError(
                f"{where}: {unknown[0]!r} is no factor, expected one of {list(factors)}"
            )
        choices = values if isinstance(values, list) else [values]
        rows = [choice if len(names) > 1 else [choice] for choice in choices]
        if any(not isinstance(row, list) or len(row) > len(names) for row in rows):
            raise InputError(f"{where}: {key!r} takes lists of up to {len(names)} values")
        axes.append([dict(zip(names, row, strict=False)) for row in rows])
    for combination in itertools.product(*axes):
        merged = {name: value for part in combination for name, value in part.items()}
        yield {name: merged[name] for name in factors if name in merged}


def _overrides(content: Mapping[str, Any], factors: Mapping[str, Value], path: Path) -> list[str]:
    """Return the KEY VALUE pairs of all runs, then those of each factor's value.

    A factor maps its values to {KEY: VALUE}, or lists the keys that take its value.
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
