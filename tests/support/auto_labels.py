"""Tasks, results and labels for the tests of automatic labels."""

import numpy as np
import torch
from detectron2.config import get_cfg
from detectron2.structures import Boxes, BoxMode, Instances

from mtfixmatch.config import add_mtfixmatch_config
from mtfixmatch.tasks import build_tasks
from mtfixmatch.tasks.auto_labels import ClassThreshold

SIZE = (20, 30)  # height, width
BOX_CLASSES, MAP_CLASSES = ["cat", "dog", "cow"], ["road", "sky"]


def make_tasks(**keys):
    """The two default tasks with a few classes, by name; `keys` are of TASKS.DETECTION."""
    cfg = get_cfg()
    add_mtfixmatch_config(cfg)
    cfg.TASKS.DETECTION.CLASSES, cfg.TASKS.SEGMENTATION.CLASSES = BOX_CLASSES, MAP_CLASSES
    cfg.TASKS.DETECTION.update(keys)
    return {task.name: task for task in build_tasks(cfg)}


def threshold(upper, lower):
    return ClassThreshold(
        upper=upper, lower=lower, precision=0.9, interval=(0.8, 1.0), share=0.5, support=10
    )


def annotation(category, *box, crowd=0):
    mode = BoxMode.XYXY_ABS
    return {"bbox": list(box), "bbox_mode": mode, "category_id": category, "iscrowd": crowd}


def record(name="a.jpg", **labels):
    size = {"height": SIZE[0], "width": SIZE[1]}
    return {"file_name": f"/data/{name}", "image_id": name, **size, **labels}


def result(*boxes):
    """Result of a network with boxes (class, score, x0, y0, x1, y1)."""
    found = Instances(SIZE)
    rows = torch.tensor([x[2:] for x in boxes], dtype=torch.float32).view(-1, 4)
    found.pred_boxes = Boxes(rows)
    found.scores = torch.tensor([x[1] for x in boxes], dtype=torch.float32)
    found.pred_classes = torch.tensor([x[0] for x in boxes], dtype=torch.long)
    return {"instances": found}


def logits(classes, confidence):
    """Logits (2, H, W) of two classes with these confidences of the class of each pixel."""
    p = np.where(np.asarray(classes) == 0, confidence, 1 - np.asarray(confidence))
    return torch.from_numpy(np.log(np.stack([p, 1 - p]).clip(1e-12)))
