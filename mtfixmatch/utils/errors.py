"""Errors that are caused by input, and how to show an error in one line."""

from collections.abc import Collection
from typing import Any


class InputError(ValueError):
    """Input from the user cannot be used; the message names the file, the key or the value."""

    @property
    def messages(self) -> list[str]:
        """One line for each problem."""
        return list(self.args)


class InputErrors(InputError):
    """Several problems, an argument each, found in one pass; the text is the first and a count."""

    def __str__(self) -> str:
        first, *others = self.args
        return f"{first} (and {len(others)} more like this)" if others else first


def check_choice(key: str, value: Any, choices: Collection) -> None:
    """Raise InputError if the value of a key is not one of the choices."""
    if value not in choices:
        names = ", ".join(map(str, choices))
        raise InputError(f"{key} is {value!r}: it must be one of {names}")


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the error's type if it has no message."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
