"""Write a network as one .onnx file, with everything from the pixels to the results inside."""

import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from ..model_zoo.publish import portable_config
from ..modeling import MultiTaskNet
from ..tasks import Task
from ..tasks.exported import Difference, Exports
from ..utils.errors import InputError, check_choice, first_line
from ..utils.files import replacing
from .exported import EXTRA, ExportedNet, open_network
from .predictor import Predictor
from .verify import check_differences, compare

OPSET = 20
EXAMPLE = (2, 3, 200, 296)  # any other batch, height and width will do


class ExportNet(nn.Module):
    """The part of a network for some tasks, from pixels to tensors with the results."""

    def __init__(self, model: MultiTaskNet, tasks: Sequence[str]):
        super().__init__()
        self.model: MultiTaskNet = model
        self.tasks = list(tasks)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """See `MultiTaskNet.export`."""
        return self.model.export(images, self.tasks)

    def split(self, exports: Exports) -> dict[str, dict[str, Tensor]]:
        """Return task -> its own exports by name."""
        found: dict[str, dict[str, Tensor]] = {task: {} for task in self.tasks}
        for key, tensor in exports.items():
            # Of `map` and `map_2` the longer name is the task of `map_2_boxes`.
            task = max((x for x in self.tasks if key.startswith(f"{x}_")), key=len)
            found[task][key.removeprefix(f"{task}_")] = tensor
        return found

    def names(self) -> list[str]:
        """Return the names of the tensors."""
        exports = self.run(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
        return [f"{task}_{name}" for task, own in exports.items() for name in own]

    @torch.no_grad()
    def run(self, images: Tensor) -> dict[str, Exports]:
        """Return task -> exports on the CPU for images (N, 3, H, W) uint8 RGB."""
        exports = self.split(self(images.to(self.model.device)))
        return {task: {k: x.cpu() for k, x in own.items()} for task, own in exports.items()}


@dataclass(frozen=True)
class Source:
    """What is exported: the tasks of a network in PyTorch.

    Attributes:
        predictor: the predictor with the network.
        model: the network.
        tasks: some of its tasks.
        net: the part of the network for them.
    """

    predictor: Predictor
    model: MultiTaskNet
    tasks: list[Task]
    net: ExportNet

    @classmethod
    def of(cls, predictor: Predictor, names: Sequence[str] = ()) -> "Source":
        """Choose tasks of a predictor by name; none: all.

        Raises:
            InputError: there is no such task, or the network is an exported one.
        """
        model = predictor.model
        if not isinstance(model, MultiTaskNet):
            raise InputError(f"{predictor.name} is exported already: give the run or its weights")
        known = [task.name for task in predictor.tasks]
        for name in names:
            check_choice("--tasks", name, known)
        tasks = [task for task in predictor.tasks if task.name in (names or known)]
        return cls(predictor, model, tasks, ExportNet(model, [task.name for task in tasks]))


def export_onnx(
    source: Source, output: str, images: Sequence[np.ndarray]
) -> dict[str, list[Difference]]:
    """Write an .onnx file that gives the results of PyTorch on these images.

    Args:
        source: the network.
        output: path of the file, replaced as a whole.
        images: images to compare on, (H, W, 3) uint8 RGB.

    Returns:
        Task -> differences from the results in PyTorch.

    Raises:
        InputError: the network cannot be exported, its results differ, or the file cannot be
            written; then `output` is as it was.
    """
    with writing(output) as temporary:
        save_onnx(to_onnx(source), metadata_of(source), temporary)
        exported = ExportedNet(open_network(temporary), source.tasks)
        differences = compare(source.tasks, source.net.run, exported.run, images)
        check_differences(differences, output)
    return differences


@contextmanager
def writing(output: str) -> Iterator[str]:
    """Give the path of a temporary file that replaces `output` unless there is an error."""
    try:
        with replacing(output) as file:
            yield file.name
    except OSError as error:
        raise InputError(f"{output} cannot be written: {error.strerror or error}") from None


def trace(source: Source) -> ExportedProgram:
    """Return the network as a graph whose batch, height and width are free."""
    images = torch.zeros(EXAMPLE, dtype=torch.uint8, device=source.model.device)
    free = {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
    with torch.no_grad(), quiet(), naming(source):
        return torch.export.export(source.net, (images,), dynamic_shapes=(free,), strict=False)


def to_onnx(source: Source) -> Any:
    """Return the network as a torch.onnx.ONNXProgram."""
    try:
        import onnxruntime  # noqa: F401  # which compares the results
        import onnxscript  # noqa: F401  # which torch.onnx imports when it is called
    except ImportError as error:
        raise InputError(f"the export to .onnx needs {error.name}: {EXTRA}") from None
    operators: dict[Callable, Callable] = {}
    for task in source.tasks:
        operators |= source.model.head(task.name).onnx_operators()
    program = trace(source)
    with torch.no_grad(), quiet(), naming(source):
        return torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            input_names=["images"],
            output_names=source.net.names(),
            custom_translation_table=operators,
            verbose=False,
        )


@contextmanager
def naming(source: Source) -> Iterator[None]:
    """Turn an error of PyTorch's exporter into an InputError that names the network."""
    try:
        yield
    except Exception as error:  # PyTorch's exporter raises errors of many types
        backbone = source.predictor.cfg.MODEL.BACKBONE.NAME
        problem = f"PyTorch cannot export its network ({backbone}): {first_line(error)[:200]}"
        raise InputError(f"{source.predictor.name}: {problem}") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Hide warnings of PyTorch's exporter about its own workings."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def save_onnx(program: Any, metadata: dict[str, Any], path: str) -> None:
    """Write a torch.onnx.ONNXProgram with the metadata of `mtfixmatch_runtime`."""
    from mtfixmatch_runtime import KEY

    program.model.metadata_props[KEY] = json.dumps(metadata)
    program.save(path)


def metadata_of(source: Source) -> dict[str, Any]:
    """Return what the file says about the network, for JSON; see `mtfixmatch_runtime.Network`."""
    from mtfixmatch_runtime import FORMAT

    predictor = source.predictor
    exports = source.net.run(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    return {
        "format": FORMAT,
        "name": predictor.name,
        "weights_sha256": predictor.sha256,
        "range_16bit": list(predictor.range_16bit),
        "tasks": {
            task.name: {
                "kind": type(task).__name__,
                "classes": task.class_names,
                "colors": task.colors,
                "outputs": {name: f"{task.name}_{name}" for name in exports[task.name]},
                **source.model.head(task.name).export_facts(),
            }
            for task in source.tasks
        },
        "config": _config(predictor.cfg, source.tasks),
    }


def _config(cfg: CfgNode, tasks: Sequence[Task]) -> dict[str, Any]:
    """Return the config of a network with these tasks alone, without what is of one machine."""
    content = portable_config(cfg)
    content["MODEL"]["TASKS"] = [task.name for task in tasks]
    content["MODEL"].pop("TRUST_PICKLE", None)
    return content
