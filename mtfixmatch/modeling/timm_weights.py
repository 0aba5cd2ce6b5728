"""Networks of timm and files of weights in timm's names."""

import difflib
import logging
import os
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..utils.errors import InputError, first_line

logger = logging.getLogger(__name__)


def import_timm():
    """Return the package timm, an optional dependency, or raise an InputError without it."""
    try:
        import timm
    except ImportError:
        hint = "pip install 'mtfixmatch[timm]'"
        raise InputError(f"MODEL.BACKBONE.NAME is a backbone that needs timm: {hint}") from None
    return timm


def pretrained_cfg(name: str, key: str):
    """Return what timm states about a network's weights: mean, standard deviation, source.

    Messages name the key of the config that gives the network's name.
    """
    timm = import_timm()
    try:
        return timm.get_pretrained_cfg(name, allow_unregistered=False)
    except RuntimeError as error:
        close = difflib.get_close_matches(name, timm.list_models())
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise InputError(f"{key} is {name!r}: {error}{hint}") from None


def read_state(path: str, key: str = "MODEL.TIMM.WEIGHTS") -> dict[str, Tensor]:
    """Read a state dict, plain or a file's "state_dict" or "model", or raise an InputError."""
    if not os.path.isfile(path):
        raise InputError(f"{key} is {path!r}, but there is no such file")
    try:
        if path.endswith(".safetensors"):
            from safetensors.torch import load_file  # timm depends on it

            state: object = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling arbitrary bytes can raise anything
        raise InputError(f"{key} {path} cannot be read: {first_line(error)}") from None
    if isinstance(state, Mapping):
        state = state.get("state_dict", state.get("model", state))
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise InputError(f"{key} {path} holds no state dict")
    return dict(state)


def load_state(net: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load weights in timm's names into a network without its classifier; log what is left over.

    The network's names may be as timm's `features_only` changes them. Messages begin with `source`.

    Raises:
        InputError: if a weight of `net`, but BatchNorm's counters, is missing or of another shape.
    """
    children = [name for name, _ in net.named_children()]
    wrapper = f"{children[0]}." if len(children) == 1 else ""
    # DistributedDataParallel adds `module.`; some feature readers hold the network as one child,
    # others turn `stages.0` into `stages_0`.
    given = {name.removeprefix("module.").replace(".", "_"): name for name in state}
    own = net.state_dict()
    theirs = {name: given.get(name.removeprefix(wrapper).replace(".", "_")) for name in own}
    matched = {name: state[key] for name, key in theirs.items() if key is not None}
    missing = [name for name in own if name not in matched]
    if needed := [name for name in missing if not name.endswith("num_batches_tracked")]:
        count = f"{len(needed)} of the network's {len(own)} weights by timm's names"
        raise InputError(f"{source} lacks {count}, such as {needed[0]}")
    for name, value in matched.items():
        if value.shape != own[name].shape:
            needs = f"{tuple(value.shape)}, the network needs {tuple(own[name].shape)}"
            raise InputError(f"{source}: its {theirs[name]} is {needs}")
    net.load_state_dict(matched, strict=False)
    unused = sorted(set(state) - set(theirs.values()))
    logger.info("%s: loaded %d weights", source, len(matched))
    left_over = [", ".join(names) or "nothing" for names in (missing, unused)]
    logger.info("Missing in it: %s; not used of it: %s", *left_over)
