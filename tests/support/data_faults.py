"""Broken inputs and data workers that die or hang, for the campaign of `make faults`."""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from mtfixmatch.street import generate as street
from tests.support.fuzzing import complaints, file_cases, label_cases
from tests.support.helpers import REPOSITORY
from tests.support.kill_training import Tally
from tests.support.lives import arguments, make_data

NAMED_WITHIN = 60  # seconds
BROKEN_SHARE = 0.01


def break_inputs(folder: Path, seed: int, *, cases: int = 500, tries: int = 3) -> dict[str, Tally]:
    """All of it.

    Args:
        folder: for the data.
        seed: of the mutations.
        cases: mutated files, and as many mutated annotations.
        tries: of each fault of a worker.
    """
    data = folder / "data"
    make_data(data)
    return {
        "fuzzed file": _fuzz(file_cases(), cases, seed, folder),
        "fuzzed annotation": _fuzz(label_cases(), cases, seed, folder),
        "data worker killed": _repeat(tries, data, folder / "killed", _kill),
        "data worker stopped": _repeat(tries, data, folder / "stopped", _stop),
        "data worker reads for ever": _repeat(tries, data, folder / "pipe", _block),
        "1 % of the images broken": _train_with_broken(folder / "broken"),
    }


def _fuzz(cases: list, count: int, seed: int, folder: Path) -> Tally:
    wrong = complaints(cases, count, seed, folder)
    return Tally(count, count - len(wrong), wrong=wrong)


class _Run:
    """The command with two workers, its steps endless, and what it says."""

    def __init__(self, data: Path, output: Path):
        args = arguments(data, output, "implicit", 2)
        args += [
            "SOLVER.MAX_ITER",
            "100000",
            "SOLVER.CHECKPOINT_PERIOD",
            "0",
            "TEST.EVAL_PERIOD",
            "0",
        ]
        command = [sys.executable, "-W", "ignore", str(REPOSITORY / "projects" / "train_net.py")]
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": "1"}
        self._metrics = output / "metrics.json"
        self._log = output.with_suffix(".log")
        output.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                [*command, *args], env=environment, stdout=log, stderr=subprocess.STDOUT
            )
        while not self._metrics.exists() or not self._metrics.read_text():
            assert self.process.poll() is None, self._log.read_text()[-2000:]
            time.sleep(0.2)

    def workers(self) -> list[int]:
        """Its data workers: all of its processes."""
        pid = self.process.pid
        return [int(x) for x in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def end(self) -> tuple[str, float]:
        """What it said in the end, and how many seconds from now that took."""
        start = time.monotonic()
        watchdog = threading.Timer(5 * NAMED_WITHIN, self.process.kill)
        watchdog.start()
        self.process.wait()
        watchdog.cancel()
        return self._log.read_text(), time.monotonic() - start


def _kill(run: _Run, data: Path) -> str:
    pid = run.workers()[0]
    os.kill(pid, signal.SIGKILL)
    return f"data worker {pid} was killed by SIGKILL"


def _stop(run: _Run, data: Path) -> str:
    pid = run.workers()[0]
    os.kill(pid, signal.SIGSTOP)
    return f"process {pid} is stopped"


def _block(run: _Run, data: Path) -> str:
    """Put pipes into which nobody writes in the places of all images but those of evaluation."""
    for path in (data / "street" / "leftImg8bit" / "train").glob("*/*.png"):
        path.unlink()
        os.mkfifo(path)
    return rf"process ({'|'.join(map(str, run.workers()))}) hangs while reading \S+\.png"


def _repeat(tries: int, data: Path, folder: Path, act) -> Tally:
    tally = Tally(tries)
    for i in range(tries):
        own = folder / f"data_{i}"
        shutil.copytree(data, own)
        run = _Run(own, folder / f"run_{i}")
        said = act(run, own)
        text, seconds = run.end()
        errors = [line for line in text.splitlines() if line.startswith("error: ")]
        good = len(errors) == 1 and re.search(said, errors[0]) and "Traceback" not in text
        if good and seconds <= NAMED_WITHIN and run.process.returncode == 1:
            tally.survived += 1
        else:
            tally.wrong.append(f"{said}: after {seconds:.0f} s: {text[-1000:]}")
    return tally


def _train_with_broken(folder: Path) -> Tally:
    """One image in a hundred, half of them cut off in the header, which is seen at the start."""
    data, output = folder / "data", folder / "run"
    street.generate(data / "street", num_train=200, num_val=1, size=(64, 64), seed=1)
    images = sorted((data / "street" / "leftImg8bit" / "train").glob("*/*.png"))
    spoilt = images[:: round(1 / BROKEN_SHARE)]
    for i, path in enumerate(spoilt):
        path.write_bytes(path.read_bytes()[: 20 if i % 2 else 400])
    args = arguments(data, output, "explicit", 2)
    more = ("DATALOADER.SKIP_BROKEN", True, "SOLVER.MAX_ITER", 250, "SOLVER.CHECKPOINT_PERIOD", 0)
    done = subprocess.run(
        [
            *(sys.executable, "-W", "ignore", str(REPOSITORY / "projects" / "train_net.py")),
            *(*args, *map(str, more), "TEST.EVAL_PERIOD", "0"),
        ],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
    )
    report = (output / "report.md").read_text() if done.returncode == 0 else ""
    listed = sum(report.count(str(path)) == 1 for path in spoilt)
    wrong = [] if listed == len(spoilt) else [f"{listed} are listed: {done.stderr[-1000:]}"]
    return Tally(len(spoilt), listed, wrong=wrong)
