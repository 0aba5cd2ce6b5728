"""Tasks: one file for each kind of task, whose import registers it."""

from . import detection, segmentation  # noqa: F401
from .base import TASK_REGISTRY, Task, TaskHead
from .config import build_tasks

__all__ = ["TASK_REGISTRY", "Task", "TaskHead", "build_tasks"]
