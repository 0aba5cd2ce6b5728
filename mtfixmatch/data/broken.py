"""Count the training files that DATALOADER.SKIP_BROKEN leaves out."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from ..utils.errors import InputError

logger = logging.getLogger(__name__)

MAX_SHOWN = 3  # files that the error names


@dataclass
class BrokenFiles:
    """The broken files of a training set, each counted once; InputError if they are too many."""

    messages: dict[str, str]  # file -> what is wrong with it; those that the readers left out first
    num_images: int  # images of the training set, including broken ones
    limit: float  # largest share of broken images (DATALOADER.MAX_BROKEN), 0-1

    def __post_init__(self) -> None:
        self.add({})

    def add(self, messages: Mapping[str, str]) -> None:
        """Warn of each new broken file of the loader; InputError if they are too many."""
        for file, message in messages.items():
            if file not in self.messages:
                logger.warning("Another image takes its place: %s", message)
                self.messages[file] = message
        if len(self.messages) > self.limit * self.num_images:
            first = "; ".join([*self.messages.values()][:MAX_SHOWN])
            raise InputError(
                f"{len(self.messages)} of {self.num_images} training images are broken, more than "
                f"DATALOADER.MAX_BROKEN {self.limit} allows, such as: {first}"
            )
