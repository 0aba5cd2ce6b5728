"""The commands of this package; the scripts in projects/ and `mtfixmatch NAME` call them."""

import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Iterator
from contextlib import contextmanager

from ..utils.checkout import spell_commands
from ..utils.errors import InputError


def command_parser(description: str | None) -> ArgumentParser:
    """Return a parser that shows a module's docstring, with its examples as the user types them."""
    text = spell_commands(description or "")
    return ArgumentParser(description=text, formatter_class=RawDescriptionHelpFormatter)


@contextmanager
def exit_at_input_error() -> Iterator[None]:
    """End the process with the line `error: ...` and status 1 at an InputError in the block."""
    try:
        yield
    except InputError as error:
        sys.exit(f"error: {error}")
