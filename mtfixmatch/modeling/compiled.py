"""Compile a network with torch.compile: one graph, for any number of images and rows."""

import operator
from collections.abc import Mapping
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import Tensor

from ..tasks.base import Outputs
from ..tasks.dropout import ImageDropout
from ..utils.devices import to_device
from ..utils.errors import InputError
from .multitask import MultiTaskNet, Rows
from .sync_norm import CAN_COMPILE, CpuSyncBatchNorm, SyncBatchNorm

# Each head runs on all images, some or none, and one image or none has a graph of its own: these
# are few cases, but more than PyTorch allows by default.
MOST_GRAPHS = 64
# Numbers of images and rows for which CUDA graphs are kept in memory.
MOST_SHAPES = 8


def compile_networks(cfg: CfgNode, *networks: MultiTaskNet) -> None:
    """Compile networks as MODEL.COMPILE and MODEL.CUDA_GRAPHS say.

    Raises:
        InputError: CUDA graphs cannot be recorded.
    """
    if cfg.MODEL.CUDA_GRAPHS:
        for key, works, needed in (
            ("MODEL.COMPILE", cfg.MODEL.COMPILE, "True"),
            ("MODEL.DEVICE", cfg.MODEL.DEVICE.startswith("cuda"), "a GPU"),
            ("SOLVER.ACCUMULATION_STEPS", cfg.SOLVER.ACCUMULATION_STEPS == 1, "1"),
        ):
            if not works:
                value = operator.attrgetter(key)(cfg)
                raise InputError(f"MODEL.CUDA_GRAPHS needs {key} to be {needed}; it is {value}")
    for network in networks if cfg.MODEL.COMPILE else ():
        compile_network(network, cuda_graphs=cfg.MODEL.CUDA_GRAPHS)


def compile_network(
    network: MultiTaskNet, *, cuda_graphs: bool = False, backend: str = "inductor"
) -> None:
    """Have the passes of a network on tensors run compiled; its weights and their names stay.

    The first pass compiles it, which can take minutes. An evaluation, whose images may have many
    sizes, does not use it.

    Args:
        network: student or teacher; changed.
        cuda_graphs: record CUDA graphs, which need the same number of images in every step.
        backend: backend of torch.compile.

    Raises:
        InputError: CUDA graphs cannot be recorded of this network.
    """
    import torch._dynamo as dynamo  # takes a second, which only a compiled training needs

    dynamo.config.recompile_limit = max(dynamo.config.recompile_limit, MOST_GRAPHS)
    # Splitting the graph for DDP does not work with numbers of images that change.
    dynamo.config.optimize_ddp = False
    norms = (SyncBatchNorm, CpuSyncBatchNorm)  # which several processes have
    synchronized = [m for m in network.modules() if isinstance(m, norms) and m.training]
    is_whole = CAN_COMPILE or not synchronized
    if not is_whole:
        for norm in synchronized:
            norm.forward = torch.compiler.disable(norm.forward)  # type: ignore[method-assign]
    dropouts = [m for m in network.modules() if isinstance(m, ImageDropout)]
    if cuda_graphs and (synchronized or any(dropout.p for dropout in dropouts)):
        unfit = "SyncBN on several GPUs" if synchronized else "MODEL.SEM_SEG_HEAD.ASPP_DROPOUT"
        raise InputError(f"MODEL.CUDA_GRAPHS cannot record a network with {unfit}: turn one off")
    options: dict[str, Any] = {"options": {"triton.cudagraphs": True}} if cuda_graphs else {}
    run = torch.compile(network.run_heads, fullgraph=is_whole, backend=backend, **options)
    shapes: set[tuple] = set()

    def run_heads(images: Tensor, rows: Mapping[str, Rows]) -> tuple[dict[str, Outputs], Tensor]:
        tensors = {name: _index(x, images.device) for name, x in rows.items()}
        given = [images, *tensors.values(), *(dropout.seeds for dropout in dropouts)]
        if cuda_graphs:
            shapes.add(tuple(None if x is None else len(x) for x in given))
            _check_shapes(len(shapes))
        for x in given:
            if x is not None and len(x) > 1:
                dynamo.mark_dynamic(x, 0)
        return run(images, tensors)

    network.compiled = run_heads


def _index(rows: Rows, device: torch.device) -> Tensor | None:
    """Return rows as a tensor, whose length is free in a graph, without waiting for a GPU."""
    if rows is None:
        return None
    return to_device(torch.as_tensor(rows, dtype=torch.long), device)


def _check_shapes(number: int) -> None:
    if number > MOST_SHAPES:
        raise InputError(
            f"MODEL.CUDA_GRAPHS: the steps have had {number} different numbers of images for the "
            "heads, and each needs a graph of its own in memory: use DATALOADER.SAMPLING explicit "
            "with DATALOADER.LABELED all, and tasks that are labeled on the same images, or "
            "MODEL.CUDA_GRAPHS False"
        )
