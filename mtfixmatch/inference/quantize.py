"""Turn an exported network into one of 8-bit integers, calibrated on images.

The quantization is static: the ranges of all activations are those on the calibration images.
Dynamic quantization, which measures them anew for each image, breaks these networks.
"""

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from detectron2.config import CfgNode

from ..data.loader import build_eval_loader, eval_records, labeled_tasks
from ..engine.evaluation import evaluate
from ..tasks import Task
from ..tasks.exported import Difference
from ..utils.errors import InputError, first_line
from .export import Source, metadata_of, quiet, save_onnx, to_onnx, writing
from .exported import ExportedNet, open_network
from .verify import check_differences, compare

OPERATORS = ["Conv", "Gemm", "MatMul"]  # decoding and resizing need more than 8 bits


def export_int8(
    source: Source, output: str, images: Sequence[np.ndarray], evaluation: CfgNode | None = None
) -> tuple[dict[str, list[Difference]], list[dict[str, float]]]:
    """Write an .onnx file of a network in 8-bit integers.

    Args:
        source: the network.
        output: path of the file, replaced as a whole.
        images: images to calibrate on, (H, W, 3) uint8 RGB.
        evaluation: config of labeled images (DATASETS.TEST) to evaluate on.

    Returns:
        Task -> differences between 8 bits and full precision on the images; and, with an
        `evaluation`, the metrics before and after, each by name of its task.

    Raises:
        InputError: as for `export_onnx`.
    """
    if evaluation:
        _check_classes(evaluation, source.tasks)
    with writing(output) as temporary, tempfile.TemporaryDirectory() as folder:
        full = os.path.join(folder, "full.onnx")
        program, metadata = to_onnx(source), metadata_of(source)
        save_onnx(program, metadata, full)
        nets = [ExportedNet(open_network(full), source.tasks)]
        check_differences(compare(source.tasks, source.net.run, nets[0].run, images[:1]), output)
        _quantize(full, temporary, images)
        _set_metadata(temporary, metadata | {"calibration_images": len(images)})
        nets.append(ExportedNet(open_network(temporary), source.tasks))
        differences = compare(source.tasks, nets[0].run, nets[1].run, images)
        metrics = [metrics_of(net, evaluation, source.tasks) for net in nets if evaluation]
    return differences, metrics


def _quantize(path: str, output: str, images: Sequence[np.ndarray]) -> None:
    from onnxruntime import quantization

    class Images(quantization.CalibrationDataReader):
        """Gives one image after the other."""

        def __init__(self):
            self.images = iter(images)

        def get_next(self) -> dict[str, np.ndarray] | None:
            image = next(self.images, None)
            return None if image is None else {"images": image.transpose(2, 0, 1)[None].copy()}

    try:
        with quiet():
            quantization.quantize_static(
                path, output, Images(), op_types_to_quantize=OPERATORS, per_channel=True
            )
    except Exception as error:  # ONNX Runtime's errors have no base class of their own
        raise InputError(f"{output}: cannot be quantized ({first_line(error)[:200]})") from None


def _set_metadata(path: str, metadata: Mapping[str, Any]) -> None:
    """Put the metadata back, which the quantization drops."""
    import onnx

    from mtfixmatch_runtime import KEY

    model = onnx.load(path)
    onnx.helper.set_model_props(model, {KEY: json.dumps(metadata)})
    onnx.save(model, path)


def _check_classes(cfg: CfgNode, tasks: Sequence[Task]) -> None:
    for task in tasks:
        if list(cfg.TASKS.get(task.name.upper(), {}).get("CLASSES", [])) != task.class_names:
            problem = f"the classes of {task.name} in DATASETS.TEST are not those of the network"
            raise InputError(f"--config-file: {problem}")


def metrics_of(net: ExportedNet, cfg: CfgNode, tasks: Sequence[Task]) -> dict[str, float]:
    """Return name of a task -> its metric on DATASETS.TEST.

    Raises:
        InputError: the data have no label of any of the tasks.
    """
    records = eval_records(cfg, tasks)
    evaluated = labeled_tasks(tasks, records)
    loader = build_eval_loader(cfg, records, evaluated)
    results = evaluate(net.eval(), loader, records, evaluated)
    return {task.name: results[task.name][task.metric] for task in evaluated}
