"""The log of this package, on the terminal and in a run's log.txt."""

import logging
from logging.handlers import MemoryHandler

from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

NAME = "mtfixmatch"
MAX_LINES = 10_000  # that are kept until the run's folder is there

_early = MemoryHandler(MAX_LINES, flushLevel=logging.CRITICAL + 1)


def start_log() -> None:
    """Log on the terminal, and keep the lines for `log_to`."""
    setup_logger(name=NAME).addHandler(_early)


def log_to(folder: str) -> None:
    """Log into the folder's log.txt too, with the lines since `start_log`.

    The datasets are read, with warnings, before a run knows whether it may use its folder.
    """
    before = set(logging.getLogger(NAME).handlers)
    rank = comm.get_rank()
    logger = setup_logger(folder, rank, name=NAME, configure_stdout=False)
    for handler in set(logger.handlers) - before:
        _early.setTarget(handler)
        _early.flush()
    logger.removeHandler(_early)
