"""The training files that DATALOADER.SKIP_BROKEN passes over."""

import logging
from collections.abc import Mapping
from itertools import islice

from ..utils.errors import InputError

logger = logging.getLogger(__name__)

SHOWN = 3  # files that the error names


class BrokenFiles:
    """Each file once, whoever meets it and however often.

    Attributes:
        messages: file -> what is wrong with it.
    """

    def __init__(self, messages: Mapping[str, str], num_images: int, limit: float):
        """Start with those that the readers found.

        Args:
            messages: file -> what is wrong with it.
            num_images: of the training set, the broken ones counted.
            limit: share of them that may be broken (DATALOADER.MAX_BROKEN).

        Raises:
            InputError: if there are too many.
        """
        self.messages = dict(messages)
        self._num_images = num_images
        self._limit = limit
        self._check()

    def add(self, messages: Mapping[str, str]) -> None:
        """Take in what was found and warn of what is new.

        Raises:
            InputError: if there are too many by now.
        """
        for file, message in messages.items():
            if file not in self.messages:
                logger.warning("Another image takes its place: %s", message)
                self.messages[file] = message
        self._check()

    def _check(self) -> None:
        if len(self.messages) > self._limit * self._num_images:
            first = "; ".join(islice(self.messages.values(), SHOWN))
            raise InputError(
                f"{len(self.messages)} of {self._num_images} training images are broken, more than "
                f"DATALOADER.MAX_BROKEN {self._limit} allows, such as: {first}"
            )
