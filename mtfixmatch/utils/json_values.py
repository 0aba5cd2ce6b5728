"""Check and show the values in label files."""

import json
from typing import Any

MAX_NUMBER = 1e9


def is_number(value: Any) -> bool:
    """Return whether a JSON value is a finite number below MAX_NUMBER; booleans are none.

    A number beyond any image size is as wrong as infinity, which JSON can write in many ways.
    """
    return type(value) in (int, float) and -MAX_NUMBER < value < MAX_NUMBER


def parse_number(text: str) -> float | None:
    """Return the finite number below MAX_NUMBER that a text is; None if it is none."""
    if "_" in text or not text.isascii():  # Python reads 1_0 as 10, and digits of other scripts
        return None
    try:
        value = float(text)
    except ValueError:
        return None
    return value if is_number(value) else None


def shown_json(value: Any) -> str:
    """Return a value as JSON text, cut off after 80 characters."""
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def shown_text(content: bytes) -> str:
    """Return the start of a text as one line."""
    return " ".join(bytes(content[:200]).decode(errors="replace").split())[:80]
