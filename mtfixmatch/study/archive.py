"""The archive of a study's finished runs: one tar.xz with the small text files of each run."""

import io
import lzma
import tarfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from ..utils.errors import InputError
from ..utils.files import replacing

ARCHIVE_FILE = "runs.tar.xz"
# Enough for every table of the report; weights, logs and pictures stay outside.
ARCHIVED_FILES = (
    "config.yaml", "label_subsets.json", "metrics.json", "report.md", "results.json",
    "results_best.json", "status.json",
)  # fmt: skip


def read_archive(path: Path) -> dict[str, dict[str, bytes]]:
    """Return {run: {file: content}}, {} without a file; raise InputError if it is no tar.xz."""
    runs: dict[str, dict[str, bytes]] = {}
    if not path.is_file():
        return runs
    try:
        with tarfile.open(path, "r:xz") as archive:
            for member in archive:
                if file := archive.extractfile(member):
                    run, name = PurePosixPath(member.name).parts[-2:]
                    runs.setdefault(run, {})[name] = file.read()
    except (OSError, EOFError, ValueError, tarfile.TarError, lzma.LZMAError) as error:
        raise InputError(f"{path}: cannot be read as an archive of runs ({error})") from None
    return runs


def add_to_archive(path: Path, folders: Iterable[Path]) -> None:
    """Add the folders of finished runs to an archive; a run replaces its older copy.

    The same runs give the same bytes: names are sorted; times and owners are zero.
    """
    runs = read_archive(path)
    for folder in folders:
        files = [folder / name for name in ARCHIVED_FILES]
        runs[folder.name] = {file.name: file.read_bytes() for file in files if file.is_file()}
    with replacing(path) as target, tarfile.open(fileobj=target, mode="w:xz", preset=9) as archive:
        for run, contents in sorted(runs.items()):
            for name, content in sorted(contents.items()):
                member = tarfile.TarInfo(f"{run}/{name}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
