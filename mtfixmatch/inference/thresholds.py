"""Choose the threshold of each class by the precision that is measured with it."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from tabulate import tabulate

from ..tasks import Task
from ..tasks.auto_labels import ClassScores, ClassThreshold, Thresholds

NONE = math.inf  # threshold of a class without one
ROUNDING = 1e-9  # of shares
Z = 1.96  # of a 95 % interval


class _Kept(NamedTuple):
    """The predictions of a class that a threshold keeps, see `ClassScores`."""

    total: int
    right: int
    reached: int
    trials: int


def choose_threshold(
    parts: Sequence[ClassScores], precision: float, lower: float, least: int
) -> ClassThreshold | None:
    """Return the least threshold with which the measured precision is reached.

    The threshold is chosen on all parts together. Its figures are cross-fitted, because those of
    the predictions that chose it are too good: each part is measured with the threshold that the
    other parts choose. The figures of a single part are those of the threshold itself.

    Args:
        parts: scores of the class on each part of the labeled images, one or more.
        precision: precision from the upper threshold on, in (0, 1].
        lower: precision from the lower threshold on, at most `precision`.
        least: number of trials that a precision must rest on, 1 or more; see `ClassScores`.

    Returns:
        The threshold; None: no threshold reaches the precision, its figures rest on too few trials,
        or the whole interval of the measured precision is below `precision`.
    """
    whole = _join(parts)
    upper = _least_score(whole, precision, least)
    kept = []
    for i, part in enumerate(parts):
        others = [*parts[:i], *parts[i + 1 :]] or parts
        kept.append(_keep(part, _least_score(_join(others), precision, least)))
    total, right, reached, trials = map(sum, zip(*kept, strict=True))
    if upper == NONE or trials < least:
        return None
    interval = wilson_interval(right / total, trials)
    if interval[1] < precision - ROUNDING:
        return None
    return ClassThreshold(
        upper=upper,
        lower=_least_score(whole, lower, least),
        precision=right / total,
        interval=interval,
        share=reached / whole.whole,
        support=whole.support,
    )


def _join(parts: Sequence[ClassScores]) -> ClassScores:
    trials = [x.trials for x in parts if x.trials is not None]
    return ClassScores(
        scores=np.concatenate([x.scores for x in parts]),
        total=np.concatenate([x.total for x in parts]),
        right=np.concatenate([x.right for x in parts]),
        reached=np.concatenate([x.reached for x in parts]),
        whole=sum(x.whole for x in parts),
        support=sum(x.support for x in parts),
        trials=sum(trials) if trials else None,
    )


def _keep(part: ClassScores, threshold: float) -> _Kept:
    kept = part.scores >= threshold
    total, right, reached = (int(x[kept].sum()) for x in (part.total, part.right, part.reached))
    return _Kept(total, right, reached, total if part.trials is None else min(part.trials, total))


def _least_score(scores: ClassScores, precision: float, least: int) -> float:
    """Return the least score from which on at least `least` trials have the precision, or NONE."""
    order = np.argsort(-scores.scores, kind="stable")
    ranked = scores.scores[order]
    total, right = scores.total[order].cumsum(), scores.right[order].cumsum()
    # Predictions of one score are labeled all or not at all.
    is_last = np.append(ranked[1:] != ranked[:-1], np.full(min(len(ranked), 1), True))
    trials = total if scores.trials is None else np.minimum(total, scores.trials)
    enough = is_last & (trials >= least) & (right >= precision * total - ROUNDING)
    return float(ranked[enough].min(initial=NONE))


def wilson_interval(share: float, trials: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share in [0, 1] that was measured in `trials` >= 1."""
    spread = Z**2 / trials
    center = (share + spread / 2) / (1 + spread)
    half = Z * math.sqrt(share * (1 - share) / trials + spread / (4 * trials)) / (1 + spread)
    return max(0.0, center - half), min(1.0, center + half)


def threshold_table(task: Task, thresholds: Thresholds, precision: float) -> str:
    """Return a table of the thresholds of a task, and a line of the classes without one.

    A line names the classes with a measured precision below `precision`, which was asked for.
    """
    meter = task.score_meter()
    figures = {
        "threshold": lambda x: f"{x.upper:.3f}",
        "lower": lambda x: f"{x.lower:.3f}",
        "precision": lambda x: f"{x.precision:.3f}",
        "95 % interval": lambda x: f"{x.interval[0]:.3f} to {x.interval[1]:.3f}",
        meter.share_name: lambda x: f"{x.share:.3f}",
        f"labeled {meter.support_name}": lambda x: str(x.support),
    }
    if not meter.has_lower:
        del figures["lower"]
    pairs = list(zip(task.class_names, thresholds, strict=True))
    rows = [[name, *(show(x) for show in figures.values())] for name, x in pairs if x is not None]
    header = [task.name, *figures]
    parts = [tabulate(rows, headers=header, tablefmt="pipe", disable_numparse=True)] if rows else []
    if low := [name for name, x in pairs if x and round(x.precision, 3) < precision - ROUNDING]:
        what = f"measured below {precision}, which is inside the interval"
        parts.append(f"{task.name}, {what}: {', '.join(low)}")
    if names := [x for x, y in pairs if y is None]:
        why = "the precision is not reached, or rests on too few"
        parts.append(f"{task.name}, left out because {why}: {', '.join(names)}")
    return "\n\n".join(parts)
