"""MultiTaskNet: a shared backbone and one head per task (paper Sec. 3, 4)."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_backbone
from detectron2.structures import ImageList
from torch import Tensor, nn

from ..tasks import TaskHead, build_tasks
from ..tasks.base import Outputs
from ..tasks.dropout import set_seeds
from ..utils.devices import take_rows
from .image_inputs import check_image, wrong_input

Rows = Sequence[int] | Tensor | None  # indices of some images; None: all of them


@META_ARCH_REGISTRY.register()
class MultiTaskNet(nn.Module):
    """A shared backbone with a head for each task.

    In evaluation its inputs and results have Detectron2's standard formats. In training it returns
    the outputs of the heads, which `engine.step` turns into losses.
    """

    pixel_mean: Tensor
    pixel_std: Tensor
    # What runs instead of `run_heads` after `compile_network`.
    compiled: Callable[..., tuple[dict[str, Outputs], Tensor]] | None = None

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        heads: Mapping[str, TaskHead],
        result_keys: Mapping[str, str],
        class_names: Mapping[str, Sequence[str]],
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        channels_last: bool = False,
    ):
        """Join a backbone and heads.

        Args:
            backbone: backbone with the features that the heads read.
            heads: task name -> head.
            result_keys: task name -> key of the task's output in an image's result.
            class_names: task name -> names of its classes by id; empty for a kind without classes.
            pixel_mean: per channel, RGB, on the scale 0-255.
            pixel_std: per channel, likewise.
            channels_last: store weights and images as NHWC.
        """
        super().__init__()
        self.backbone = backbone
        self.heads = nn.ModuleDict(heads)
        self.result_keys = dict(result_keys)
        self.class_names = {task: list(names) for task, names in class_names.items()}
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.to(memory_format=self.memory_format)

    @classmethod
    def from_config(cls, cfg):
        """Build the backbone, then each task's head on its features; no dataset is needed."""
        backbone = build_backbone(cfg)
        shapes = backbone.output_shape()
        tasks = build_tasks(cfg)
        return {
            "backbone": backbone,
            "heads": {task.name: task.build_head(cfg, shapes) for task in tasks},
            "result_keys": {task.name: task.result_key for task in tasks},
            "class_names": {task.name: task.class_names for task in tasks},
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "channels_last": cfg.MODEL.CHANNELS_LAST,
        }

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return self.pixel_mean.device

    def autocast(self, precision: torch.dtype) -> torch.autocast:
        """Return the context of a forward pass in mixed precision; torch.float32 turns it off."""
        mixed = precision is not torch.float32
        return torch.autocast(self.device.type, dtype=precision, enabled=mixed)

    def head(self, task: str) -> TaskHead:
        """Return the head of the task of this name."""
        return cast(TaskHead, self.heads[task])

    def forward(
        self,
        images: Tensor | list[dict],
        masks: Mapping[str, Sequence[bool]] | None = None,
        seeds: Sequence[int] | None = None,
    ) -> tuple[dict[str, Outputs], Tensor] | list[dict]:
        """Run the network.

        Args:
            images: (N, 3, H, W) RGB in [0, 1], H and W multiples of 32; or, in evaluation,
                Detectron2's list of dicts with "image", see `check_image`.
            masks: task name -> N flags, the images that its head is run on. A head may be run on
                none if other ranks run it on some.
            seeds: dropout seed of each image, see ImageDropout.

        Returns:
            For a tensor: the outputs, float32, of the tasks in `masks` for their images; and a zero
            that depends on every parameter, so that DDP gets a gradient of each. For a list:
            Detectron2's results.

        Raises:
            InputError: an image in a list does not have this form.
        """
        if isinstance(images, list):
            return self.inference(images)
        if masks is None:
            raise wrong_input(images, "the model takes a list of dicts, not a tensor")
        rows: dict[str, Rows] = {}
        for name, mask in masks.items():
            indices = [i for i, run in enumerate(mask) if run]
            set_seeds(self.head(name), None if seeds is None else [seeds[i] for i in indices])
            rows[name] = None if len(indices) == len(mask) else indices
        # A pass without heads is rare and only keeps other ranks company.
        run_heads = self.compiled if self.compiled and rows else self.run_heads
        return run_heads(images, rows)

    def run_heads(
        self, images: Tensor, rows: Mapping[str, Rows]
    ) -> tuple[dict[str, Outputs], Tensor]:
        """Run the backbone on images, and heads on some of its rows; this can be compiled.

        Args:
            images: (N, 3, H, W), see `forward`.
            rows: task name -> the images that its head is run on.

        Returns:
            See `forward`.
        """
        features = self._features((images * 255 - self.pixel_mean) / self.pixel_std)
        zero = images.new_zeros(())
        outputs: dict[str, Outputs] = {}
        for name, head in self.heads.items():
            if name in rows:
                outputs[name] = self._run_head(name, features, rows[name])
                zero = zero + sum(output[:0].sum() for output in outputs[name])
            else:
                zero = zero + 0 * sum(p.float().sum() for p in head.parameters())
        # No loss may depend on the pyramid.
        return outputs, zero + sum(f[:0].float().sum() for f in features.values())

    def __getstate__(self) -> dict[str, Any]:
        # A copy has weights of its own, which the compiled function does not know.
        return self.__dict__ | {"compiled": None}

    def _features(self, images: Tensor) -> dict[str, Tensor]:
        return self.backbone(images.contiguous(memory_format=self.memory_format))

    def _run_head(self, task: str, features: dict[str, Tensor], rows: Rows = None) -> Outputs:
        """Run a head on the images of some rows; None: all of them."""
        head = self.head(task)
        features = {name: features[name] for name in head.in_features}
        if rows is not None:
            features = {name: take_rows(feature, rows) for name, feature in features.items()}
        # Decoding, suppression and losses need more than bfloat16's 8 bits.
        return tuple(output.float() for output in head(features))

    def export(self, images: Tensor, tasks: Sequence[str]) -> dict[str, Tensor]:
        """Compute the results for N images in tensors alone, see `TaskHead.export`.

        Args:
            images: (N, 3, H, W) RGB in 0-255 of any size, which may be symbolic.
            tasks: names of the tasks.

        Returns:
            "<task>_<name of an export>" -> tensor (N, ...).
        """
        image_size = height, width = images.shape[2], images.shape[3]
        step = max(self.backbone.size_divisibility, 1)
        rows, columns = ((side + step - 1) // step * step for side in image_size)
        pixels = (images - self.pixel_mean) / self.pixel_std
        batch = F.pad(pixels, (0, columns - width, 0, rows - height))
        features = self._features(batch)
        exports: dict[str, Tensor] = {}
        for task in tasks:
            outputs = self._run_head(task, features)
            own = self.head(task).export(outputs, (rows, columns), image_size)
            exports |= {f"{task}_{name}": tensor for name, tensor in own.items()}
        return exports

    @torch.no_grad()
    def inference(self, batched_inputs: list[dict], for_evaluators: bool = False) -> list[dict]:
        """Detectron2's inputs to its results, at the size of each original image.

        Images of one size pass together. Images of different sizes do not: the padding of one would
        change the result of another. The results may be in the form that the evaluators of the
        tasks need, see `TaskHead.inference_for_evaluator`.
        """
        images = [check_image(x) for x in batched_inputs]
        results: dict[int, dict] = {}
        for size in dict.fromkeys(image.shape for image in images):
            rows = [i for i, image in enumerate(images) if image.shape == size]
            inputs = [batched_inputs[i] for i in rows]
            group = self._infer([images[i] for i in rows], inputs, for_evaluators)
            results.update(zip(rows, group, strict=True))
        return [results[i] for i in range(len(images))]

    def _infer(
        self, images: Sequence[Tensor], inputs: Sequence[dict], for_evaluators: bool
    ) -> list[dict]:
        """Run images of one size."""
        pixels = [(x.to(self.device) - self.pixel_mean) / self.pixel_std for x in images]
        batch = ImageList.from_tensors(pixels, self.backbone.size_divisibility).tensor
        features = self._features(batch)
        size, (height, width) = tuple(batch.shape[-2:]), images[0].shape[1:]
        output_sizes = [(x.get("height", height), x.get("width", width)) for x in inputs]
        results: list[dict] = [{} for _ in inputs]
        for name, key in self.result_keys.items():
            outputs, head = self._run_head(name, features), self.head(name)
            run = head.inference_for_evaluator if for_evaluators else head.inference
            own = run(outputs, size, (height, width), output_sizes)
            for result, value in zip(results, own, strict=True):
                result[key] = value
        return results
