"""Count the cost of a student's pass by tasks and by image size, without running it.

    python -m tools.scale_steps

The network is that of configs/cityscapes, on PyTorch's "meta" device.
"""

import json
import os
import sys
import tempfile

import torch
from detectron2.modeling import build_model
from torch.utils.flop_counter import FlopCounterMode

from mtfixmatch.engine.setup import resolve_config
from mtfixmatch.tasks.config import set_classes

CONFIG = "configs/cityscapes/dense_fixmatch.yaml"
SIZES = (256, 512, 800, 1024)  # pixels, both sides
SIZE = 512  # for the tasks
EXTRA = "drivable{}"  # further semantic maps of three classes
CLASSES = {"detection": 8, "segmentation": 19}
TASKS = (
    ("detection",),
    ("segmentation",),
    ("detection", "segmentation"),
    *(("detection", "segmentation", *map(EXTRA.format, range(n))) for n in (1, 2, 4)),
)


def costs(tasks: tuple[str, ...], size: int) -> dict[str, float]:
    """Return arithmetic, stored activations and parameters of a student's pass of one image."""
    opts = ["MODEL.DEVICE", "cpu", "MODEL.TASKS", str(list(tasks))]
    opts += [x for key in ("RESNETS", "SEM_SEG_HEAD") for x in (f"MODEL.{key}.NORM", "BN")]
    more = {task.upper(): {"KIND": "Segmentation"} for task in tasks if task not in CLASSES}
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        json.dump({"_BASE_": os.path.abspath(CONFIG), "TASKS": more}, file)  # also YAML
        file.flush()
        cfg = resolve_config(file.name, opts)
    for task in tasks:
        set_classes(cfg, task, [str(i) for i in range(CLASSES.get(task, 3))])
    model, saved = build_model(cfg).to("meta"), list[int]()

    def save(x: torch.Tensor) -> torch.Tensor:
        saved.append(x.numel() * x.element_size())
        return x

    hooks = torch.autograd.graph.saved_tensors_hooks(save, lambda x: x)
    with FlopCounterMode(display=False) as counter, hooks:
        images = torch.rand(1, 3, size, size, device="meta")
        outputs, zero = model(images, {task: [True] for task in tasks})
        (sum(x.sum() for raw in outputs.values() for x in raw) + zero).backward()
    return {
        "GFLOP": counter.get_total_flops() / 1e9,
        "activations_mib": sum(saved) / 2**20,
        "parameters": sum(x.numel() for x in model.parameters()),
    }


def measure() -> dict[str, list]:
    """Return the costs by tasks and by image size."""
    return {
        "tasks": [{"tasks": list(tasks), **costs(tasks, SIZE)} for tasks in TASKS],
        "sizes": [{"size": size, **costs(TASKS[2], size)} for size in SIZES],
    }


def main() -> None:
    """Print the costs as JSON."""
    json.dump(measure(), sys.stdout, indent=1)


if __name__ == "__main__":
    main()
