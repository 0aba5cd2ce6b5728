"""The network; importing this registers it with Detectron2."""

from . import backbone, multitask, timm_backbone, vit_backbone  # noqa: F401
from .multitask import MultiTaskNet

__all__ = ["MultiTaskNet"]
