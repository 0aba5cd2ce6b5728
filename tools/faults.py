"""Kill trainings, break writes and inputs, corrupt steps, and print what was survived.

What it means to survive a fault:
a training that is killed leaves in the end, bit by bit but for times, what an undisturbed one left;
a failing save reports its error, and the checkpoint before it loads;
a corrupt input is read correctly or named;
a lost data worker is named within a minute;
a step with a value that is not finite changes nothing on any rank;
a failing rank is named, and all processes end within a minute.
"""

import argparse
import json
import logging
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path

import torch
from tabulate import tabulate

from mtfixmatch.street import generate as street
from mtfixmatch.utils.errors import InputError
from tests.support import break_ranks
from tests.support.clusters import Cluster
from tests.support.disk_faults import FAULTS, at_byte, bytes_of_a_save, raising, resumed, save
from tests.support.faulty_steps import spoil_in_two_processes
from tests.support.fuzz import boxes, maps
from tests.support.fuzz.cases import Case, complaints, file_cases, label_cases
from tests.support.helpers import REPOSITORY
from tests.support.kill_training import SIGKILL, SIGKILL_IN_WRITE, SIGTERM, Campaign
from tests.support.ranks import CASES, differs
from tests.support.short_training import (
    COMMAND,
    Tally,
    arguments,
    children_of,
    differences,
    make_data,
)

Tallies = dict[str, Tally]  # by kind of fault
Complaints = Callable[[str, int, int, Path], list[str]]  # about a format: name, count, seed, folder

SHARES = {SIGKILL: 0.5, SIGKILL_IN_WRITE: 0.4, SIGTERM: 0.1}
OFFSETS, CUTS = 20, 50  # of failing writes of a save, of truncated checkpoints
# Files, and as many annotations and label files of each format; faults of each kind.
FUZZED, WORKER_TRIES = 500, 3
# Kind of labels -> names of the formats, and what fuzzes them.
FORMATS: dict[str, tuple[Collection[str], Complaints]] = {
    "boxes": (boxes.SAYS, boxes.box_complaints),
    "maps": (maps.SAYS, maps.map_complaints),
}
NAMED_WITHIN = 60  # seconds
BROKEN_SHARE = 0.01
# SOLVER.STALL_SECONDS -> tries; the last one is the default, and takes a minute each time.
RANK_TRIES = {
    "7": dict(zip(break_ranks.KINDS, (10, 5, 5, 10, 5, 3, 5), strict=True)),
    "40": {break_ranks.STOPPED_RANK: 1, break_ranks.ASLEEP: 1, break_ranks.MACHINE: 1},
}
MIXES = 34  # of each case
RESTARTS = 5  # by torchrun, and of a job of SLURM


def run_support(module: str, *args) -> str:
    """Run a module of tests/support in a process of its own and return what it prints."""
    command = [sys.executable, "-W", "ignore", "-m", f"tests.support.{module}", *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    return done.stdout


# Checkpoints and steps


def interrupt(folder: Path, kills: int, seed: int) -> Tallies:
    """Kill trainings and resume them."""
    campaign = Campaign(folder, seed)
    campaign.run(kills, SHARES)
    return campaign.tallies


def save_fails(folder: Path, offset: int, number: int) -> bool:
    """Whether a save that fails at a byte with an errno says why."""
    try:
        with at_byte(offset, raising(number)):
            save(folder, 2)
    except InputError as error:
        return os.strerror(number) in str(error)
    return False


def break_writes(folder: Path) -> Tallies:
    """Let a save fail at many bytes, and truncate the newest checkpoint."""
    total = bytes_of_a_save(folder / "size")
    tallies = {}
    for name, number in FAULTS.items():
        run = folder / name
        run.mkdir()
        save(run, 1)
        offsets = [total * i // OFFSETS for i in range(OFFSETS)]
        good = [save_fails(run, offset, number) and resumed(run) == 1 for offset in offsets]
        tallies[f"{name} in a write"] = Tally(len(good), sum(good))
    logging.getLogger("mtfixmatch").setLevel(logging.ERROR)  # each truncation would be warned of
    newest = folder / "size" / "model_0000002.pth"
    whole = newest.read_bytes()
    good = []
    for i in range(CUTS):
        newest.write_bytes(whole[: len(whole) * i // CUTS])
        good.append(resumed(folder / "size") == 1)
    tallies["newest checkpoint truncated"] = Tally(len(good), sum(good))
    return tallies


def corrupt_steps(folder: Path) -> Tallies:
    """Put a value that is not finite into each place of a step, on each of two ranks."""
    data, output = folder / "data", folder / "run"
    make_data(data)
    output.mkdir()
    ranks = spoil_in_two_processes(data, output)
    tallies: Tallies = {}
    for key in [key for key in ranks[0] if key != "end"]:
        place, _, policy = key
        errors = {results[key]["error"] for results in ranks}
        good = len(errors) == 1 and all(errors) == (policy == "stop")
        good = good and all(results[key]["unchanged"] for results in ranks)
        tallies.setdefault(f"not finite: {place}", Tally()).add("" if good else f"{key}: {errors}")
    return tallies


# Inputs and data workers


def break_inputs(folder: Path, seed: int) -> Tallies:
    """Corrupt files and annotations, and kill, stop and block data workers."""
    data = folder / "data"
    make_data(data)
    return {
        "fuzzed file": fuzz(file_cases(), seed, folder),
        "fuzzed annotation": fuzz(label_cases(), seed, folder),
        **{
            f"fuzzed labels of {kind}, {name}": fuzz_format(of_kind, name, seed, folder / kind)
            for kind, (names, of_kind) in FORMATS.items()
            for name in names
        },
        "data worker killed": break_workers(data, folder / "killed", kill_worker),
        "data worker stopped": break_workers(data, folder / "stopped", stop_worker),
        "data worker reads forever": break_workers(data, folder / "pipe", block_workers),
        "1 % of the images broken": train_with_broken_images(folder / "broken"),
    }


def fuzz(cases: list[Case], seed: int, folder: Path) -> Tally:
    wrong = complaints(cases, FUZZED, seed, folder)
    return Tally(FUZZED, FUZZED - len(wrong), problems=wrong)


def fuzz_format(find: Complaints, name: str, seed: int, folder: Path) -> Tally:
    wrong = find(name, FUZZED, seed, folder / name)
    return Tally(FUZZED, FUZZED - len(wrong), problems=wrong)


def start_endless(data: Path, output: Path) -> subprocess.Popen:
    """Start a training with two data workers that does not end, and wait for its first step."""
    opts = ("SOLVER.MAX_ITER", 100000, "SOLVER.CHECKPOINT_PERIOD", 0, "TEST.EVAL_PERIOD", 0)
    command = [*COMMAND, *arguments(data, output, "implicit", 2), *map(str, opts)]
    metrics, path = output / "metrics.json", output.with_suffix(".log")
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    with path.open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=REPOSITORY)
    while not metrics.exists() or not metrics.read_text():
        assert process.poll() is None, path.read_text()[-2000:]
        time.sleep(0.2)
    return process


def kill_worker(workers: list[int], data: Path) -> str:
    os.kill(workers[0], signal.SIGKILL)
    return f"data worker {workers[0]} was killed by SIGKILL"


def stop_worker(workers: list[int], data: Path) -> str:
    os.kill(workers[0], signal.SIGSTOP)
    return f"process {workers[0]} is stopped"


def block_workers(workers: list[int], data: Path) -> str:
    """Replace all training images by pipes into which nobody writes."""
    for path in (data / "street" / "leftImg8bit" / "train").glob("*/*.png"):
        path.unlink()
        os.mkfifo(path)
    return rf"process ({'|'.join(map(str, workers))}) hangs\b.* \S+\.png"


def break_workers(data: Path, folder: Path, fault: Callable[[list[int], Path], str]) -> Tally:
    """Break the data workers of trainings.

    Args:
        data: a data set, which each training gets a copy of.
        folder: where the trainings are.
        fault: breaks workers, given their process ids and the data; returns a pattern of the error.
    """
    tally = Tally()
    for i in range(WORKER_TRIES):
        own, output = folder / f"data_{i}", folder / f"run_{i}"
        shutil.copytree(data, own)
        process = start_endless(own, output)
        pattern = fault(children_of(process.pid), own)
        start = time.monotonic()
        watchdog = threading.Timer(5 * NAMED_WITHIN, process.kill)
        watchdog.start()
        status = process.wait()
        watchdog.cancel()
        seconds, text = time.monotonic() - start, output.with_suffix(".log").read_text()
        errors = [line for line in text.splitlines() if line.startswith("error: ")]
        named = len(errors) == 1 and re.search(pattern, errors[0]) and "Traceback" not in text
        good = named and status == 1 and seconds <= NAMED_WITHIN
        tally.add("" if good else f"{pattern}: after {seconds:.0f} s: {text[-1000:]}")
    return tally


def train_with_broken_images(folder: Path) -> Tally:
    """Train on images of which one in a hundred is truncated, half of those in the header."""
    data, output = folder / "data", folder / "run"
    street.generate(data / "street", num_train=200, num_val=1, size=(64, 64), seed=1)
    images = sorted((data / "street" / "leftImg8bit" / "train").glob("*/*.png"))
    broken = images[:: round(1 / BROKEN_SHARE)]
    for i, path in enumerate(broken):
        path.write_bytes(path.read_bytes()[: 20 if i % 2 else 400])
    opts = ("DATALOADER.SKIP_BROKEN", True, "SOLVER.MAX_ITER", 250, "SOLVER.CHECKPOINT_PERIOD", 0)
    command = [*COMMAND, *arguments(data, output, "explicit", 2), *map(str, opts)]
    command += ["TEST.EVAL_PERIOD", "0"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    report = (output / "report.md").read_text() if done.returncode == 0 else ""
    tally = Tally()
    for path in broken:
        listed = report.count(str(path)) == 1
        tally.add("" if listed else f"{path} is not listed: {done.stderr[-1000:]}")
    return tally


# Several processes


def break_processes(folder: Path, seed: int) -> Tallies:
    """Break ranks, restart trainings by torchrun and SLURM, and mix labels over two ranks."""
    tallies: Tallies = {}
    for seconds, tries in RANK_TRIES.items():
        place = folder / f"ranks_{seconds}"
        place.mkdir()
        out = run_support("break_ranks", place, seed, seconds, json.dumps(tries))
        for kind, result in json.loads(out.splitlines()[-1]).items():
            tally = tallies.setdefault(kind, Tally())
            tally.tries += result["tries"]
            tally.survived += result["survived"]
            tally.problems += result["problems"]
    tallies["labels mixed over 2 ranks"] = mix_labels(folder, seed)
    return tallies | restart(folder / "cluster", seed)


def restart(folder: Path, seed: int) -> Tallies:
    """Kill ranks under torchrun, stop jobs of SLURM, and compare with an undisturbed training."""
    folder.mkdir()
    rng, cluster = random.Random(seed), Cluster(folder)
    expected, killed, stopped = cluster.train("whole"), Tally(), Tally()
    for i in range(RESTARTS):
        rank, delay = rng.randrange(2), rng.uniform(0, 0.5)
        kill = partial(cluster.kill_under_torchrun, f"killed_{i}", rank, delay)
        killed.add(problem_of(kill, expected))
        number, delay = rng.choice((signal.SIGTERM, signal.SIGUSR1)), rng.uniform(0, 0.5)
        stop = partial(cluster.requeue, f"asked_{i}", number, delay)
        stopped.add(problem_of(stop, expected))
    return {"rank killed under torchrun": killed, "job stopped and queued again": stopped}


def problem_of(train: Callable[[], Path], expected: Path) -> str:
    """How the folder that a training returns differs from the expected one; "" if it does not."""
    try:
        return ", ".join(differences(expected, train()))
    except AssertionError as error:
        return str(error) or "an assertion failed"


def mix_labels(folder: Path, seed: int) -> Tally:
    """Compare steps on random mixes of labels of two processes with those of one."""
    root, output = folder / "mixes_data", folder / "mixes"
    output.mkdir()
    street.generate(root / "street", num_train=16, num_val=6, size=(256, 128), seed=1)
    run_support("ranks", root, output, MIXES, 0, seed)
    single, *ranks = (
        torch.load(output / f"mixes_{name}.pth") for name in ("0_of_1", "0_of_2", "1_of_2")
    )
    tally = Tally()
    for case in CASES:
        for i in range(MIXES):
            wrong = [x for rank in ranks for x in differs(rank[case][i], single[case][i])]
            tally.add(f"{case}, mix {i}: {wrong}" if wrong else "")
    return tally


def rows_of(tallies: Tallies) -> list[list]:
    rows = []
    for kind, tally in sorted(tallies.items()):
        steps = tally.repeated
        repeated = f"{sum(steps) / len(steps):.1f} / {max(steps)}" if steps else ""
        rows.append([kind, tally.tries, tally.survived, repeated])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", help="of the whole; all of them by default")
    parser.add_argument("--kills", type=int, default=230, help="of trainings, a tenth by SIGTERM")
    parser.add_argument("--seed", type=int, default=0, help="seed of all that is random")
    args = parser.parse_args()
    parts: dict[str, Callable[[Path], Tallies]] = {
        "interruptions": lambda folder: interrupt(folder, args.kills, args.seed),
        "disks": break_writes,
        "steps": corrupt_steps,
        "inputs": lambda folder: break_inputs(folder, args.seed),
        "processes": lambda folder: break_processes(folder, args.seed),
    }
    if unknown := set(args.parts) - set(parts):
        parser.error(f"{', '.join(sorted(unknown))}: the parts are {', '.join(parts)}")
    tallies: Tallies = {}
    for name in args.parts or parts:
        with tempfile.TemporaryDirectory() as folder:
            new = parts[name](Path(folder))
        headers = [f"fault ({name})", "tries", "survived", "steps repeated, mean / most"]
        print(tabulate(rows_of(new), headers=headers, tablefmt="pipe"), flush=True)
        tallies |= new
    problems = [text for tally in tallies.values() for text in tally.problems]
    if problems or any(tally.survived < tally.tries for tally in tallies.values()):
        sys.exit("\n".join(["not all faults were survived", *problems[:20]]))


if __name__ == "__main__":
    main()
