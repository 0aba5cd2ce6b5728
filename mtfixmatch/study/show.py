"""The plan of a study before it starts: its runs, their states, and a check of their configs."""

from collections import Counter
from collections.abc import Sequence

from detectron2.config import CfgNode
from tabulate import tabulate

from ..engine.setup import check_datasets, resolve_config
from ..utils.errors import InputError
from .plan import Run, Study
from .state import state_of


def show_plan(study: Study, runs: Sequence[Run]) -> None:
    """Print the factors and the state of each run, then the number of runs in each state."""
    names = [name for name in study.content["factors"] if any(name in r.factors for r in runs)]
    states = [state_of(run) for run in runs]
    rows = [
        [*(run.factors.get(name, "") for name in names), state.name, state.message]
        for run, state in zip(runs, states, strict=True)
    ]
    print(f"{study.content['title']}: {len(runs)} of {len(study.runs)} runs, in {study.output}")
    print(tabulate(rows, headers=[*names, "state", ""], disable_numparse=True))
    counts = Counter(state.name for state in states)
    print(", ".join(f"{count} {name}" for name, count in counts.items()))


def check_configs(study: Study, runs: Sequence[Run]) -> list[CfgNode]:
    """Resolve the config of every run without data; raise InputError with a wrong one's run.

    A study compares results, so a run without DATASETS.TEST is wrong.
    """
    configs = []
    for run in runs:
        try:
            configs.append(resolve_config(str(study.config), run.overrides))
            check_datasets(configs[-1], ["TRAIN", "TEST"])
        except InputError as error:
            raise InputError(f"{run.name}: {error}") from None
    return configs
