"""Count the training files that DATALOADER.SKIP_BROKEN leaves out."""

import logging
from collections.abc import Mapping

from ..utils.errors import InputError

logger = logging.getLogger(__name__)

MAX_SHOWN = 3  # files that the error names


class BrokenFiles:
    """The broken files of a training set, each counted once."""

    def __init__(self, messages: Mapping[str, str], num_images: int, limit: float):
        """Start with the files that the readers left out.

        Args:
            messages: file -> what is wrong with it.
            num_images: images of the training set, including broken ones.
            limit: largest share of broken images (DATALOADER.MAX_BROKEN), 0-1.

        Raises:
            InputError: more files are broken than the limit allows.
        """
        self.messages = dict(messages)
        self._num_images, self._limit = num_images, limit
        self.add({})

    def add(self, messages: Mapping[str, str]) -> None:
        """Add broken files of the loader, and warn of each new one.

        Raises:
            InputError: more files are broken than the limit allows.
        """
        for file, message in messages.items():
            if file not in self.messages:
                logger.warning("Another image takes its place: %s", message)
                self.messages[file] = message
        if len(self.messages) > self._limit * self._num_images:
            first = "; ".join([*self.messages.values()][:MAX_SHOWN])
            raise InputError(
                f"{len(self.messages)} of {self._num_images} training images are broken, more than "
                f"DATALOADER.MAX_BROKEN {self._limit} allows, such as: {first}"
            )
