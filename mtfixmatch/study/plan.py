"""The plan of a study: study.yaml turned into runs, each with its own config overrides."""

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ..utils.checkout import config_path
from ..utils.errors import InputError
from ..utils.files import reading
from .archive import ARCHIVE_FILE, read_archive

Value = str | int
STUDY_FILE = "study.yaml"
# Keys of a study file; layout.py and report.py read those of the report.
REQUIRED = ("title", "config", "output", "factors", "runs")
OPTIONAL = ("common", "tables", "per_class", "curves", "settings", "figure")


@dataclass(frozen=True)
class Run:
    """One training of a study."""

    factors: dict[str, Value]  # in the study's order; one that does not apply is absent
    overrides: list[str]  # KEY VALUE pairs for train_net.py, in this order
    folder: Path  # OUTPUT_DIR of the training
    archived: Mapping[str, bytes] = field(default_factory=dict)  # file name -> content

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
        """Return the text of a file in its folder, else in the archive; None without the file."""
        try:
            in_folder = self.folder.is_dir()
            return (self.folder / name).read_text() if in_folder else self.archived[name].decode()
        except (FileNotFoundError, KeyError):
            return None
        except (OSError, ValueError) as error:
            raise InputError(f"{self.source}/{name}: cannot be read ({error})") from None


@dataclass(frozen=True)
class Study:
    """A study file with its runs."""

    folder: Path  # paper.csv, README.md and the archive of runs lie beside the study file
    config: Path  # the config file that all runs start from
    output: Path  # where the runs' folders are
    content: dict[str, Any]  # of the study file
    runs: list[Run]
    own_output: bool  # whether `output` is that of the study file, which the archive belongs to

    @property
    def archive(self) -> Path:
        """The archive of its finished runs."""
        return self.folder / ARCHIVE_FILE

    def select(self, only: Mapping[str, Sequence[str]]) -> list[Run]:
        """Return the runs with a given value in each factor; raise InputError if none is left."""
        runs = self.runs
        for factor, wanted in only.items():
            values = {str(run.factors[factor]) for run in self.runs if factor in run.factors}
            if not values or not values.issuperset(wanted):
                known = f"has {sorted(values)}" if values else "does not exist"
                raise InputError(f"--only {factor}={','.join(wanted)}: {factor} {known}")
            runs = [run for run in runs if str(run.factors.get(factor)) in wanted]
        if not runs:
            raise InputError(f"--only: no run of {self.folder.name} has all of {dict(only)}")
        return runs


def load_study(
    folder: Path, *, output: str = "", seeds: Sequence[int] = (), opts: Sequence[str] = ()
) -> Study:
    """Read study.yaml; `output` and `seeds` replace its own, `opts` follow each run's overrides.

    Runs of the study's own output may be archived; with another output every run starts anew.
    Raise InputError for a missing or wrong file; the message names file and key.
    """
    path = folder / STUDY_FILE
    try:
        with reading(path):
            content = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise InputError(f"{path}: {' '.join(str(error).split())}") from None
    check_keys(content, (*REQUIRED, *OPTIONAL), REQUIRED, str(path))
    if seeds:
        content["runs"] = [{**block, "seed": list(seeds)} for block in content["runs"]]
    root = Path(output or content["output"])
    own_output = root == Path(content["output"])
    archive = read_archive(folder / ARCHIVE_FILE) if own_output else {}
    runs: dict[str, Run] = {}
    for index, block in enumerate(content["runs"]):
        for factors in _product(block, content["factors"], f"{path}: runs[{index}]"):
            overrides = _overrides(content, factors, path) + list(opts)
            name = "-".join(f"{k}{x}" if isinstance(x, int) else x for k, x in factors.items())
            runs.setdefault(name, Run(factors, overrides, root / name, archive.get(name, {})))
    config = config_path(content["config"], folder).resolve()
    return Study(folder, config, root, content, list(runs.values()), own_output)


def check_keys(entry: Any, known: Collection[str], needed: Collection[str], where: str) -> None:
    """Raise an InputError unless an entry is a mapping with all needed and only known keys."""
    if not isinstance(entry, Mapping):
        raise InputError(f"{where}: expected a mapping with {', '.join(sorted(known))}")
    missing, unknown = sorted(set(needed) - set(entry)), sorted(set(entry) - set(known))
    if missing or unknown:
        raise InputError(f"{where}: missing keys {missing}, unknown keys {unknown}")


def _product(
    block: Mapping[str, Any], factors: Mapping[str, Any], where: str
) -> Iterator[dict[str, Value]]:
    """Yield all combinations of a block's values, each in the order of the study's factors.

    A key such as "method, sampling" varies its factors together; each of its values is a list.
    """
    axes = []
    for key, values in block.items():
        names = [name.strip() for name in key.split(",")]
        if unknown := [name for name in names if name not in factors]:
            raise InputError(f"{where}: {unknown[0]!r} is no factor, only {list(factors)}")
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
