"""Lives of a tiny training, each in a process that can be killed at any moment.

A warm process that has imported everything forks a child for each life of a training, in which the
real command runs. Nothing here starts a thread before a fork.
"""

import importlib.util
import math
import os
import signal
import sys
import time
import traceback
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from detectron2.engine import HookBase, default_argument_parser
from detectron2.engine import defaults as detectron2_defaults
from torch.utils import tensorboard  # noqa: F401

from mtfixmatch.engine import trainer as trainer_module
from mtfixmatch.engine.history import WriteMetrics
from mtfixmatch.runtime.signals import STOPPED
from mtfixmatch.street import generate as street
from tests.support.faulty import at_byte, at_call
from tests.support.helpers import CONFIGS, REPOSITORY, SMALL

STEPS, PERIOD = 12, 2
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


def make_data(root: Path) -> None:
    street.generate(root / "street", num_train=8, num_val=1, size=(64, 64), seed=1)


def arguments(root: Path, output: Path, sampler: str, workers: int) -> list[str]:
    """Of the command; the same for the first start of a training and for all others."""
    places = {"DATASETS.ROOT": root, "DATASETS.CACHE_DIR": root / "cache", "OUTPUT_DIR": output}
    loader = {"DATALOADER.SAMPLING": sampler, "DATALOADER.NUM_WORKERS": workers}
    pairs = [str(x) for pair in (OPTS | places | loader).items() for x in pair]
    return ["--config-file", str(CONFIGS / "street" / "resnet18.yaml"), "--resume", *pairs]


# One life, in a child process


class _Tell(HookBase):
    """Says which step the training starts from and which ones are complete."""

    def __init__(self, pipe: int):
        self._pipe = pipe

    def before_train(self) -> None:
        os.write(self._pipe, f"start {self.trainer.start_iter}\n".encode())

    def after_step(self) -> None:
        os.write(self._pipe, f"done {self.trainer.iter}\n".encode())


def _train(args: list[str], pipe: int) -> None:
    spec = importlib.util.spec_from_file_location(
        "train_net", REPOSITORY / "projects" / "train_net.py"
    )
    assert spec and spec.loader
    command = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(command)
    build_hooks = trainer_module.MultiTaskTrainer.build_hooks
    trainer_module.MultiTaskTrainer.build_hooks = lambda t: [*build_hooks(t), _Tell(pipe)]
    # A line for every step, so that none can be missed, or between checkpoints.
    trainer_module.WriteMetrics = partial(WriteMetrics, period=1 if "explicit" in args else 3)
    # It looks at the machine, which takes long.
    detectron2_defaults.collect_env_info = str
    command.launch_main(default_argument_parser().parse_args(args))


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class Kill:
    """When a life ends.

    Attributes:
        kind: what it is counted as.
        steps: after this many complete steps, -1 for "never", ...
        last: ... or after the step of this number ...
        delay: ... and so many seconds, the parent sends ...
        number: ... this signal.
        byte: or it kills itself in the write that passes this byte of all that it writes,
        call: or in this call of the system (its name, its number).
    """

    kind: str = ""
    steps: int = -1
    last: int = -1
    delay: float = 0.0
    number: int = signal.SIGKILL
    byte: int = -1
    call: tuple[str, int] | None = None

    def armed(self) -> AbstractContextManager:
        """In the child."""
        if self.byte >= 0:
            return at_byte(self.byte, _die)
        return at_call(*self.call, _die) if self.call else nullcontext()


@dataclass
class Life:
    """What was seen of one: the step it started from (-1: it did not get there), the last one."""

    start: int = -1
    last: int = -1
    status: int = 0  # as of os.waitpid, decoded

    @property
    def interrupted(self) -> bool:
        # SIGTERM itself ends a process that has not come to its training yet.
        return self.status in (-signal.SIGKILL, -signal.SIGTERM, STOPPED)


def live(args: list[str], kill: Kill, log: Path) -> Life:
    """Run the command in a child until it ends or is killed."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        _child(args, kill, log, writing)
    os.close(writing)
    os.set_blocking(reading, False)
    life = Life()
    told = b""
    deadline = None
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        told += _read(reading)
        seen = _note(life, told)
        if pid:
            break
        if deadline is None and (0 <= kill.steps <= seen or 0 <= kill.last <= life.last):
            deadline = time.monotonic() + kill.delay
        if deadline is not None and time.monotonic() >= deadline:
            os.kill(child, kill.number)
            deadline = math.inf
        time.sleep(0.003)
    os.close(reading)
    life.status = os.waitstatus_to_exitcode(status)
    return life


def _child(args: list[str], kill: Kill, log: Path, pipe: int) -> None:
    status = 1
    try:
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(out, 1)
        os.dup2(out, 2)
        with kill.armed():
            _train(args, pipe)
        status = 0
    except SystemExit as stop:
        status = stop.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def _read(pipe: int) -> bytes:
    try:
        return os.read(pipe, 65536)
    except BlockingIOError:
        return b""


def _note(life: Life, told: bytes) -> int:
    """Take in what the child has said; how many steps it has completed."""
    steps = 0
    for line in told.decode().splitlines():
        word, number = line.split()
        if word == "start":
            life.start = int(number)
        else:
            life.last = int(number)
            steps += 1
    return steps
