"""Reading, network and writing side by side, with few images in memory at a time."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from itertools import repeat
from typing import TypeVar

A = TypeVar("A")
B = TypeVar("B")


def ahead(
    pool: Executor, function: Callable[[A], B], items: Iterable[A], depth: int
) -> Iterator[B]:
    """Yield the result of a function for each item, in order, computed by the threads of a pool.

    Args:
        pool: pool of threads.
        function: function of an item, whose errors are raised here.
        items: items, taken in this thread.
        depth: number of items that are taken before their result is asked for.
    """
    pending: deque[Future[B]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > depth:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()


def read_ahead(pool: Executor, items: Iterable[A], depth: int) -> Iterator[A]:
    """Yield items which a pool of one thread takes from their iterable, up to `depth` ahead."""
    source, end = iter(items), object()
    for item in ahead(pool, lambda _: next(source, end), repeat(None), depth):
        if item is end:
            return
        yield item  # type: ignore[misc]
