"""The config files below configs/: how they are based on each other."""

from pathlib import Path

import pytest
import yaml

from tests.support.helpers import CONFIGS

FILES = sorted(CONFIGS.rglob("*.yaml"))
MAX_FILES = 3


def chain(path: Path) -> list[Path]:
    """A config file and those it is based on, in this order."""
    base = yaml.safe_load(path.read_text()).get("_BASE_")
    return [path, *(chain((path.parent / base).resolve()) if base else ())]


def name(path: Path) -> str:
    return path.relative_to(CONFIGS).as_posix()


@pytest.mark.parametrize("path", FILES, ids=name)
def test_a_chain_of_configs_has_at_most_three_files(path):
    assert 1 <= len(chain(path)) <= MAX_FILES


@pytest.mark.parametrize("path", FILES, ids=name)
def test_configs_are_based_on_bases_only(path):
    """A config for one dataset is never the base of another."""
    assert all(base.name.startswith("Base-") for base in chain(path)[1:])


def test_every_base_is_used():
    bases = {path for path in FILES if path.name.startswith("Base-")}
    assert bases == {base for path in FILES for base in chain(path)[1:]}
