"""A kind of task without classes, whole but for its registration in TASK_REGISTRY."""

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.evaluation import DatasetEvaluator
from torch import nn

from mtfixmatch.augmentation import geometry
from mtfixmatch.tasks import Task, TaskHead
from mtfixmatch.tasks.base import Assigned, Statistics
from mtfixmatch.utils.images import read_label_map


class Brightness(Task):
    """Predicts the mean of the label map in each cell of a grid: a kind without classes."""

    default_name, label_field, result_field = "brightness", "sem_seg_file_name", "grid"
    metric, unit, loss_parts = "closeness", "cells", ("l2",)

    @configurable
    def __init__(self, *, threshold, **kwargs):
        super().__init__(**kwargs)
        self.threshold = threshold

    @classmethod
    def from_config(cls, cfg, name):
        threshold = cfg.TASKS[name.upper()].THRESHOLD
        return {**super().from_config(cfg, name), "threshold": threshold}

    @property
    def label_key(self):
        return self.label_field

    @classmethod
    def head_node(cls, cfg, name):
        return "SEM_SEG_HEAD"

    def build_head(self, cfg, shapes):
        return BrightnessHead(shapes["res2"].channels)

    def load_target(self, record):
        return torch.from_numpy(read_label_map(record[self.label_key]) / 255.0).float()

    def warp_target(self, target, matrix, size, erased=None):
        fill = torch.tensor(float("nan"))
        moved = geometry.warp(
            target[None, None], matrix[None], size, mode="nearest", fill=torch.tensor(-1.0)
        )
        return torch.where(moved[0, 0] < 0, fill, moved[0, 0])

    def pseudo_labels(self, predictions, threshold, valid):
        return list(predictions)

    def evaluator(self, records):
        return Closeness(records, self)

    def statistics(self, records, scan):
        return Statistics({}, {"maps": len(records)})

    def result_target(self, result, threshold):
        return result[self.result_key].cpu()

    def exported_result(self, exports, image_size):
        return exports["grid"]

    def draw(self, image, target):
        return image

    def diagnose(self, pseudo, labels):
        return {"mean": float(torch.stack(list(pseudo)).nanmean())}


class BrightnessHead(TaskHead):
    in_features = ("res2",)

    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, 1, 1)

    def forward(self, features):
        return (self.conv(features["res2"])[:, 0],)

    def assign(self, targets, is_pseudo, size):
        return [Assigned((x,), x.isfinite().sum()) for x in targets]

    def losses(self, outputs, assigned, size, weights):
        target = torch.stack([x.tensors[0] for x in assigned])
        error = (self.predict(outputs, size, 0.0) - target).nan_to_num().square()
        return {"l2": (error.sum(dim=(1, 2)) * weights).sum()}

    def predict(self, outputs, size, least_score):
        return F.interpolate(outputs[0][:, None], size)[:, 0]

    def inference(self, outputs, size, image_size, output_sizes):
        return [
            F.interpolate(x[None, None], s)[0, 0]
            for x, s in zip(outputs[0], output_sizes, strict=True)
        ]

    def export(self, outputs, size, image_size):
        return {"grid": F.interpolate(outputs[0][:, None], image_size)[:, 0]}

    def agreement(self, outputs, assigned):
        return 1.0


class Closeness(DatasetEvaluator):
    """1 less the mean error, cut off at 0."""

    def __init__(self, records, task):
        self.records, self.task, self.errors = {r["image_id"]: r for r in records}, task, []

    def reset(self):
        self.errors = []

    def process(self, inputs, outputs):
        for image, output in zip(inputs, outputs, strict=True):
            target = self.task.load_target(self.records[image["image_id"]])
            error = (output[self.task.result_key].cpu() - target).abs().mean()
            self.errors.append(min(float(error), 1.0))

    def evaluate(self):
        return {"closeness": 1 - float(np.mean(self.errors))}
