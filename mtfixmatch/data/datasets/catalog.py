"""Records by the name of a dataset in Detectron2's catalogs.

Datasets that your own code registers work here, too: give DatasetCatalog a function that returns
records (see `mtfixmatch.data.records`), and MetadataCatalog the classes of the tasks.
"""

import atexit
import gc
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from detectron2.utils import comm

from ...utils.errors import InputError, InputErrors
from ...utils.notes import Notes
from ..record_block import RecordBlock
from ..record_table import RecordTable
from ..records import Record
from .record_cache import RecordCache

logger = logging.getLogger(__name__)

MAX_SHOWN = 3  # broken files that the log names
REQUIRED_KEYS = ("file_name", "image_id", "height", "width")

# Dataset -> its load function and the records: a million boxes take seconds even from the cache.
_loaded: dict[str, tuple[Callable, RecordBlock, int | None]] = {}
# Dataset -> file -> message, for files that its reader left out (DATALOADER.SKIP_BROKEN).
_broken: dict[str, dict[str, str]] = {}
# Dataset -> the notes of its reader.
_notes: dict[str, Notes] = {}
# Dataset -> the file that keeps its records.
_caches: dict[str, RecordCache] = {}


def register(
    name: str,
    load: Callable[[], list[Record]],
    metadata: dict[str, Any],
    broken: dict[str, str],
    notes: Notes,
    cache: RecordCache | None = None,
) -> None:
    """Register or replace a dataset, whose `load` fills `broken`, file -> message, and `notes`.

    The `cache` keeps the records of a large dataset for the next start.
    """
    for catalog in (DatasetCatalog, MetadataCatalog):
        catalog.pop(name, None)  # both refuse to change an entry
    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(**metadata)
    _broken[name] = broken
    _notes[name] = notes
    _caches.pop(name, None)
    if cache:
        _caches[name] = cache


def reader_notes(names: Iterable[str]) -> dict[str, Notes]:
    """Return the notes on the named datasets that were read."""
    return {name: _notes[name] for name in names if name in _notes}


def broken_files(names: Iterable[str]) -> dict[str, str]:
    """Return file -> message for the files that `get_records` left out of the named datasets."""
    return {file: text for name in names for file, text in _broken.get(name, {}).items()}


def get_records(names: Sequence[str]) -> RecordTable:
    """Return the records of the named datasets together.

    All processes must call this function at the same time: the main process goes first, so that
    only it reads files that are not in the cache yet. InputError for unknown names and bad files.
    """
    for name in names:
        if name not in DatasetCatalog:
            expected = f"one of {', '.join(_broken)} or one that your code registers"
            raise InputError(f"DATASETS: there is no dataset {name!r}, expected {expected}")
    messages: list[str] = []
    if comm.is_main_process():
        try:
            _load(names, {})
        except InputError as error:
            messages = error.messages
    # An error of the main process stops all processes, so that none waits for another.
    tokens = {name: _loaded[name][2] for name in names if name in _loaded}
    messages, tokens = comm.all_gather((messages, tokens))[0]
    if messages:
        raise InputErrors(*messages)
    return RecordTable(_load(names, tokens))


def check_class_lists(names: Sequence[str], keys: Iterable[str]) -> None:
    """Raise InputError if loaded datasets differ in a class list, by its key in the metadata."""
    for key, name in itertools.product(keys, names):
        first, classes = (MetadataCatalog.get(x).get(key) for x in (names[0], name))
        if classes != first:
            reason = f"their {key} are {first} and {classes}"
            raise InputError(f"DATASETS: {names[0]} and {name} cannot be used together, {reason}")


def _load(names: Sequence[str], tokens: Mapping[str, int | None]) -> list[RecordBlock]:
    for name in names:
        load = DatasetCatalog[name]
        if name not in _loaded or _loaded[name][0] is not load:
            _loaded[name] = (load, *_load_dataset(name, tokens.get(name)))
    return [_loaded[name][1] for name in names]


def _load_dataset(name: str, token: int | None) -> tuple[RecordBlock, int | None]:
    """Return the records of a dataset, and the token of the file that keeps them.

    The main process has compared the file of a `token` with the dataset.
    """
    cache = _caches.get(name)
    found = cache and ((token is not None and cache.load(token)) or cache.load())
    is_keeping = cache and not found and comm.get_local_rank() == 0
    with cache.recording() if cache and is_keeping else nullcontext():
        block, token = found or (_read_dataset(name), None)
    logger.info("%s: %d images", name, len(block))
    if comm.is_main_process():
        for text in _notes[name].messages() if name in _notes else ():
            logger.warning("%s: %s", name, text)
    messages = list(broken_files([name]).values())
    for message in messages[:MAX_SHOWN]:
        logger.warning("%s: one of %d files left out: %s", name, len(messages), message)
    if cache and is_keeping:
        token = cache.save(block)
        # From now on all processes of the node share the pages of the file.
        return (token is not None and cache.load(token)) or (block, token)
    return block, token


def _read_dataset(name: str) -> RecordBlock:
    """Read the files of a dataset, or call the function that a user has registered."""
    with _paused_garbage_collection():
        records = DatasetCatalog.get(name)
        block = RecordBlock.of(records if name in _broken else map(_with_corners, records))
        del records
    for key in REQUIRED_KEYS:
        if len(lacking := np.flatnonzero(~block.has(key))):
            raise InputError(f"{name}: record {lacking[0]} needs the key {key!r}")
    return block


@contextmanager
def _paused_garbage_collection() -> Iterator[None]:
    """Do not collect garbage, which would take longer than making a million boxes.

    Until the process ends, what is there then is not looked through again, which takes as long.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        atexit.register(gc.unfreeze)
        if collecting:
            gc.enable()


def _with_corners(record: Record) -> Record:
    """Return a record of a user's own code with XYXY_ABS boxes, whatever mode they have."""
    lists = {key: value for key, value in record.items() if isinstance(value, list)}
    return record | {key: [_corners(x) for x in value] for key, value in lists.items()}


def _corners(annotation: Any) -> Any:
    """Convert the box of an annotation; values of other lists stay as they are."""
    mode = annotation.get("bbox_mode") if isinstance(annotation, dict) else None
    if mode in (None, BoxMode.XYXY_ABS):
        return annotation
    corners = BoxMode.convert(annotation["bbox"], BoxMode(mode), BoxMode.XYXY_ABS)
    return {**annotation, "bbox": corners, "bbox_mode": BoxMode.XYXY_ABS}
