#!/usr/bin/env python3
"""Memory and operations of a training step, counted, and what they make of a study's runs.

python tools/estimate.py --config-file FILE [--tflops 60] [KEY VALUE ...]

One image passes forward and backward through the student, and forward through the teacher, on this
machine, at INPUT.TRAIN_SIZE and in bfloat16. PyTorch counts the operations, and the tensors that it
keeps for the backward pass are added up. All else is multiplication: no GPU is involved.
"""

import argparse
import logging
import warnings

warnings.filterwarnings("ignore", category=FutureWarning, module="torch")

import torch  # noqa: E402
from detectron2.data import MetadataCatalog  # noqa: E402
from detectron2.modeling import build_model  # noqa: E402
from tabulate import tabulate  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from mtfixmatch.data.datasets import register_datasets  # noqa: E402
from mtfixmatch.engine.setup import resolve_config  # noqa: E402
from mtfixmatch.tasks.base import get_task_classes  # noqa: E402

GIB = 2**30
# Student: weights, gradients and momentum; teacher: weights; float32.
COPIES_OF_WEIGHTS = 4


def build(config_file, opts):
    off = ["MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu"]
    cfg = resolve_config(config_file, [*opts, *off])
    cfg.MODEL.RESNETS.NORM = cfg.MODEL.SEM_SEG_HEAD.NORM = "BN"  # SyncBN counts the same
    register_datasets(cfg)
    for task in get_task_classes(cfg):
        classes = getattr(MetadataCatalog.get(cfg.DATASETS.TRAIN[0]), task.metadata_key)
        task.set_num_classes(cfg, len(classes))
    return cfg, build_model(cfg)


def count_pass(model, images, backward):
    """Operations of a pass and bytes kept for its backward pass, for one image.

    A multiplication with its addition counts as two operations.
    """
    rows = {name: [0] for name in model.heads}
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    counter = FlopCounterMode(display=False)
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with counter, torch.set_grad_enabled(backward), torch.autocast("cpu", torch.bfloat16):
        with hooks:
            outputs, zero = model(images, rows)
        if backward:
            (zero + sum(x.mean() for raw in outputs.values() for x in raw)).backward()
    held = sum(size for place, size in kept.items() if place not in weights)
    return counter.get_total_flops(), held


def batch_images(cfg):
    """Images of a step: weak views with labels, strong views, weak views of the teacher.

    An image that is labeled for some of the tasks is both; here none is (--images says otherwise).
    With implicit sampling the labeled ones are taken to be few.
    """
    total = cfg.SOLVER.IMS_PER_BATCH
    if cfg.FIXMATCH.METHOD == "Supervised":
        return total, 0, 0
    labeled = cfg.DATALOADER.LABELED_PER_BATCH if cfg.DATALOADER.SAMPLING == "explicit" else 0
    strong = total if cfg.FIXMATCH.UNSUPERVISED_ON == "all" else total - labeled
    return labeled, strong, strong


def main():
    logging.disable(logging.INFO)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--tflops", type=float, default=60.0, help="that a GPU sustains")
    parser.add_argument(
        "--images", type=int, nargs=3, metavar=("LABELED", "STRONG", "TEACHER"), help="of a step"
    )
    parser.add_argument("opts", nargs=argparse.REMAINDER)
    args = parser.parse_args()
    cfg, model = build(args.config_file, args.opts)
    images = torch.rand(1, 3, *cfg.INPUT.TRAIN_SIZE)
    model.train()
    student_flops, kept = count_pass(model, images, backward=True)
    model.eval()
    teacher_flops, _ = count_pass(model, images, backward=False)
    weak, strong, taught = args.images or batch_images(cfg)
    weights = 4 * sum(p.numel() for p in model.parameters()) * COPIES_OF_WEIGHTS
    step = (weak + strong) * student_flops + taught * teacher_flops
    hours = step * cfg.SOLVER.MAX_ITER / (args.tflops * 1e12) / 3600
    rows = [
        ["student, forward and backward, per image", f"{student_flops / 1e9:.0f} GFLOP"],
        ["teacher, forward, per image", f"{teacher_flops / 1e9:.0f} GFLOP"],
        ["images per step: labeled + strong, teacher", f"{weak} + {strong}, {taught}"],
        ["kept for the backward pass, per image", f"{kept / GIB:.2f} GiB"],
        ["weights, gradients, momentum, teacher", f"{weights / GIB:.2f} GiB"],
        ["memory of a step on one GPU", f"{((weak + strong) * kept + weights) / GIB:.1f} GiB"],
        [f"{cfg.SOLVER.MAX_ITER} steps at {args.tflops:g} TFLOP/s", f"{hours:.0f} GPU hours"],
    ]
    print(tabulate(rows, tablefmt="pipe", headers=["estimate", ""]))


if __name__ == "__main__":
    main()
