"""Read and complete the task sections of a config: MODEL.TASKS and cfg.TASKS."""

from collections.abc import Sequence

from detectron2.config import CfgNode

from ..utils.errors import InputError, check_choice
from .base import TASK_REGISTRY, Task
from .own_labels import OWN_DATA


def add_task_config(cfg: CfgNode) -> None:
    """Add MODEL.TASKS and, for each registered kind, a task of its default name to `cfg`."""
    kinds = [kind for _, kind in TASK_REGISTRY]
    # The tasks to train: names of nodes in cfg.TASKS, in lower case.
    cfg.MODEL.TASKS = sorted(kind.default_name for kind in kinds)
    # A config file may add tasks: a node with the key KIND.
    cfg.TASKS = CfgNode(new_allowed=True)
    for kind in kinds:
        kind.add_config(cfg)
        add_own_data(cfg.DATASETS.COCO_STYLE, kind, kind.default_name)


def complete_task_config(cfg: CfgNode) -> None:
    """Complete each task of cfg.TASKS with the default values of its kind.

    Raises:
        InputError: a task has no registered kind, or a key that its kind does not have.
    """
    for name, changes in cfg.TASKS.items():
        kind = changes.get("KIND", "") if isinstance(changes, CfgNode) else ""
        check_choice(f"TASKS.{name}.KIND", kind, [x for x, _ in TASK_REGISTRY])
        node = TASK_REGISTRY.get(kind).default_config()
        try:
            node.merge_from_other_cfg(changes)
        except (KeyError, ValueError) as error:
            raise InputError(f"TASKS.{name}: {error.args[0]}") from None
        cfg.TASKS[name] = node
        add_own_data(cfg.DATASETS.COCO_STYLE, TASK_REGISTRY.get(kind), name.lower())
    _check_own_data(cfg)


def add_own_data(node: CfgNode, kind: type[Task], name: str) -> None:
    """Add the keys of a task to DATASETS.COCO_STYLE, if they are not there."""
    for key, value in kind.own_config().items():
        node.setdefault(own_key(kind, key, name), value)
    for split in ("TRAIN", "VAL"):
        if kind.own_key:
            node[split].setdefault(own_key(kind, kind.own_key, name), None)


def _check_own_data(cfg: CfgNode) -> None:
    """Raise InputError for a key in DATASETS.COCO_STYLE that no task has."""
    node, known = cfg.DATASETS.COCO_STYLE, {"TRAIN", "VAL"}
    files = {"IMAGES"}
    for name, task in cfg.TASKS.items():
        kind = TASK_REGISTRY.get(task.KIND)
        known |= {own_key(kind, key, name) for key in kind.own_config()}
        files |= {own_key(kind, kind.own_key, name)}
    for place, keys, choices in (
        (OWN_DATA, node, known),
        *((f"{OWN_DATA}.{split}", node[split], files) for split in ("TRAIN", "VAL")),
    ):
        for key in keys:
            check_choice(f"a key of {place}", key, sorted(filter(None, choices)))


def own_key(kind: type[Task], key: str, name: str) -> str:
    """Return the key of a task in DATASETS.COCO_STYLE: another name than the kind's is in front."""
    return key if name.lower() == kind.default_name else f"{name.upper()}_{key}"


def task_kinds(cfg: CfgNode) -> dict[str, type[Task]]:
    """Return the kind of each task in MODEL.TASKS, in that order.

    Raises:
        InputError: MODEL.TASKS is empty, repeats a name, or names an unknown task.
    """
    names = list(cfg.MODEL.TASKS)
    unknown = [name for name in names if name.upper() not in cfg.TASKS]
    if unknown or not names or len(set(names)) != len(names):
        choices = sorted(name.lower() for name in cfg.TASKS)
        raise InputError(
            f"MODEL.TASKS is {names}: it must name one or more of {choices}, each of them once"
        )
    return {name: TASK_REGISTRY.get(cfg.TASKS[name.upper()].KIND) for name in names}


def build_tasks(cfg: CfgNode) -> list[Task]:
    """Build the tasks of MODEL.TASKS, in that order."""
    return [kind(cfg, name) for name, kind in task_kinds(cfg).items()]


def in_features(cfg: CfgNode) -> set[str]:
    """Return the names of the backbone features that the heads of MODEL.TASKS read."""
    nodes = [kind.head_node(cfg, name) for name, kind in task_kinds(cfg).items()]
    return {feature for node in nodes for feature in cfg.MODEL[node].IN_FEATURES}


def set_classes(
    cfg: CfgNode,
    name: str,
    class_names: Sequence[str],
    colors: Sequence = (),
    *,
    dataset: str = "the data",
) -> None:
    """Write the classes of a task, which a dataset has, into its config.

    Raises:
        InputError: the config has other classes, or another number of them.
    """
    node = cfg.TASKS[name.upper()]
    if node.CLASSES and list(node.CLASSES) != list(class_names):
        raise InputError(
            f"TASKS.{name.upper()}.CLASSES is {list(node.CLASSES)}, but "
            f"{dataset} has {list(class_names)} (an empty list takes them)"
        )
    head = task_kinds(cfg)[name].head_node(cfg, name)
    if cfg.MODEL[head].NUM_CLASSES not in (0, len(class_names)):
        raise InputError(
            f"MODEL.{head}.NUM_CLASSES is {cfg.MODEL[head].NUM_CLASSES}, but "
            f"{dataset} has {len(class_names)} classes for {name} (0 takes them)"
        )
    node.CLASSES = list(class_names)
    node.COLORS = node.COLORS or [list(map(int, color)) for color in colors]


def with_classes(cfg: CfgNode, node: str, class_names: Sequence[str]) -> CfgNode:
    """Return a copy of a config with NUM_CLASSES set in cfg.MODEL[node], which heads read."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL[node].NUM_CLASSES = len(class_names)
    return cfg
