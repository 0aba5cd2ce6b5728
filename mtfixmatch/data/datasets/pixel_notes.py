"""Notes on images whose files do not say all about their pixels: 16 bits, several pages."""

from collections.abc import Mapping

import numpy as np

from ...utils.images import read_value_range
from .scan import FileScanner

MAX_SAMPLED = 20  # 16-bit images that are decoded
# Images that use a smaller share of INPUT.RANGE_16BIT have little contrast. Images of 14 bits do.
SMALL_SHARE = 0.25

PAGES = "images of several pages or frames, of which the first is read"


def note_pixels(
    headers: Mapping[str, list[int]], range_16bit: tuple[int, int], scan: FileScanner, source: str
) -> None:
    """Note images of several pages, and 16-bit images of a small part of their range.

    Args:
        headers: file -> what `read_image_header` returns.
        range_16bit: INPUT.RANGE_16BIT.
        scan: scanner with the notes.
        source: name of the cache, see `FileScanner`.
    """
    scan.notes.add(PAGES, [path for path, (*_, more_pages) in headers.items() if more_pages])
    if used := small_range(headers, range_16bit, scan, source):
        files = [path for path, (_, _, bits, _) in headers.items() if bits > 8]
        scan.notes.say(
            f"16-bit images that use a small part of INPUT.RANGE_16BIT {range_16bit} and so have "
            f"little contrast: {len(files)} (the first: {files[0]}); values in a sample of "
            f"{min(len(files), MAX_SAMPLED)} are from {used[0]} to {used[1]}: set "
            f"INPUT.RANGE_16BIT to {used}"
        )


def small_range(
    headers: Mapping[str, list[int]], range_16bit: tuple[int, int], scan: FileScanner, source: str
) -> tuple[int, int] | None:
    """Return the values in a sample of 16-bit images, if they are a small part of the range.

    The arguments are those of `note_pixels`. None: there are no such images, or they use more.
    """
    files = [path for path, (_, _, bits, _) in headers.items() if bits > 8]
    places = np.linspace(0, len(files) - 1, min(len(files), MAX_SAMPLED)).round().astype(int)
    sample = [files[i] for i in places]
    ranges = scan(sample, read_value_range, name="coco_style_values", source=source).values()
    if not ranges:
        return None
    low = min(least for least, _ in ranges)
    high = max(low + 1, *(greatest for _, greatest in ranges))
    used = min(high, range_16bit[1]) - max(low, range_16bit[0])
    return (low, high) if used < SMALL_SHARE * (range_16bit[1] - range_16bit[0]) else None
