"""What a reader leaves out, changes or cannot use: counted, and said once."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from .errors import InputError

MAX_SHOWN = 3  # lines that an error names


@dataclass
class Notes:
    """The notes on a dataset.

    Attributes:
        max_faults: largest share of the entries of a label file that may be faulty and left out
            (DATASETS.MAX_FAULTS), 0-1.
        lines: kind, a phrase in the plural, -> a line for each case.
        texts: other sentences.
    """

    max_faults: float = 0.5
    lines: dict[str, list[str]] = field(default_factory=dict)
    texts: list[str] = field(default_factory=list)

    def add(self, kind: str, lines: str | Iterable[str]) -> None:
        """Add a line, or several, of a kind such as "boxes without an area, left out"."""
        new = [lines] if isinstance(lines, str) else list(lines)
        known = self.lines.setdefault(kind, []) if new else []
        known += new

    def say(self, text: str) -> None:
        """Add a sentence of its own."""
        self.texts.append(text)

    def check_share(self, source: str, what: str, lines: Sequence[str], total: int) -> None:
        """Add lines of a kind, or raise InputError if they are too many of `total` entries.

        Args:
            source: file or folder that has the entries.
            what: kind of the faulty entries.
            lines: a line for each.
            total: number of all entries.
        """
        if len(lines) > self.max_faults * total:
            shown = "; ".join(lines[:MAX_SHOWN])
            limit = f"more than DATASETS.MAX_FAULTS {self.max_faults} allows"
            raise InputError(f"{source}: {len(lines)} of {total} {what}, {limit}, such as: {shown}")
        self.add(what, lines)

    def messages(self) -> list[str]:
        """Return all sentences, and for each kind the number of cases and the first of them."""
        counted = [
            f"{kind}: {len(lines)} ({'the first: ' if len(lines) > 1 else ''}{lines[0]})"
            for kind, lines in self.lines.items()
        ]
        return counted + self.texts
