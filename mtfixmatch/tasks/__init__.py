"""One file per kind of task; importing it here registers it."""

from . import detection, segmentation  # noqa: F401
from .base import TASK_REGISTRY, Task, TaskHead, build_tasks

__all__ = ["TASK_REGISTRY", "Task", "TaskHead", "build_tasks"]
