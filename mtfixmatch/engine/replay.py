"""Repeat a step with non-finite values and name the place of the first one.

The training has written the file of the step, see runtime.nonfinite; no dataset is needed. With
several processes, the images of one rank are replayed alone and losses are divided by its counts.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from ..config import add_mtfixmatch_config
from ..data.samplers import Draw
from ..methods import build_method
from ..runtime.nonfinite import NonFiniteError
from ..tasks import TASK_REGISTRY, build_tasks
from ..utils.errors import InputError, first_line
from .ema import build_teacher
from .step import MultiTaskStep
from .trainer import build_step


class FirstNonFinite:
    """Watch for non-finite values; `place` is that of the first one, "" if all are finite."""

    def __init__(self) -> None:
        self.place = ""

    def check(self, place: str, value: Any) -> None:
        """Check all tensors in a value, which may be nested."""
        if not self.place and any(not x.isfinite().all() for x in _tensors_in(value)):
            self.place = place

    def watch(self, owner: str, network: nn.Module) -> None:
        """Check inputs and outputs of all modules of a network, and all gradients."""
        for name, module in network.named_modules():
            place = f"the {owner}'s {name or 'network'}"
            module.register_forward_pre_hook(
                lambda _, args, place=place: self.check(f"forward pass, input of {place}", args)
            )
            module.register_forward_hook(partial(self._check_output, place))
        for name, parameter in network.named_parameters():
            if parameter.requires_grad:
                place = f"backward pass, gradient of the {owner}'s {name}"
                parameter.register_hook(partial(self.check, place))

    def _check_output(self, place: str, _module: nn.Module, _args: Any, output: Any) -> None:
        self.check(f"forward pass, output of {place}", output)
        gradient_place = f"backward pass, at the output of {place}"
        for tensor in _tensors_in(output):
            if tensor.requires_grad:
                tensor.register_hook(partial(self.check, gradient_place))


def _tensors_in(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        return _tensors_in(list(value.values()))
    items = value if isinstance(value, list | tuple) else []
    return [tensor for item in items for tensor in _tensors_in(item)]


def read_step(path: str) -> dict[str, Any]:
    """Read the file of a step without running code in it; raise InputError if it cannot be read."""
    try:
        types = [x for _, kind in TASK_REGISTRY for x in kind.target_types]
        with torch.serialization.safe_globals([Draw, *types]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling unknown bytes can raise anything
        raise InputError(f"{path} cannot be read: {first_line(error)}") from None


def replay(dump: Mapping[str, Any]) -> str:
    """Repeat a step from `read_step`; return the place of the first non-finite value, or ""."""
    step = _build_step(dump)
    first = FirstNonFinite()
    images = dump["images"].to(step.student.device)
    for file, image in zip(dump["files"], images, strict=True):
        first.check(f"the image {file}", image)
    for owner, network in (("teacher", step.teacher), ("student", step.student)):
        for name, value in network.state_dict().items():
            first.check(f"the {owner}'s {name}, before the step", value)
        first.watch(owner, network)
    if first.place:
        return first.place
    try:
        with EventStorage(step.iter):
            step.compute_gradients(dump["batch"], images)
    except NonFiniteError as error:
        return first.place or ", ".join(error.args)
    return first.place


def _build_step(dump: Mapping[str, Any]) -> MultiTaskStep:
    cfg = get_cfg()
    add_mtfixmatch_config(cfg)
    cfg.merge_from_other_cfg(CfgNode(yaml.safe_load(dump["config"])))
    if not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.TIMM.WEIGHTS = cfg.MODEL.VIT.WEIGHTS = ""  # the file of the step has the weights
    student = build_model(cfg)
    method = build_method(cfg).to(cfg.MODEL.DEVICE)
    step = build_step(cfg, build_tasks(cfg), method, student, build_teacher(student), [])
    step.iter = dump["step"]
    for part in ("student", "teacher", "method", "normalizers", "grad_scaler"):
        getattr(step, part).load_state_dict(dump[part])
    return step
