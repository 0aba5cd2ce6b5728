"""Errors that are caused by input, and how to show an error in one line."""

from collections.abc import Sequence


class InputError(ValueError):
    """Input from the user cannot be used; the message names the file, the key or the value."""

    @property
    def messages(self) -> list[str]:
        """One line for each problem."""
        return [str(self)]


class InputErrors(InputError):
    """Several problems that were found in one pass; the text shows the first and their number."""

    def __init__(self, messages: Sequence[str]):
        """Keep all messages.

        Args:
            messages: one line for each problem; at least one.
        """
        more = f" (and {len(messages) - 1} more like this)" if len(messages) > 1 else ""
        super().__init__(messages[0] + more)
        self._messages = list(messages)

    @property
    def messages(self) -> list[str]:
        """One line for each problem."""
        return list(self._messages)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the error's type if it has no message."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
