"""Detectron2's optimizer, and its form for a CPU."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.solver import build as solver_build
from torch import Tensor, nn
from torch.optim.sgd import sgd


class FusedSGD(torch.optim.SGD):
    """SGD with PyTorch's fused kernel for a CPU, which takes half the time of the other ways.

    The kernel goes through a weight, its gradient and its momentum in the order of their memory. If
    their memory layouts differ, as after a resume with another MODEL.CHANNELS_LAST, its results are
    wrong. If they are channels_last, it copies. So it gets contiguous views in one layout.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """See torch.optim.SGD."""
        with torch.enable_grad():
            loss = closure() if closure else None
        for group in self.param_groups:
            views = [self._views(p) for p in group["params"] if p.grad is not None]
            params, grads = [x[0] for x in views], [x[1] for x in views]
            momenta: list[Tensor | None] = [x[2] for x in views]
            names = ("weight_decay", "momentum", "lr", "dampening", "nesterov", "maximize")
            options = {name: group[name] for name in names}
            sgd(params, grads, momenta, has_sparse_grad=False, fused=True, **options)
        return loss

    def _views(self, param: Tensor) -> Sequence[Tensor]:
        """Return views of a parameter, its gradient and its momentum.

        The momentum is 0 before the first step, which makes it the gradient.
        """
        assert param.grad is not None
        state = self.state[param]
        momentum = state.get("momentum_buffer")
        momentum = torch.zeros_like(param) if momentum is None else _in_layout_of(param, momentum)
        state["momentum_buffer"] = momentum
        return _contiguous_views(param, _in_layout_of(param, param.grad), momentum)


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Build Detectron2's optimizer, on a CPU with the same results in less time."""
    if cfg.MODEL.DEVICE.startswith("cuda"):
        return solver_build.build_optimizer(cfg, model)
    solver = cfg.SOLVER
    params = solver_build.get_default_optimizer_params(
        model,
        base_lr=solver.BASE_LR,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        bias_lr_factor=solver.BIAS_LR_FACTOR,
        weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
    )
    optimizer = FusedSGD(
        params,
        lr=solver.BASE_LR,
        momentum=solver.MOMENTUM,
        nesterov=solver.NESTEROV,
        weight_decay=solver.WEIGHT_DECAY,
        foreach=True,  # as Detectron2's, so that a GPU goes on with its state
    )
    return solver_build.maybe_add_gradient_clipping(cfg, optimizer)


def _in_layout_of(param: Tensor, values: Tensor) -> Tensor:
    """Return values in the memory layout of a parameter of the same shape."""
    if values.stride() == param.stride() or (values.is_contiguous() and param.is_contiguous()):
        return values
    return torch.empty_like(param).copy_(values)


def _contiguous_views(*tensors: Tensor) -> Sequence[Tensor]:
    """Return views of tensors of one layout, with the dimensions in the order of their memory."""
    if tensors[0].is_contiguous():
        return tensors
    order = sorted(range(tensors[0].dim()), key=tensors[0].stride, reverse=True)
    return [x.permute(order) for x in tensors]
