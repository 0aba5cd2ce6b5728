"""Train many tiny steps and check that memory, open files and step times do not grow.

The second tenth of the training is compared with the last one; the first tenth is warm-up. The exit
status is 1 if resident memory grew by more than one percent or files were left open. Each batch on
its way from a worker is an open file too, so open files are compared by their lowest decile.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import fmean, median, quantiles

import psutil
from tabulate import tabulate

from tests.support.short_training import COMMAND, arguments, make_data

MAX_GROWTH = 0.01  # of resident memory
MAX_NEW_FILES = 5  # the number of open files wavers, and 8 evaluations lie between
SECONDS = 1.0  # between two samples
OPEN_FILES = "open files, at least"
Sample = dict[str, float]


def sample(process: psutil.Process) -> Sample:
    """Measure what a training and its data workers hold now."""
    workers = process.children()
    return {
        "resident memory, MiB": process.memory_info().rss / 2**20,
        "of each worker, MiB": fmean([w.memory_info().rss / 2**20 for w in workers] or [0.0]),
        OPEN_FILES: process.num_fds() + sum(w.num_fds() for w in workers),
        "threads": process.num_threads(),
    }


def watch(command: list[str]) -> list[Sample]:
    """Run a training to its end and sample it while it has data workers."""
    samples = []
    training = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    process = psutil.Process(training.pid)
    while training.poll() is None:
        try:
            if process.children():
                samples.append(sample(process))
        except psutil.NoSuchProcess:  # it has just ended
            break
        time.sleep(SECONDS)
    if training.wait():
        sys.exit(f"error: the training ended with status {training.returncode}")
    return samples


def step_times(metrics: Path) -> list[float]:
    """Seconds of each step, from a training's metrics.json."""
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    return [line["time"] for line in lines if "time" in line]


def tenths(name: str, values: list[float]) -> tuple[float, float]:
    """Typical value of the second tenth and of the last: the median, or the decile of files."""
    size = len(values) // 10

    def typical(part: list[float]) -> float:
        if name == OPEN_FILES:
            return quantiles(part, n=10, method="inclusive")[0]
        return median(part)

    return typical(values[size : 2 * size]), typical(values[-size:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20_000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root, output = Path(folder) / "data", Path(folder) / "out"
        make_data(root)
        command = [*COMMAND, *arguments(root, output, "explicit", 1)]
        command += ["SOLVER.MAX_ITER", str(args.steps), "TEST.EVAL_PERIOD", str(args.steps // 10)]
        command += ["SOLVER.CHECKPOINT_PERIOD", str(args.steps // 20)]
        samples = watch(command)
        figures = {name: tenths(name, [x[name] for x in samples]) for name in samples[0]}
        figures["seconds a step"] = tenths("time", step_times(output / "metrics.json"))
    rows = [(name, *pair, f"{pair[1] / pair[0] - 1:+.2%}") for name, pair in figures.items()]
    headers = (f"of {args.steps} steps", "second tenth", "last tenth", "growth")
    print(tabulate(rows, headers=headers, tablefmt="pipe", floatfmt=".4g"))
    before, after = figures["resident memory, MiB"]
    files = figures[OPEN_FILES]
    sys.exit(int(after > before * (1 + MAX_GROWTH) or files[1] > files[0] + MAX_NEW_FILES))


if __name__ == "__main__":
    main()
