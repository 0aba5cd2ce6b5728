"""From a finished training to a model of a zoo: its weights, the facts about them, the index."""

import hashlib
import io
import os
import re
import shlex
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode
from tabulate import tabulate
from torch import Tensor

from ..engine.report import read_history, training_seconds, write_json
from ..engine.setup import resolve_config
from ..runtime.checkpoint_files import damage_of
from ..tasks import TASK_REGISTRY
from ..utils.errors import InputError
from ..utils.files import write_atomically
from .files import INDEX_FILE, PublishedModel, find_model, is_address, read_index, read_json
from .model_zoo import build_network, config_names, get_config_file, load_weights, read_weights

# What a training leaves that is complete; the report is written last.
RUN_FILES = (
    "model_best.pth",
    "results_best.json",
    "config.yaml",
    "label_subsets.json",
    "report.md",
)
DATA_KEYS = ("CLASSES", "COLORS")  # of a task, which a training takes from its data
# Keys that say where things are on the machine of the training, and what that machine is.
MACHINE_KEYS = (
    "OUTPUT_DIR",
    "DATASETS.ROOT",
    "DATASETS.CACHE_DIR",
    "DATASETS.LABEL_MANIFEST",
    "DATASETS.COCO_STYLE.TRAIN",
    "DATASETS.COCO_STYLE.VAL",
    "MODEL.DEVICE",
)
NAME = re.compile(r"[A-Za-z0-9][\w.+-]*(/[A-Za-z0-9][\w.+-]*)*", re.ASCII)


def publish(run: Path, name: str, root: str) -> dict[str, Any]:
    """Add the best teacher of a training to a zoo.

    It writes model_<name>_<start of the sha256>.pth, the weights alone, a .json beside it with the
    facts, and names both in the index. A model of the same name is replaced there; its files stay.

    Args:
        run: output folder of the training.
        name: of the model; "" takes the folder's, that of a config (with or without ".yaml") makes
            these the trained weights of the config.
        root: folder of the zoo.

    Returns:
        the facts: "name", "weights" (file), "sha256", "size" (bytes), "metrics" (as in
        results_best.json), "iteration", "classes" and "labels" by task, "training_seconds" (None if
        not known), "config_file", "command", "config" (nested, without paths).

    Raises:
        InputError: if the training is not complete or its files do not belong together, for a name
            that cannot be one of a file, or if the zoo cannot be written to.
    """
    name = _check_name(name or run.resolve().name)
    if is_address(root):
        raise InputError(f"--output {root}: it must be a folder, nothing can be written there")
    for file in RUN_FILES:
        if not (run / file).is_file():
            raise InputError(
                f"{run / file} is missing: RUN must be the folder of a finished training"
            )
    cfg = resolve_config(str(run / "config.yaml"), [])
    facts = _facts_of(run, cfg)
    cfg.MODEL.DEVICE = "cpu"  # there may be no GPU where a training is published
    path = str(run / "model_best.pth")
    if damage := damage_of(path):
        raise InputError(f"{path} is damaged: {damage}")
    weights = read_weights(path)
    load_weights(build_network(cfg, facts["classes"]), weights, path)
    return _write(name, weights, facts, root)


def _write(
    name: str, weights: Mapping[str, Tensor], facts: Mapping[str, Any], root: str
) -> dict[str, Any]:
    try:
        os.makedirs(root, exist_ok=True)
    except OSError as error:
        raise InputError(f"--output {root} cannot be made: {error.strerror}") from None
    index_file = os.path.join(root, INDEX_FILE)
    index = read_index(root) if os.path.exists(index_file) else {}
    file = _write_weights(weights, root, name)
    facts = {"name": name, **file, **facts}
    facts_file = file["weights"].removesuffix(".pth") + ".json"
    write_json(facts, os.path.join(root, facts_file))
    index[name] = {**file, "facts": facts_file}
    write_json(dict(sorted(index.items())), index_file)
    return facts


def zoo_table(root: str) -> str:
    """Return the models of a zoo as a Markdown table, from its index and the facts."""
    models = [find_model(name, root) for name in sorted(read_index(root))]
    # Name of a task -> name of its metric; the order is that of the first model with the task.
    metrics = {task: name for model in models for task, name in _metrics_of(model.facts).items()}
    rows = [_table_row(model, metrics, root) for model in models]
    headers = ["model (config)", *(f"{task} labels" for task in metrics)]
    headers += [*metrics.values(), "geometric mean", "training", "command", "file"]
    return tabulate(rows, headers=headers, tablefmt="pipe", disable_numparse=True)


def _metrics_of(facts: Mapping[str, Any]) -> dict[str, str]:
    """Return name of a task -> name of its metric."""
    kinds = {name: facts["config"]["TASKS"][name.upper()]["KIND"] for name in facts["classes"]}
    return {name: TASK_REGISTRY.get(kind).metric for name, kind in kinds.items()}


def _table_row(model: PublishedModel, metrics: Mapping[str, str], root: str) -> list[Any]:
    facts = model.facts
    results, seconds = facts["metrics"], facts["training_seconds"]
    values = [results.get(task, {}).get(metric) for task, metric in metrics.items()]
    return [
        f"[{facts['name']}](configs/{facts['config_file']})",
        *(facts["labels"].get(task, {}).get("count", "") for task in metrics),
        *(_figure(value) for value in (*values, results["geometric_mean"])),
        "" if seconds is None else timedelta(seconds=round(seconds)),
        f"`{facts['command']}`",
        f"[{model.weights}]({model.url})" if is_address(root) else model.weights,
    ]


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _check_name(name: str) -> str:
    name = name.removesuffix(".yaml")
    if not NAME.fullmatch(name):
        raise InputError(
            f"--name {name!r}: letters, digits, _ . + - and, between names, / are used"
        )
    return name


def _facts_of(run: Path, cfg: CfgNode) -> dict[str, Any]:
    results = read_json(str(run / "results_best.json"))
    labels = read_json(str(run / "label_subsets.json"))["labels"]
    config_file, command = find_command(cfg)
    try:
        return {
            "metrics": results["teacher"],
            "iteration": results["iteration"],
            "classes": {t: list(cfg.TASKS[t.upper()].CLASSES) for t in cfg.MODEL.TASKS},
            "labels": {t: {k: labels[t][k] for k in ("count", "sha256")} for t in cfg.MODEL.TASKS},
            "training_seconds": training_seconds(read_history(str(run / "metrics.json"))),
            "config_file": config_file,
            "command": command,
            "config": portable_config(cfg),
        }
    except KeyError as error:
        raise InputError(
            f"{run}: its files are of different trainings, {error} is missing"
        ) from None


def portable_config(cfg: CfgNode) -> dict[str, Any]:
    """A config as plain nested data, without what holds on one machine only."""
    content = yaml.safe_load(cfg.dump())
    for key in MACHINE_KEYS:
        *path, last = key.split(".")
        node = content
        for part in path:
            node = node[part]
        del node[last]
    return _without_paths(content)


def _without_paths(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_paths(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_paths(item) for item in value]
    return "" if isinstance(value, str) and os.path.isabs(value) else value


def find_command(cfg: CfgNode) -> tuple[str, str]:
    """How to train a config again.

    Returns:
        the config of this package that it differs least from, and the command with the difference.
    """
    # The classes come from the data again.
    from_data = {f"TASKS.{t.upper()}.{key}" for t in cfg.MODEL.TASKS for key in DATA_KEYS}
    wanted = _flat(portable_config(cfg))
    if os.path.isabs(cfg.MODEL.WEIGHTS):
        wanted["MODEL.WEIGHTS"] = os.path.basename(cfg.MODEL.WEIGHTS)
    changes = {}
    for name in config_names():
        there = _flat(portable_config(resolve_config(get_config_file(name), [])))
        changed = {key: value for key, value in wanted.items() if there.get(key) != value}
        changes[name] = {key: x for key, x in changed.items() if key not in from_data}
    name = min(changes, key=lambda name: len(changes[name]))
    pairs = [str(part) for pair in changes[name].items() for part in pair]
    start = ["python", "projects/train_net.py", "--config-file", f"configs/{name}"]
    return name, shlex.join([*start, *pairs])


def _flat(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"A": {"B": 1}} as {"A.B": 1}."""
    flat: dict[str, Any] = {}
    for key, value in node.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _write_weights(weights: Mapping[str, Tensor], root: str, name: str) -> dict[str, Any]:
    """Write the file under its hash. Returns its facts."""
    buffer = io.BytesIO()
    torch.save(weights, buffer)
    content = buffer.getvalue()
    sha256 = hashlib.sha256(content).hexdigest()
    file_name = f"model_{name.replace('/', '_')}_{sha256[:8]}.pth"
    write_atomically(os.path.join(root, file_name), content)
    return {"weights": file_name, "sha256": sha256, "size": len(content)}
