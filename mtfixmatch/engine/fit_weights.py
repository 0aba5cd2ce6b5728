"""Fit the weights of a file to a network with other classes or other tasks.

Rows of a head's last layers belong to classes, see TaskHead.class_layers. A class that file and
network both have keeps its rows, found by its name; a new class has those of the new network.
"""

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

from torch import Tensor

from ..modeling import MultiTaskNet
from ..utils.errors import InputError

ONLY_TRAINING = "only a new training can start from it"
SHOWN = 10  # class names in a list of a message


def fit_classes(
    net: MultiTaskNet, weights: MutableMapping[str, Tensor], classes: Any, *, adapt: bool
) -> list[str]:
    """Fit the weights of a file to the classes of each task.

    Args:
        net: network, which has the rows of new classes.
        weights: weights of the file by name; those of last layers are changed.
        classes: class names in the file, {task: names}, as far as it has them.
        adapt: whether other classes are allowed.

    Returns:
        A sentence for each task with other classes, or with classes that the file does not name.

    Raises:
        InputError: the classes differ without `adapt`, or no layer fits them.
    """
    known = classes if isinstance(classes, Mapping) else {}
    sentences = []
    for task, new in net.class_names.items():
        old = list(known.get(task) or [])
        if old == new or not any(key.startswith(f"heads.{task}.") for key in weights):
            continue
        layers = _last_layers(net, task, weights)
        if not old:
            sentences.append(_fit_unnamed(weights, layers, task, new, adapt))
        elif adapt and layers:
            for key, own in layers.items():
                weights[key] = _move_rows(key, weights[key], own, old, new)
            sentences.append(_changes(layers, old, new))
        else:
            why = "no layer of this head is known to depend on them" if adapt else ONLY_TRAINING
            raise InputError(f"it has other classes of {task} ({_difference(old, new)}): {why}")
    return sentences


def compare_heads(net: MultiTaskNet, incompatible: Any, *, adapt: bool) -> list[str]:
    """Say which heads are missing in a file, and which of its heads are not used.

    Args:
        net: network that the file was loaded into.
        incompatible: result of the loading with `missing_keys` and `unexpected_keys`; those of
            whole heads are removed, because the sentences name the heads.
        adapt: whether heads may be missing.

    Raises:
        InputError: a head is missing without `adapt`.
    """
    unexpected = incompatible.unexpected_keys
    missing = [
        task
        for task, head in net.heads.items()
        if (keys := {f"heads.{task}.{key}" for key, _ in head.named_parameters()})
        and keys <= {*incompatible.missing_keys}
    ]
    unused = sorted({x.split(".")[1] for x in unexpected if x.startswith("heads.")} - {*net.heads})
    if missing and not adapt:
        problem = f"it has no weights for the heads of {', '.join(missing)} (MODEL.TASKS)"
        raise InputError(f"{problem}: {ONLY_TRAINING}")
    prefixes = tuple(f"heads.{task}." for task in (*missing, *unused))
    for keys in (incompatible.missing_keys, unexpected):
        keys[:] = [key for key in keys if not key.startswith(prefixes)]
    sentences = {
        "it has no weights for the heads of {}, which start anew": missing,
        "its heads of {} are not used": unused,
    }
    return [text.format(", ".join(tasks)) for text, tasks in sentences.items() if tasks]


def _last_layers(net: MultiTaskNet, task: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the network's tensors with rows for classes, by name, that a file has too."""
    prefixes = tuple(f"heads.{task}.{layer}." for layer in net.head(task).class_layers)
    own = net.state_dict()
    return {key: own[key] for key in own if key.startswith(prefixes) and key in weights}


def _fit_unnamed(
    weights: MutableMapping[str, Tensor],
    layers: Mapping[str, Tensor],
    task: str,
    new: Sequence[str],
    adapt: bool,
) -> str:
    """Start the last layers anew if a file without class names has another number of classes."""
    if all(weights[key].shape == own.shape for key, own in layers.items()):
        return f"it does not name its classes of {task}, taken to be the config's in their order"
    for key, own in layers.items():
        if adapt and weights[key].shape[1:] == own.shape[1:]:
            weights[key] = own
    return f"it has another number of classes in {_modules(layers)}, all start anew"


def _move_rows(
    key: str, value: Tensor, own: Tensor, old: Sequence[str], new: Sequence[str]
) -> Tensor:
    """Return a tensor for the classes `new`, with the rows of those that `old` has too.

    Args:
        key: name of the tensor.
        value: tensor of the file (A * K, ...): A groups of a row for each of its K classes.
        own: tensor of the network, likewise.
        old: class names of the file.
        new: class names of the network.
    """
    groups = len(own) // len(new)
    expected = (groups * len(old), *own.shape[1:])
    if tuple(value.shape) != expected:
        raise InputError(
            f"its {key} is {tuple(value.shape)}, and not {expected}, which its {len(old)} classes "
            "need in this network: it is for another architecture"
        )
    rows = own.unflatten(0, (groups, len(new))).clone()
    file_rows = value.unflatten(0, (groups, len(old)))
    for i, name in enumerate(new):
        if name in old:
            rows[:, i] = file_rows[:, old.index(name)]
    return rows.flatten(0, 1)


def _changes(layers: Mapping[str, Tensor], old: Sequence[str], new: Sequence[str]) -> str:
    kept = _listed([name for name in new if name in old])
    return f"it has other classes in {_modules(layers)} (kept: {kept}; {_difference(old, new)})"


def _difference(old: Sequence[str], new: Sequence[str]) -> str:
    of_file, of_config = [x for x in old if x not in new], [x for x in new if x not in old]
    if not (of_file or of_config):
        return "in another order"
    return f"only in the config: {_listed(of_config)}; only in the file: {_listed(of_file)}"


def _modules(layers: Mapping[str, Tensor]) -> str:
    return ", ".join(dict.fromkeys(key.rpartition(".")[0] for key in layers))


def _listed(names: Sequence[str]) -> str:
    more = [f"and {len(names) - SHOWN} more"] if len(names) > SHOWN else []
    return ", ".join([*names[:SHOWN], *more]) or "none"
