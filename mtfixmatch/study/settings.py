"""The settings of a study: which images are labeled for what in its runs (Figure 1)."""

from collections.abc import Sequence
from pathlib import Path

from ..data.loader import hide_by_config
from ..engine.label_sets import LabelSets, draw_label_sets, label_sets
from ..engine.setup import resolve_config
from ..tasks.config import build_tasks
from ..utils.errors import InputError
from .figures import label_lists
from .layout import matches, read_filter
from .plan import STUDY_FILE, Run, Study, check_keys
from .state import state_of


def draw_settings(study: Study, path: Path) -> bool:
    """Draw a panel for each setting that study.yaml names; return False if no run has one.

    The file's key "settings" has {images: number of training images, panels: [{factor: value},
    ...]}. A panel shows the label lists of its first run that has them, or else the subsets that
    its first run would draw from as many images.
    """
    entry, where = study.content["settings"], f"{study.folder / STUDY_FILE}: settings"
    check_keys(entry, {"images", "panels"}, {"images", "panels"}, where)
    panels = []
    for factors in entry["panels"]:
        if unknown := sorted(set(factors) - set(study.content["factors"])):
            raise InputError(f"{where}: {unknown[0]!r} is no factor of the study")
        # A run with other settings than the study's shows another setting.
        chosen = [run for run in study.runs if matches(run.factors, read_filter(factors))]
        chosen = [run for run in chosen if state_of(run).name != "changed"]
        title = ", ".join(f"{name} {value}" for name, value in factors.items())
        try:
            panels += [_panel(study, title, chosen, entry["images"])] if chosen else []
        except InputError as error:
            raise InputError(f"{where}: {title}: {error}") from None
    if panels:
        draw_label_sets(panels, path)
    return bool(panels)


def _panel(study: Study, title: str, runs: Sequence[Run], num_images: int) -> LabelSets:
    lists = next(filter(None, map(label_lists, runs)), None)
    if lists is None:
        return _planned(study, f"{title}, planned", runs[0], num_images)
    labeled = set().union(*lists.images.values())
    records = [{t: image for t, own in lists.images.items() if image in own} for image in labeled]
    # Archived lists of older runs do not tell how many images there were.
    num_images = num_images if lists.num_images is None else lists.num_images
    records += [{}] * (num_images - len(labeled))
    return label_sets(title, records, dict(zip(lists.images, lists.images, strict=True)))


def _planned(study: Study, title: str, run: Run, num_images: int) -> LabelSets:
    """Draw the label subsets of a run from numbered images that have every label."""
    cfg = resolve_config(str(study.config), run.overrides)
    tasks = build_tasks(cfg)
    keys = {task.name: task.label_key for task in tasks}
    labels = dict.fromkeys(keys.values())
    names = map(str, range(num_images))
    records = [{"file_name": name, "image_id": name, **labels} for name in names]
    return label_sets(title, hide_by_config(cfg, tasks, records), keys)
