"""What a process does: it reads images, runs the network and writes results side by side."""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from .journal import Journal
from .output import Output, SavedShot
from .prediction import Prediction
from .predictor import Predictor
from .progress import Progress
from .shots import Ending, Shot, read_shots
from .sources import Item
from .stream import ahead, read_ahead
from .video import VideoFile

DEPTH = 2  # images that are read before the network needs them, and that wait for being written
WRITERS = 2  # threads


def predict_items(
    predictor: Predictor, items: Sequence[Item], output: Output, rank: int = 0
) -> int:
    """Predict items in this process and return the number of those that cannot be read.

    Args:
        predictor: the network.
        items: images and videos that are not finished.
        output: the folder.
        rank: that of this process; the first one shows how far it is.

    Raises:
        InputError: a file cannot be written.
    """
    total = None if any(item.is_video for item in items) else len(items)
    with (
        Progress(total=total, shown=rank == 0) as progress,
        Journal(output.folder, rank) as journal,
        ThreadPoolExecutor(1) as reader,
        ThreadPoolExecutor(WRITERS) as writers,
    ):
        recorder = Recorder(output=output, journal=journal, progress=progress, rank=rank)
        steps = read_ahead(reader, read_shots(items, predictor.range_16bit), DEPTH)
        predicted = _predictions(predictor, steps)
        for saved in ahead(writers, partial(_save, output), predicted, DEPTH):
            recorder.take(saved)
        return recorder.broken


def _predictions(
    predictor: Predictor, steps: Iterable[Shot | Ending]
) -> Iterator[Ending | tuple[Shot, Prediction]]:
    for step in steps:
        if isinstance(step, Shot):
            yield step, predictor.predict_pixels(step.pixels, step.item.path)
        else:
            yield step


def _save(output: Output, step: Ending | tuple[Shot, Prediction]) -> SavedShot | Ending:
    return step if isinstance(step, Ending) else output.save(*step)


class Recorder:
    """Keeps in the journal what is finished, and writes the frames of videos, in their order.

    Attributes:
        broken: number of items that cannot be read.
    """

    def __init__(self, *, output: Output, journal: Journal, progress: Progress, rank: int):
        """Take the folder, the journal of this process, its progress and its rank."""
        self.broken = 0
        self._output = output
        self._journal = journal
        self._progress = progress
        self._rank = rank
        self._video: VideoFile | None = None

    def take(self, step: SavedShot | Ending) -> None:
        """Take the next shot or ending; raise InputError if something cannot be written."""
        if isinstance(step, SavedShot):
            self._take_shot(step)
        else:
            self._take_ending(step)

    def _take_shot(self, saved: SavedShot) -> None:
        if saved.drawn is not None:
            self._video = self._video or self._output.video(saved.shot, self._rank)
            self._video.write(saved.drawn)
        self._journal.add(saved.shot, saved.records)
        self._progress.advance()

    def _take_ending(self, ending: Ending) -> None:
        video, self._video = self._video, None
        if line := ending.error or ending.remark:
            self._progress.say(line)
        if ending.error:
            self.broken += 1
            return
        if video is not None:
            video.finish()
        self._journal.end(ending.item)
