"""Checks of a dataset's folder that do not depend on the dataset."""

import os
from collections.abc import Iterable

from ...utils.errors import InputError

MARK = "street.json"  # `mtfixmatch.street` writes it last: the folder is complete, not official


def is_generated(root: str) -> bool:
    """Return whether `mtfixmatch.street` made the dataset, so that its image counts are free."""
    return os.path.isfile(os.path.join(root, MARK))


def check_unmixed(root: str, dataset: str, other: str, other_names: Iterable[str]) -> None:
    """Raise InputError if the folder of a dataset also holds files or folders of another one."""
    for name in other_names:
        if os.path.exists(os.path.join(root, name)):
            problem = f"expected {dataset} alone, but {name} belongs to {other}"
            raise InputError(f"{root}: {problem}; give each dataset a folder of its own")
