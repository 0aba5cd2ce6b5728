"""Tell how far a prediction is: a bar on a terminal, elsewhere a line now and then."""

import sys
import time

from tqdm import tqdm

SECONDS = 30  # between two lines


class Progress:
    """Counts images and frames, and says broken ones; a context manager."""

    def __init__(self, *, total: int | None, shown: bool = True):
        """Start to count.

        Args:
            total: number of images; None: it is not known, because there are videos.
            shown: whether to show the count; messages are always shown.
        """
        self._shown = shown
        self._total = total
        self._count = 0
        self._start = self._last = time.monotonic()
        is_terminal = sys.stderr.isatty()
        self._bar = tqdm(total=total, unit=" images", disable=not (shown and is_terminal))

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *args: object) -> None:
        self._bar.close()

    def advance(self) -> None:
        """Count an image or a frame."""
        self._count += 1
        self._bar.update()
        now = time.monotonic()
        if self._shown and self._bar.disable and now - self._last >= SECONDS:
            self._last = now
            rate = self._count / (now - self._start)
            of_all = "" if self._total is None else f" of {self._total}"
            self.say(f"{self._count}{of_all} images, {rate:.1f} a second")

    def say(self, line: str) -> None:
        """Write a line to stderr."""
        tqdm.write(line, file=sys.stderr)
