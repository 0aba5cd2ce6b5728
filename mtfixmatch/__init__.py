"""One network for several tasks, trained on partially labeled datasets (a Detectron2 project).

Importing it registers the network and its backbones with Detectron2.
"""

from . import modeling  # noqa: F401
from .config import add_mtfixmatch_config

__all__ = ["add_mtfixmatch_config"]
