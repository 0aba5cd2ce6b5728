"""Make the labels of validation agree with those of the training: one config is for both."""

from collections.abc import Callable, Sequence

from .label_guess import BOXES, MAPS, YOLO, Labels, invented, set_map_classes


def agreeing_labels(
    train: Sequence[Labels], val: Sequence[Labels], note: Callable[[str, str], None]
) -> list[Labels]:
    """Return the labels of validation that the config of the training can read.

    Maps of both splits get the classes of the values of both. Numbers of YOLO without names are
    those of the training, if it has YOLO's, too.

    Args:
        train: labels of the training.
        val: labels of validation, for the tasks that are trained.
        note: takes a path, and why it is not used.
    """
    kept = []
    for x in val:
        others = [y for y in train if y.key == x.key]
        if x.key == BOXES:
            _name_numbers(x, others)
        if why := _disagreement(x, others):
            note(x.path, f"not used for validation: {why}")
        else:
            kept.append(x)
    maps = [x for x in (*train, *kept) if x.values]
    if maps:
        set_map_classes(maps)
    return kept


def unknown_classes(train: Sequence[Labels], val: Sequence[Labels]) -> list[str]:
    """Return the classes of boxes that validation alone has, sorted."""
    known = {name for y in train if y.key == BOXES for name in y.classes}
    return sorted({name for x in val if x.key == BOXES for name in x.classes} - known)


def _name_numbers(boxes: Labels, train: Sequence[Labels]) -> None:
    """Name the numbers of YOLO's classes as the training does, if they have no names."""
    named = next((y for y in train if y.format == YOLO and not _is_invented(y)), None)
    if named and _is_invented(boxes):
        count = len(boxes.classes)
        boxes.classes = [*named.classes, *boxes.classes[len(named.classes) :]][:count]
        boxes.remarks[0] = f"{boxes.path}: the numbers of classes are taken as in {named.path}"


def _is_invented(labels: Labels) -> bool:
    return labels.format == YOLO and labels.classes == invented(len(labels.classes))


def _disagreement(x: Labels, train: Sequence[Labels]) -> str:
    """Return why labels of validation do not fit those of the training, "" if they do."""
    known = {name for y in train for name in y.classes}
    if x.key == BOXES and x.classes and known.isdisjoint(x.classes):
        shown = ", ".join(x.classes[:4]) + (", ..." if len(x.classes) > 4 else "")
        return f"none of its classes {shown} is in the training"
    other = next((y for y in train if x.key == MAPS and y.format != x.format), None)
    if other:
        return f"its maps are {x.format}, those of the training {other.format}"
    names, key = [y.options.get("MAP_NAMES") for y in train], "MAP_NAMES"
    if x.key == MAPS and x.options.get(key) not in names:
        return f"its maps are named {x.options[key]}, those of the training {names[0]}: one {key}"
    return ""
