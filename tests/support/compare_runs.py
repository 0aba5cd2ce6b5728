"""Whether two trainings have left the same."""

import json
from pathlib import Path

import torch

# What a clock has measured.
TIMES = {"time", "data_time", "eta_seconds"}


def differences(expected: Path, found: Path) -> list[str]:
    """What a training left that differs from what another one left, but for times."""
    names = [_names(folder) for folder in (expected, found)]
    wrong = [f"{name} is in one of them only" for name in sorted(names[0] ^ names[1])]
    # A stop signal leaves a checkpoint of its own among the newest.
    counts = [len(list(folder.glob("model_0*.pth"))) for folder in (expected, found)]
    if counts[0] != counts[1]:
        wrong.append(f"{counts[1]} checkpoints are kept, not {counts[0]}")
    for name in sorted(names[0] & names[1]):
        a, b = (_content(folder / name) for folder in (expected, found))
        if not _same(a, b):
            wrong.append(f"{name} differs")
    return wrong


def _names(folder: Path) -> set[str]:
    changing = ("events.", "log.txt", "config.yaml", "run.lock", "checkpoints.json", "curves.png")
    older = sorted(path.name for path in folder.glob("model_0*.pth"))[:-1]
    names = {path.name for path in folder.iterdir() if not path.name.startswith(changing)}
    return names.difference(older)


def _content(path: Path):
    if path.suffix == ".pth":
        return torch.load(path, weights_only=True)
    if path.name == "metrics.json":
        return [json.loads(line) for line in path.read_text().splitlines()]
    return path.read_bytes()


def _same(a, b) -> bool:
    if isinstance(a, dict) and isinstance(b, dict):
        keys = a.keys() - TIMES
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in keys)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    return a == b or (a != a and b != b)
