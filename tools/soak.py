"""Train many tiny steps and watch what must not grow: memory, open files, time (`make soak`).

Compared are the second tenth of the training and the last one; the first is warm-up. The exit
status is 1 if resident memory has grown by more than one percent or files were left open. Each
batch on its way from a worker is an open file too, so the number counts that nine looks of ten find
at least.
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

from tests.support.helpers import REPOSITORY
from tests.support.lives import arguments, make_data

MOST_GROWTH = 0.01
MOST_FILES = 5  # that more are open: the number wavers, but there are 8 evaluations between
SECONDS = 1.0  # between two looks
OPEN_FILES = "open files, at least"
Sample = dict[str, float]


def look(process: psutil.Process) -> Sample:
    """What a training and its data workers hold now."""
    workers = process.children()
    return {
        "resident memory, MiB": process.memory_info().rss / 2**20,
        "of each worker, MiB": fmean([w.memory_info().rss / 2**20 for w in workers] or [0.0]),
        OPEN_FILES: process.num_fds() + sum(w.num_fds() for w in workers),
        "threads": process.num_threads(),
    }


def watch(command: list[str]) -> list[Sample]:
    """Run it to its end and look at it, as long as it has its data workers."""
    samples = []
    training = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    process = psutil.Process(training.pid)
    while training.poll() is None:
        try:
            if process.children():
                samples.append(look(process))
        except psutil.NoSuchProcess:  # it has just ended
            break
        time.sleep(SECONDS)
    if training.wait():
        sys.exit(f"error: the training ended with status {training.returncode}")
    return samples


def step_times(metrics: Path) -> list[float]:
    """Seconds a step, as the training wrote them."""
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    return [line["time"] for line in lines if "time" in line]


def low(values: list[float]) -> float:
    """What nine values of ten reach."""
    return quantiles(values, n=10, method="inclusive")[0]


def tenths(name: str, values: list[float]) -> tuple[float, float]:
    """The median of the second tenth, and of the last; of open files the lowest decile."""
    size = len(values) // 10
    typical = low if name == OPEN_FILES else median
    return typical(values[size : 2 * size]), typical(values[-size:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20_000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root, output = Path(folder) / "data", Path(folder) / "out"
        make_data(root)
        command = [sys.executable, "-W", "ignore", str(REPOSITORY / "projects" / "train_net.py")]
        command += arguments(root, output, "explicit", 1)
        command += ["SOLVER.MAX_ITER", str(args.steps), "TEST.EVAL_PERIOD", str(args.steps // 10)]
        command += ["SOLVER.CHECKPOINT_PERIOD", str(args.steps // 20)]
        samples = watch(command)
        figures = {name: tenths(name, [sample[name] for sample in samples]) for name in samples[0]}
        figures["seconds a step"] = tenths("time", step_times(output / "metrics.json"))
    rows = [(name, *pair, f"{pair[1] / pair[0] - 1:+.2%}") for name, pair in figures.items()]
    headers = (f"of {args.steps} steps", "second tenth", "last tenth", "growth")
    print(tabulate(rows, headers=headers, tablefmt="pipe", floatfmt=".4g"))
    before, after = figures["resident memory, MiB"]
    files = figures[OPEN_FILES]
    sys.exit(int(after > before * (1 + MOST_GROWTH) or files[1] > files[0] + MOST_FILES))


if __name__ == "__main__":
    main()
