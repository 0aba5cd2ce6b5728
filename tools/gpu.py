"""Check and measure a training on a GPU (`make gpu`); without one, a line says so.

    python -m tools.gpu [KEY VALUE ...]

One table: the place of all tensors, precisions, synchronizations of a step by line of code, a step
beside its floor, compiled networks and CUDA graphs, memory.
"""

import json
import logging
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from detectron2.utils.events import EventStorage, get_event_storage
from tabulate import tabulate
from torch import Tensor

from mtfixmatch.engine.step import MultiTaskStep
from mtfixmatch.street import generate as street
from mtfixmatch.utils.errors import InputError, first_line
from tools.bench import BLOCK, BLOCKS, Stepper

OUTPUT = "output/gpu.json"
FLOAT32 = ("SOLVER.AMP.ENABLED", "False")
MIXED = ("SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.PRECISION")
FAILED = "failed:"
SITES = 12  # lines of code with synchronizations that the table shows
# Batches whose networks run on the same numbers of images in every step.
FIXED = ("DATALOADER.SAMPLING", "explicit", "DATALOADER.LABELED", "all")

Figures = dict[str, Any]


def elsewhere(step: MultiTaskStep, device: str) -> list[str]:
    """Name what a step holds on another device than this one."""
    modules = {"student": step.student, "teacher": step.teacher, "method": step.method}
    modules["normalizers"] = step.normalizers
    tensors = [(f"{k} {n}", x) for k, m in modules.items() for n, x in m.state_dict().items()]
    state = step.optimizer.state_dict()["state"]
    tensors += [(f"optimizer {i} {n}", x) for i, s in state.items() for n, x in s.items()]
    return [name for name, x in tensors if isinstance(x, Tensor) and x.device.type != device]


def count_waits(run: Callable[[], object]) -> Counter[str]:
    """Count by line of code how often the host waits for the GPU."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    found = [w for w in caught if "synchronizing" in str(w.message)]
    return Counter(f"{w.filename.rpartition('site-packages/')[2]}:{w.lineno}" for w in found)


class Timer:
    """Measures blocks of steps, and what they need alone, after the device has done its work."""

    def __init__(self, wait: Callable[[], object]):
        """Set the function that waits for the device."""
        self.wait = wait

    def seconds(self, run: Callable[[], object]) -> float:
        """Return the seconds that a function and its work on the device take."""
        self.wait()
        start = time.perf_counter()
        run()
        self.wait()
        return time.perf_counter() - start

    def step(self, stepper: Stepper) -> float:
        """Return the seconds of a step."""
        seconds = self.seconds(lambda: stepper.run(BLOCK)) / BLOCK
        stepper.replays.clear()
        return seconds

    def over_floor(self, stepper: Stepper) -> float:
        """Return a step's seconds over those of its passes on ready tensors, alternating."""
        ratios = []
        for _ in range(BLOCKS):
            stepper.replays.clear()
            step = self.seconds(lambda: stepper.run(BLOCK))
            ratios.append(step / self.seconds(stepper.replay))
        return statistics.median(ratios)

    def ratio(self, stepper: Stepper, other: Stepper) -> float:
        """Return the seconds of one step over those of another, alternating."""
        return statistics.median(self.step(stepper) / self.step(other) for _ in range(BLOCKS))


def check_precisions(opts: list[str], timer: Timer) -> Iterator[tuple[str, Any]]:
    """Yield losses and seconds of a step in each precision that the device has."""
    for precision in ("float32", "bfloat16", *(("float16",) if torch.cuda.is_available() else ())):
        amp = FLOAT32 if precision == "float32" else (*MIXED, precision)
        stepper = Stepper(*opts, *amp)
        first = timer.seconds(partial(stepper.run, 1))
        yield f"{precision}: seconds of the first step", first
        yield f"{precision}: seconds of a step", timer.step(stepper)
        yield f"{precision}: total loss", get_event_storage().latest()["total_loss"][0]
        yield f"{precision}: loss scaler", stepper.step.grad_scaler.scalars() or "none"


def check_compiled(opts: list[str], timer: Timer) -> Iterator[tuple[str, Any]]:
    """Yield what compiled networks and CUDA graphs cost and save."""
    plain = Stepper(*opts, *FIXED)
    plain.run(2)
    for name, graphs in (("compiled", "False"), ("CUDA graphs", "True")):
        keys = ("MODEL.COMPILE", "True", "MODEL.CUDA_GRAPHS", graphs)
        try:
            stepper = Stepper(*opts, *FIXED, *keys)
            yield f"{name}: seconds of two first steps", timer.seconds(partial(stepper.run, 2))
            yield f"{name}: step, relative to the plain one", timer.ratio(stepper, plain)
        except InputError as error:
            yield name, str(error)


def check_step(opts: list[str], device: str, timer: Timer) -> Iterator[tuple[str, Any]]:
    """Yield the place of the tensors, synchronizations, the floor and the memory of a step."""
    stepper = Stepper(*opts)
    stepper.run(2)
    wrong = elsewhere(stepper.step, device)
    yield "precision that is chosen", str(stepper.step.precision).removeprefix("torch.")
    yield f"tensors that are not on {device}", ", ".join(wrong) or 0
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        waits = count_waits(lambda: stepper.run(1))
        yield "synchronizations of a step", waits.total()
        for site, count in waits.most_common(SITES):
            yield f"synchronizations at {site}", count
        yield "memory of a step, MiB", torch.cuda.max_memory_allocated() / 2**20
    yield "step, relative to its floor", timer.over_floor(stepper)


def measure(opts: list[str], device: str, wait: Callable[[], object]) -> Figures:
    """Return all figures by name; those of a check that failed end with its error.

    Args:
        opts: KEY VALUE pairs of the config.
        device: "cuda", or "cpu" to try the checks.
        wait: function that waits for the device.
    """
    timer = Timer(wait)
    opts = [*opts, "MODEL.DEVICE", device]
    figures: Figures = {}
    checks = {
        "step": check_step(opts, device, timer),
        "precisions": check_precisions(opts, timer),
        "compiled": check_compiled(opts, timer),
    }
    for name, check in checks.items():
        try:
            figures.update(check)
        except Exception as error:  # the other checks are worth their time
            figures[f"{FAILED} {name}"] = f"{type(error).__name__}: {first_line(error)}"
    return figures


def main(opts: list[str]) -> None:
    """Print the table and write it to OUTPUT."""
    if not torch.cuda.is_available():
        print("make gpu: skipped, PyTorch finds no GPU on this machine")
        return
    logging.disable(logging.INFO)
    with tempfile.TemporaryDirectory() as folder, EventStorage(0):
        street.generate(Path(folder) / "street", num_train=48, num_val=2, size=(512, 256), seed=0)
        places = ["DATASETS.ROOT", folder, "DATASETS.CACHE_DIR", folder, "OUTPUT_DIR", folder]
        figures = {"GPU": torch.cuda.get_device_name(), "PyTorch": torch.__version__}
        figures |= measure([*places, *opts], "cuda", torch.cuda.synchronize)
    print(tabulate(figures.items(), headers=["figure", "value"], floatfmt=".4g"))
    os.makedirs(os.path.dirname(OUTPUT), exist_ok=True)
    with open(OUTPUT, "w") as file:
        json.dump(figures, file, indent=2)
    print(f"Written to {OUTPUT}")
    if failed := [name for name in figures if name.startswith(FAILED)]:
        raise SystemExit(", ".join(failed))


if __name__ == "__main__":
    main(sys.argv[1:])
