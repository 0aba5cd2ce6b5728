"""The one exception for bad input, so that callers can show it as one line."""


class InputError(ValueError):
    """What the user gave cannot be used; the message names the file, the key or the value."""
