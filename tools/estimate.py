"""Estimate the memory and the GPU hours of a training without a GPU.

python -m tools.estimate --config-file FILE [--tflops 60] [KEY VALUE ...]

One image passes forward and backward through the student, and forward through the teacher, on the
CPU, at INPUT.TRAIN_SIZE and in bfloat16. PyTorch counts the operations and the bytes of the tensors
that it keeps for the backward pass; the rest is multiplication.
"""

import argparse
import logging
import warnings

warnings.filterwarnings("ignore", category=FutureWarning, module="torch")

import torch  # noqa: E402
from detectron2.modeling import build_model  # noqa: E402
from tabulate import tabulate  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from mtfixmatch.data.datasets import register_datasets  # noqa: E402
from mtfixmatch.engine.setup import resolve_config, take_classes  # noqa: E402
from mtfixmatch.methods import build_method  # noqa: E402

GIB = 2**30
# Student: weights, gradients and momentum; teacher: weights; float32.
COPIES_OF_WEIGHTS = 4


def build(config_file, opts):
    off = ["MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu"]
    cfg = resolve_config(config_file, [*opts, *off])
    cfg.MODEL.RESNETS.NORM = cfg.MODEL.SEM_SEG_HEAD.NORM = "BN"  # SyncBN counts the same
    register_datasets(cfg)
    take_classes(cfg, cfg.DATASETS.TRAIN[0])
    return cfg, build_model(cfg)


def count_pass(model, images, backward):
    """Count the operations of a pass of one image and the bytes kept for its backward pass.

    A multiplication with its addition counts as two operations.
    """
    masks = {name: [True] for name in model.heads}
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    counter = FlopCounterMode(display=False)
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with counter, torch.set_grad_enabled(backward), torch.autocast("cpu", torch.bfloat16):
        with hooks:
            outputs, zero = model(images, masks)
        if backward:
            (zero + sum(x.mean() for raw in outputs.values() for x in raw)).backward()
    activations = sum(size for pointer, size in kept.items() if pointer not in weights)
    return counter.get_total_flops(), activations


def batch_images(cfg):
    """Number of images per step: labeled weak views, strong views, weak views for the teacher.

    No image is taken to be labeled for some tasks only, and with implicit sampling the labeled
    images are taken to be few; --images overrides the numbers.
    """
    total = cfg.SOLVER.IMS_PER_BATCH
    if not build_method(cfg).is_semi_supervised:
        return total, 0, 0
    labeled = cfg.DATALOADER.LABELED_PER_BATCH if cfg.DATALOADER.SAMPLING == "explicit" else 0
    strong = total if cfg.FIXMATCH.UNSUPERVISED_ON == "all" else total - labeled
    return labeled, strong, strong


def main():
    logging.disable(logging.INFO)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--tflops", type=float, default=60.0, help="sustained speed of a GPU")
    parser.add_argument(
        "--images",
        type=int,
        nargs=3,
        metavar=("LABELED", "STRONG", "TEACHER"),
        help="images of a step",
    )
    parser.add_argument("opts", nargs=argparse.REMAINDER)
    args = parser.parse_args()
    cfg, model = build(args.config_file, args.opts)
    images = torch.rand(1, 3, *cfg.INPUT.TRAIN_SIZE)
    model.train()
    student_flops, kept = count_pass(model, images, backward=True)
    model.eval()
    teacher_flops, _ = count_pass(model, images, backward=False)
    labeled, strong, taught = args.images or batch_images(cfg)
    weights = 4 * sum(p.numel() for p in model.parameters()) * COPIES_OF_WEIGHTS
    step = (labeled + strong) * student_flops + taught * teacher_flops
    hours = step * cfg.SOLVER.MAX_ITER / (args.tflops * 1e12) / 3600
    rows = [
        ["student, forward and backward, per image", f"{student_flops / 1e9:.0f} GFLOP"],
        ["teacher, forward, per image", f"{teacher_flops / 1e9:.0f} GFLOP"],
        ["images per step: labeled + strong, teacher", f"{labeled} + {strong}, {taught}"],
        ["kept for the backward pass, per image", f"{kept / GIB:.2f} GiB"],
        ["weights, gradients, momentum, teacher", f"{weights / GIB:.2f} GiB"],
        ["memory of a step on one GPU", f"{((labeled + strong) * kept + weights) / GIB:.1f} GiB"],
        [f"{cfg.SOLVER.MAX_ITER} steps at {args.tflops:g} TFLOP/s", f"{hours:.0f} GPU hours"],
    ]
    print(tabulate(rows, tablefmt="pipe", headers=["estimate", ""]))


if __name__ == "__main__":
    main()
