"""Collect the warnings of the dataset readers for the report."""

import logging

READERS = "mtfixmatch.data"  # parent of the loggers of the readers and of the loader


class ReaderWarnings(logging.Handler):
    """Context manager that collects the readers' warnings and drops their other log lines.

    Attributes:
        messages: each warning once.
    """

    def __init__(self):
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a warning once, however often the files are read."""
        message = record.getMessage()
        if record.levelno >= logging.WARNING and message not in self.messages:
            self.messages.append(message)

    def __enter__(self) -> "ReaderWarnings":
        readers = logging.getLogger(READERS)
        readers.addHandler(self)
        readers.propagate = False
        return self

    def __exit__(self, *_) -> None:
        readers = logging.getLogger(READERS)
        readers.removeHandler(self)
        readers.propagate = True
