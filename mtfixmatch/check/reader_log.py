"""Collect the warnings of the dataset readers for the report."""

import logging

READERS = "mtfixmatch.data"  # parent of the loggers of the readers and of the loader


class ReaderWarnings(logging.Handler):
    """Context manager that collects each reader warning once and drops the other log lines."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a warning once, however often the files are read."""
        if (message := record.getMessage()) not in self.messages:
            self.messages.append(message)

    def __enter__(self) -> "ReaderWarnings":
        logging.getLogger(READERS).addHandler(self)
        logging.getLogger(READERS).propagate = False
        return self

    def __exit__(self, *_) -> None:
        logging.getLogger(READERS).removeHandler(self)
        logging.getLogger(READERS).propagate = True
