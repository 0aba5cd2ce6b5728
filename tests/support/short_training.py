"""A short training that tests interrupt, and a comparison of two output folders."""

import json
import os
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import torch
from detectron2.engine import HookBase

from mtfixmatch.engine import trainer as trainer_module
from mtfixmatch.street import generate as street
from tests.support.helpers import CONFIGS, REPOSITORY, SMALL

TRAIN_NET = REPOSITORY / "projects" / "train_net.py"
# For a subprocess.
COMMAND = (sys.executable, "-W", "ignore", str(TRAIN_NET))

STEPS, PERIOD = 12, 2  # of the training, between two checkpoints
SAMPLERS = ("explicit", "implicit", "uniform")
OPTS = {
    **SMALL,
    **{"MODEL.RESNETS.DEPTH": 50, "MODEL.RESNETS.STEM_OUT_CHANNELS": 8},
    **{"MODEL.RESNETS.RES2_OUT_CHANNELS": 8, "MODEL.RESNETS.WIDTH_PER_GROUP": 2},
    **{"MODEL.SEM_SEG_HEAD.ASPP_DROPOUT": 0.3, "MODEL.RETINANET.TOPK_CANDIDATES_TEST": 20},
    **{"SOLVER.IMS_PER_BATCH": 2, "DATALOADER.LABELED_PER_BATCH": 1, "INPUT.TRAIN_SIZE": (32, 32)},
    **{"SOLVER.MAX_ITER": STEPS, "SOLVER.CHECKPOINT_PERIOD": PERIOD, "SOLVER.AMP.ENABLED": False},
    **{"TASKS.DETECTION.LABELS": 5, "TASKS.SEGMENTATION.LABELS": 4, "TEST.PICTURES": 1},
    **{"TASKS.DETECTION.THRESHOLD": 0.005, "FIXMATCH.DIAGNOSTICS_PERIOD": 3, "TEST.EVAL_PERIOD": 5},
}
# Entries that hold measured times, and files that a repeated step may change.
TIMES = {"time", "data_time", "eta_seconds"}
CHANGING = ("events.", "log.txt", "config.yaml", "run.lock", "checkpoints.json", "curves.png")


@dataclass
class Tally:
    """How many faults of one kind a training survived.

    Attributes:
        tries: number of faults.
        survived: number of faults that did no harm.
        repeated: number of steps that each fault made the training repeat.
        problems: one text for each fault that did harm.
    """

    tries: int = 0
    survived: int = 0
    repeated: list[int] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def add(self, problem: str) -> None:
        """Count one fault; `problem` is "" if it was survived."""
        self.tries += 1
        self.survived += not problem
        self.problems += [problem] * bool(problem)


def make_data(root: Path) -> None:
    """Write a data set of eight training images, as DATASETS.ROOT."""
    street.generate(root / "street", num_train=8, num_val=1, size=(64, 64), seed=1)


def arguments(root: Path, output: Path, sampler: str, workers: int) -> list[str]:
    """Arguments of train_net.py; the same for the first start and for every restart."""
    places = {"DATASETS.ROOT": root, "DATASETS.CACHE_DIR": root / "cache", "OUTPUT_DIR": output}
    loader = {"DATALOADER.SAMPLING": sampler, "DATALOADER.NUM_WORKERS": workers}
    pairs = [str(x) for pair in (OPTS | places | loader).items() for x in pair]
    return ["--config-file", str(CONFIGS / "street" / "resnet18.yaml"), "--resume", *pairs]


def children_of(pid: int) -> list[int]:
    """Process ids of the children of a process, in ascending order."""
    return sorted(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


# A forked child that runs the command


class StepPipe:
    """Pipe through which forked trainings report their steps to the parent process.

    Attributes:
        start: step that the training started from, -1 until it has started.
        completed: completed steps in the order of the reports, from all ranks.
    """

    def __init__(self) -> None:
        self.start = -1
        self.completed: list[int] = []
        self._reading, self._writing = os.pipe()
        os.set_blocking(self._reading, False)

    def report_from_here(self) -> None:
        """Make the trainers that this process and its children build report their steps."""
        build_hooks, hook = trainer_module.MultiTaskTrainer.build_hooks, _ReportSteps(self._writing)
        trainer_module.MultiTaskTrainer.build_hooks = lambda t: [*build_hooks(t), hook]

    def read(self) -> None:
        """Update the attributes."""
        with suppress(BlockingIOError):
            for line in os.read(self._reading, 65536).decode().splitlines():
                word, number = line.split()
                if word == "start":
                    self.start = int(number)
                else:
                    self.completed.append(int(number))

    def close(self) -> None:
        os.close(self._reading)
        os.close(self._writing)


class _ReportSteps(HookBase):
    def __init__(self, pipe: int) -> None:
        self._pipe = pipe

    def before_train(self) -> None:
        os.write(self._pipe, f"start {self.trainer.start_iter}\n".encode())

    def after_step(self) -> None:
        os.write(self._pipe, f"done {self.trainer.iter}\n".encode())


def run_child(work: Callable[[], None], log: Path) -> NoReturn:
    """Run `work` in a forked child, with its output appended to a log, and end the process."""
    status = 1
    try:
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(out, 1)
        os.dup2(out, 2)
        work()
        status = 0
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 1
        print("" if isinstance(stop.code, int) else stop.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


# Comparison


def differences(expected: Path, output: Path) -> list[str]:
    """Differences between the folders of two trainings, apart from measured times."""
    names = [_names(folder) for folder in (expected, output)]
    wrong = [f"{name} is in one of them only" for name in sorted(names[0] ^ names[1])]
    # A stop signal leaves a checkpoint of its own among the newest.
    counts = [len(list(folder.glob("model_0*.pth"))) for folder in (expected, output)]
    if counts[0] != counts[1]:
        wrong.append(f"{counts[1]} checkpoints are kept, not {counts[0]}")
    for name in sorted(names[0] & names[1]):
        if not _same(*(_content(folder / name) for folder in (expected, output))):
            wrong.append(f"{name} differs")
    return wrong


def _names(folder: Path) -> set[str]:
    older = sorted(path.name for path in folder.glob("model_0*.pth"))[:-1]
    names = {path.name for path in folder.iterdir() if not path.name.startswith(CHANGING)}
    return names.difference(older)


def _content(path: Path):
    if path.suffix == ".pth":
        return torch.load(path, weights_only=True)
    if path.name == "metrics.json":
        return [json.loads(line) for line in path.read_text().splitlines()]
    return path.read_bytes()


def _same(a, b) -> bool:
    if isinstance(a, dict) and isinstance(b, dict):
        keys = a.keys() - TIMES
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in keys)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    return a == b or (a != a and b != b)
