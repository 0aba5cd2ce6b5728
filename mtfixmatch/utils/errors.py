"""The exception for bad input, which callers show as one line."""

from collections.abc import Sequence


class InputError(ValueError):
    """What the user gave cannot be used; the message names the file, the key or the value."""


class InputErrors(InputError):
    """Several of them, found in one pass.

    Attributes:
        messages: one for each.
    """

    def __init__(self, messages: Sequence[str]):
        """Say the first, and how many there are."""
        more = f" (and {len(messages) - 1} more like this)" if len(messages) > 1 else ""
        super().__init__(messages[0] + more)
        self.messages = list(messages)


def first_line(error: BaseException) -> str:
    """First line of an error's message, or its type's name."""
    return (str(error).splitlines() or [type(error).__name__])[0]
