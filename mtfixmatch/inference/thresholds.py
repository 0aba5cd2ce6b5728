"""Choose the threshold of each class by the precision that is measured with it."""

import math

import numpy as np
from tabulate import tabulate

from ..tasks import Task
from ..tasks.auto_labels import ClassScores, ClassThreshold, ScoreMeter, Thresholds

Z = 1.96  # of a 95 % interval


def choose_threshold(
    scores: ClassScores, precision: float, lower: float, least: int
) -> ClassThreshold | None:
    """Return the least threshold with which the measured precision is reached.

    Args:
        scores: scores of the class.
        precision: precision from the upper threshold on, in (0, 1].
        lower: precision from the lower threshold on, at most `precision`.
        least: number of trials that a precision must rest on, 1 or more; see `ClassScores`.

    Returns:
        The threshold; None: no threshold reaches the precision.
    """
    enough = _scores_with(scores, precision, least)
    if not len(enough):
        return None
    upper = float(enough.min())
    kept = scores.scores >= upper
    total, right = int(scores.total[kept].sum()), int(scores.right[kept].sum())
    trials = total if scores.trials is None else min(scores.trials, total)
    return ClassThreshold(
        upper=upper,
        lower=float(_scores_with(scores, lower, least).min()),
        precision=right / total,
        interval=wilson_interval(right / total, trials),
        share=float(scores.reached[kept].sum()) / scores.whole,
        support=scores.support,
    )


def _scores_with(scores: ClassScores, precision: float, least: int) -> np.ndarray:
    """Return the scores from which on at least `least` trials have the precision."""
    order = np.argsort(-scores.scores, kind="stable")
    ranked = scores.scores[order]
    total, right = scores.total[order].cumsum(), scores.right[order].cumsum()
    # Predictions of one score are labeled all or not at all.
    is_last = np.append(ranked[1:] != ranked[:-1], np.full(min(len(ranked), 1), True))
    trials = total if scores.trials is None else np.minimum(total, scores.trials)
    return ranked[is_last & (trials >= least) & (right >= precision * total - 1e-9)]


def wilson_interval(share: float, trials: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share in [0, 1] that was measured in `trials` >= 1."""
    spread = Z**2 / trials
    center = (share + spread / 2) / (1 + spread)
    half = Z * math.sqrt(share * (1 - share) / trials + spread / (4 * trials)) / (1 + spread)
    return max(0.0, center - half), min(1.0, center + half)


def threshold_table(task: Task, meter: ScoreMeter, thresholds: Thresholds) -> str:
    """Return a table of the thresholds of a task, and a line of the classes without one."""
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
    rows = [
        [name, *(show(x) for show in figures.values())]
        for name, x in zip(task.class_names, thresholds, strict=True)
        if x is not None
    ]
    header = [task.name, *figures]
    parts = [tabulate(rows, headers=header, tablefmt="pipe", disable_numparse=True)] if rows else []
    if names := [x for x, y in zip(task.class_names, thresholds, strict=True) if y is None]:
        why = "the precision is not reached, or rests on too few"
        parts.append(f"{task.name}, left out because {why}: {', '.join(names)}")
    return "\n\n".join(parts)
