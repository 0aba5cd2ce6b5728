"""One network for several tasks, trained on partially labeled datasets (a Detectron2 project).

Importing it registers the network and its backbones with Detectron2.
"""

import warnings

with warnings.catch_warnings():
    # Detectron2 calls the deprecated torch.jit.script when it is imported.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch")
    from . import modeling  # noqa: F401
    from .config import add_mtfixmatch_config

__all__ = ["add_mtfixmatch_config", "load"]


def __getattr__(name: str):
    """Import `load` when it is used, because it needs the whole package."""
    if name != "load":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .inference.predictor import load

    return load
