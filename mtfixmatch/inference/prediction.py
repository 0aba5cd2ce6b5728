"""The results of a network for one image."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from detectron2.structures import Instances
from torch import Tensor

from ..engine.visualize import draw_targets
from ..tasks import Task
from ..tasks.base import Target
from ..utils.errors import InputError


@dataclass
class Prediction:
    """The results of all tasks for one image.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        results: Detectron2's results of the network, such as "instances" and "sem_seg", on its
            device.
        tasks: the tasks, which say what the results are.
        file_name: path of the image; "": it was no file.
        threshold: least score of the boxes that are drawn, in [0, 1].
    """

    image: np.ndarray
    results: dict[str, Any]
    tasks: Sequence[Task]
    file_name: str
    threshold: float

    @property
    def instances(self) -> Instances:
        """Boxes, scores and classes on the CPU: the output of the task whose key is "instances"."""
        if "instances" not in self.results:
            raise InputError(f"the network has no instances, only {', '.join(self.results)}")
        return self.results["instances"].to("cpu")

    @property
    def maps(self) -> dict[str, Tensor]:
        """Task name -> (H, W) on the CPU, of each task with a value for every pixel: its class."""
        tasks = [task for task in self.tasks if task.fills_pixels]
        return {task.name: task.result_target(self.results, self.threshold) for task in tasks}

    def draw(self, threshold: float | None = None) -> np.ndarray:
        """Return the image with the results of all tasks, (H, W, 3) uint8 RGB.

        Args:
            threshold: least score of a box, in [0, 1]; None: that of the predictor.
        """
        least = self.threshold if threshold is None else threshold
        return draw_targets(self.image, self.tasks, self.targets(least))

    def targets(self, threshold: float) -> dict[str, Target]:
        """Return task name -> what its results mean; see `Task.result_target`."""
        return {task.name: task.result_target(self.results, threshold) for task in self.tasks}
