"""Several processes, each with a network on its own GPU and a share of the images."""

import multiprocessing
from collections.abc import Sequence
from multiprocessing.queues import SimpleQueue
from typing import Any

from ..utils.errors import InputError
from .output import Output
from .predictor import load
from .sources import Item
from .work import predict_items


def predict_in_processes(
    model: str,
    items: Sequence[Item],
    options: dict[str, Any],
    devices: Sequence[str | None],
) -> int:
    """Predict items in a process for each device; return the number of those that are broken.

    Args:
        model: see `load`.
        items: images and videos that are not finished.
        options: arguments of `Output`, without the tasks.
        devices: device of each process.

    Raises:
        InputError: a file cannot be written, or a process was killed.
    """
    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    workers = [
        context.Process(
            target=_work,
            args=(rank, model, items[rank :: len(devices)], options, device, results),
            daemon=True,
        )
        for rank, device in enumerate(devices)
    ]
    for worker in workers:
        worker.start()
    try:
        for worker in workers:
            worker.join()
    except KeyboardInterrupt:
        for worker in workers:  # which have this signal too, if it came from a terminal
            worker.terminate()
            worker.join()
        raise
    return _sum(workers, results)


def _work(
    rank: int,
    model: str,
    items: Sequence[Item],
    options: dict[str, Any],
    device: str | None,
    results: "SimpleQueue[int | str]",
) -> None:
    """Predict a share of the items; put the number of broken ones, or an error, on the queue."""
    try:
        predictor = load(model, device=device)
        output = Output(tasks=predictor.tasks, **options)
        results.put(predict_items(predictor, items, output, rank))
    except InputError as error:
        results.put(str(error))
    except KeyboardInterrupt:
        return


def _sum(
    workers: Sequence[multiprocessing.process.BaseProcess], results: "SimpleQueue[int | str]"
) -> int:
    if lost := [worker.exitcode for worker in workers if worker.exitcode]:
        raise InputError(f"a process ended with status {lost[0]}: the same command goes on")
    found = [results.get() for _ in workers]
    for value in found:
        if isinstance(value, str):
            raise InputError(value)
    return sum(value for value in found if isinstance(value, int))
