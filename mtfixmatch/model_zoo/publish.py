"""Publish a finished training in a model zoo: its weights, the facts about them, the index."""

import hashlib
import io
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.modeling import build_model
from tabulate import tabulate
from torch import Tensor

from ..data.datasets import DATASET_NAMES
from ..engine.evaluation import class_note
from ..engine.report import read_history, training_seconds, write_json
from ..engine.setup import resolve_config
from ..runtime.checkpoint_files import damage_of
from ..runtime.zoo_files import INDEX_FILE, PublishedModel, find_model, is_address, read_index
from ..tasks.config import build_tasks, task_kinds
from ..utils.checkout import IN_CHECKOUT, spell_commands
from ..utils.errors import InputError
from ..utils.files import read_json, write_atomically
from . import config_names, get_config, load_weights, read_weights

# The files of a finished training; the report is written last.
RUN_FILES = (
    *("model_best.pth", "results_best.json", "config.yaml", "label_subsets.json"),
    "report.md",
)
DATA_KEYS = ("CLASSES", "COLORS")  # keys of a task that a training takes from its data
# Keys that describe the machine of the training: its folders and its device.
MACHINE_KEYS = (
    *("OUTPUT_DIR", "DATASETS.ROOT", "DATASETS.CACHE_DIR", "DATASETS.LABEL_MANIFEST"),
    "DATALOADER.DECODED_STORE",
    *("DATASETS.COCO_STYLE.TRAIN", "DATASETS.COCO_STYLE.VAL", "MODEL.DEVICE"),
)
NAME = re.compile(r"[A-Za-z0-9][\w.+-]*(/[A-Za-z0-9][\w.+-]*)*", re.ASCII)


def publish(run: Path, name: str, root: str) -> dict[str, Any]:
    """Add the best teacher of the training in the folder `run` to the zoo in the folder `root`.

    This writes model_<name>_<start of the SHA-256>.pth with the weights and class names alone and a
    .json beside it with the facts, and adds both to the index. In the index a model of the same
    name is replaced; its files stay. Without a name the model has that of `run`. The name of a
    config, with or without ".yaml", makes these the trained weights of the config.

    Returns:
        The facts: "name"; "weights" (file), "sha256" and "size" in bytes; "metrics" (as in
        results_best.json) and "iteration"; "classes", "labels" and "primary_metrics" by task;
        "training_seconds" (None if not known); "config" (nested, without local paths); and the keys
        of `training_command`.

    Raises:
        InputError: the training is not finished or has no evaluation, its files do not belong
            together, the name cannot be that of a file, or the zoo cannot be written.
    """
    name = (name or run.resolve().name).removesuffix(".yaml")
    if not NAME.fullmatch(name):
        raise InputError(f"--name {name!r}: use letters, digits, _ . + - and, between names, /")
    if is_address(root):
        raise InputError(f"--output {root}: models can be written to a local folder only")
    for file in RUN_FILES:
        if not (run / file).is_file():
            expected = "RUN must be the folder of a finished training with an evaluation"
            raise InputError(f"{run / file} is missing: {expected}")
    cfg = resolve_config(str(run / "config.yaml"), [])
    facts = _facts_of(run, cfg)
    checkpoint = str(run / "model_best.pth")
    if damage := damage_of(checkpoint):
        raise InputError(f"{checkpoint} is damaged: {damage}")
    weights = read_weights(checkpoint)
    cfg.MODEL.DEVICE = "cpu"  # there may be no GPU where a training is published
    load_weights(build_model(cfg), weights, checkpoint)
    return _add_to_zoo(root, name, weights, facts)


def _facts_of(run: Path, cfg: CfgNode) -> dict[str, Any]:
    results = read_json(run / "results_best.json")
    subsets = read_json(run / "label_subsets.json")
    tasks = build_tasks(cfg)
    try:
        labels = subsets["labels"]
        return {
            "metrics": results["teacher"],
            "iteration": results["iteration"],
            "classes": {t.name: t.class_names for t in tasks},
            "labels": {t.name: {k: labels[t.name][k] for k in ("count", "sha256")} for t in tasks},
            "primary_metrics": {t.name: t.metric for t in tasks},
            "training_seconds": training_seconds(read_history(str(run / "metrics.json"))),
            **training_command(cfg),
            "config": portable_config(cfg),
        }
    except KeyError as error:
        problem = f"its files are of different trainings, {error} is missing"
        raise InputError(f"{run}: {problem}") from None


def _add_to_zoo(
    root: str, name: str, weights: Mapping[str, Tensor], facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Write the weights, the facts and the index; return all facts."""
    try:
        os.makedirs(root, exist_ok=True)
    except OSError as error:
        raise InputError(f"--output {root} cannot be made: {error.strerror}") from None
    index_file = os.path.join(root, INDEX_FILE)
    index = read_index(root) if os.path.exists(index_file) else {}
    buffer = io.BytesIO()
    torch.save({"model": weights, "classes": facts["classes"]}, buffer)
    content = buffer.getvalue()
    sha256 = hashlib.sha256(content).hexdigest()
    stem = f"model_{name.replace('/', '_')}_{sha256[:8]}"
    file = {"weights": f"{stem}.pth", "sha256": sha256, "size": len(content)}
    facts = {"name": name, **file, **facts}
    write_atomically(os.path.join(root, f"{stem}.pth"), content)
    write_json(facts, os.path.join(root, f"{stem}.json"))
    index[name] = {**file, "facts": f"{stem}.json"}
    write_json(dict(sorted(index.items())), index_file)
    return facts


def portable_config(cfg: CfgNode) -> dict[str, Any]:
    """Return a config as nested plain data, without what is true on one machine only."""
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


def training_command(cfg: CfgNode) -> dict[str, Any]:
    """Describe how to repeat a training with train_net.py.

    Returns:
        "config_file": the config of this package that differs least from `cfg`.
        "command": the command that trains it with the differences as KEY VALUE pairs, or None:
            KEY VALUE pairs can neither add tasks nor register code.
        "not_in_package": tasks and datasets that prevent the command, such as ["task drivable"].
    """
    wanted = _wanted_keys(cfg)
    differences = {}
    for name in config_names():
        known = _flatten(portable_config(get_config(name)))
        differences[name] = {k: v for k, v in wanted.items() if known.get(k) != v}
    config_file = min(differences, key=lambda name: len(differences[name]))
    pairs = [str(part) for pair in differences[config_file].items() for part in pair]
    path = f"configs/{config_file}" if IN_CHECKOUT else config_file
    train = spell_commands("python projects/train_net.py")
    missing = _not_in_package(cfg, differences[config_file])
    return {
        "config_file": config_file,
        "command": None if missing else f"{train} {shlex.join(['--config-file', path, *pairs])}",
        "not_in_package": missing,
    }


def _wanted_keys(cfg: CfgNode) -> dict[str, Any]:
    """Return the keys that a repeated training must set; its classes come from the data again."""
    content = portable_config(cfg)
    nodes = {name.upper(): content["TASKS"][name.upper()] for name in cfg.MODEL.TASKS}
    content["TASKS"] = {
        name: {key: value for key, value in node.items() if key not in DATA_KEYS}
        for name, node in nodes.items()
    }
    if not any(name.startswith("coco_style") for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)):
        content["DATASETS"].pop("COCO_STYLE", None)  # its keys have no effect
    if os.path.isabs(cfg.MODEL.WEIGHTS):
        content["MODEL"]["WEIGHTS"] = os.path.basename(cfg.MODEL.WEIGHTS)
    return _flatten(content)


def _not_in_package(cfg: CfgNode, differences: Mapping[str, Any]) -> list[str]:
    """List the tasks and datasets that neither this package nor the closest config has."""
    package = __name__.split(".")[0]
    tasks = [
        f"task {name}"
        for name, kind in task_kinds(cfg).items()
        if f"TASKS.{name.upper()}.KIND" in differences or kind.__module__.split(".")[0] != package
    ]
    datasets = dict.fromkeys([*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST])
    return tasks + [f"dataset {name}" for name in datasets if name not in DATASET_NAMES]


def _flatten(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return {"A": {"B": 1}} as {"A.B": 1}."""
    return {key.replace("/", "."): value for key, value in flatten_results_dict(config).items()}


def zoo_table(root: str) -> str:
    """Return the models of a zoo as a Markdown table, from its index and the facts.

    Below it is a line for each metric that is a mean over fewer classes than its task has.
    """
    models = [find_model(name, root) for name in sorted(read_index(root))]
    # (task, metric) in the order of the first model that has it.
    metrics = list(dict.fromkeys(x for m in models for x in m.facts["primary_metrics"].items()))
    tasks = list(dict.fromkeys(task for task, _ in metrics))
    names = [metric for _, metric in metrics]
    headers = [
        "model (config)",
        *(f"{task} labels" for task in tasks),
        *(m if names.count(m) == 1 else f"{task} {m}" for task, m in metrics),
        *("geometric mean", "training", "command", "file"),
    ]
    rows = [list(_table_row(model, metrics, tasks)) for model in models]
    table = tabulate(rows, headers=headers, tablefmt="pipe", disable_numparse=True)
    return "\n".join([table, *_class_lines(models)])


def _class_lines(models: Sequence[PublishedModel]) -> Iterator[str]:
    for facts in (model.facts for model in models):
        primary = facts["primary_metrics"]
        for task, metric in primary.items():
            name = metric if list(primary.values()).count(metric) == 1 else f"{task} {metric}"
            if note := class_note(name, facts["metrics"].get(task, {})):
                yield f"\n{facts['name']}: {note}"


def _table_row(
    model: PublishedModel, metrics: Sequence[tuple[str, str]], tasks: Sequence[str]
) -> Iterator[Any]:
    facts = model.facts
    results, seconds = facts["metrics"], facts["training_seconds"]
    yield f"[{facts['name']}](configs/{facts['config_file']})"
    for task in tasks:
        yield facts["labels"].get(task, {}).get("count", "")
    for value in (*(results.get(t, {}).get(m) for t, m in metrics), results["geometric_mean"]):
        yield "" if value is None else f"{value:.3f}"
    yield "" if seconds is None else timedelta(seconds=round(seconds))
    missing = ", ".join(facts["not_in_package"])
    yield f"not in this package: {missing}" if missing else f"`{facts['command']}`"
    yield f"[{model.weights}]({model.url})" if is_address(model.root) else model.weights
