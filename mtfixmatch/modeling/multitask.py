"""MultiTaskNet: a shared backbone and one head per task (paper Sec. 3, 4)."""

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_backbone
from detectron2.structures import ImageList
from torch import Tensor, nn

from ..tasks import TaskHead, build_tasks
from ..tasks.base import Raw
from ..tasks.dropout import set_seeds


@META_ARCH_REGISTRY.register()
class MultiTaskNet(nn.Module):
    """One backbone, any non-empty subset of tasks.

    In evaluation it takes and gives Detectron2's standard formats. In training the trainer, which
    knows the method, asks for raw outputs; the heads turn them into losses.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        heads: Mapping[str, TaskHead],
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        channels_last: bool = False,
    ):
        """Join the parts.

        Args:
            backbone: gives the features that the heads read.
            heads: by name of the task.
            pixel_mean: per channel, RGB, on the scale 0-255.
            pixel_std: per channel, likewise.
            channels_last: store weights and images as NHWC.
        """
        super().__init__()
        self.backbone = backbone
        self.heads = nn.ModuleDict(heads)
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.to(memory_format=self.memory_format)

    @classmethod
    def from_config(cls, cfg):
        """Build the backbone, then each task's head on its features."""
        backbone = build_backbone(cfg)
        shapes = backbone.output_shape()
        return {
            "backbone": backbone,
            "heads": {task.name: task.build_head(cfg, shapes) for task in build_tasks(cfg)},
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "channels_last": cfg.MODEL.CHANNELS_LAST,
        }

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.pixel_mean.device

    def head(self, task: str) -> TaskHead:
        """The head of a task, by name."""
        return cast(TaskHead, self.heads[task])

    def forward(
        self,
        images: Tensor | list[dict],
        rows: Mapping[str, Sequence[int]] | None = None,
        seeds: Sequence[int] | None = None,
    ) -> dict[str, Raw] | tuple[dict[str, Raw], Tensor] | list[dict]:
        """Run the network.

        Args:
            images: (N, 3, H, W) RGB in [0, 1], H and W multiples of 32; or, in evaluation,
                Detectron2's list of dicts with "image" (3, H, W) RGB in 0-255.
            rows: for each task whose head is run, the images that it is run on; there may be none,
                where other ranks have some.
            seeds: of each image's dropout, see ImageDropout.

        Returns:
            For a tensor: the raw outputs, float32, of the tasks in `rows`; and a zero that depends
            on every parameter left out, so that all of them get a gradient (which
            DistributedDataParallel asks for). For a list: Detectron2's results.
        """
        if isinstance(images, list):
            return self.inference(images)
        assert rows is not None, "rows are needed with a tensor of images"
        features = self._features(images * 255)
        zero = images.new_zeros(())
        outputs: dict[str, Raw] = {}
        for name, head in self.heads.items():
            if name in rows:
                set_seeds(head, None if seeds is None else [seeds[i] for i in rows[name]])
                outputs[name] = self._run_head(self.head(name), features, rows[name])
                zero = zero + sum(output[:0].sum() for output in outputs[name])
            else:
                zero = zero + 0 * sum(p.float().sum() for p in head.parameters())
        # The pyramid hangs on heads that may have been left out.
        return outputs, zero + sum(f[:0].float().sum() for f in features.values())

    def _features(self, images: Tensor) -> dict[str, Tensor]:
        images = (images - self.pixel_mean) / self.pixel_std
        return self.backbone(images.contiguous(memory_format=self.memory_format))

    @staticmethod
    def _run_head(head: TaskHead, features: dict[str, Tensor], rows: Sequence[int]) -> Raw:
        num_images = len(next(iter(features.values())))
        features = {name: features[name] for name in head.in_features}
        if list(rows) != list(range(num_images)):
            features = {name: feature[list(rows)] for name, feature in features.items()}
        # Decoding, suppression and losses need more than bfloat16's 8 bits.
        return tuple(output.float() for output in head(features))

    @torch.no_grad()
    def inference(self, batched_inputs: list[dict]) -> list[dict]:
        """Detectron2's inputs to its results, at the size of each original image."""
        images = ImageList.from_tensors(
            [
                (x["image"].to(self.device) - self.pixel_mean) / self.pixel_std
                for x in batched_inputs
            ],
            self.backbone.size_divisibility,
        )
        features = self.backbone(images.tensor.contiguous(memory_format=self.memory_format))
        size = (images.tensor.shape[-2], images.tensor.shape[-1])
        output_sizes = [
            (x.get("height", s[0]), x.get("width", s[1]))
            for x, s in zip(batched_inputs, images.image_sizes, strict=True)
        ]
        results: list[dict] = [{} for _ in batched_inputs]
        for head in map(self.head, self.heads):
            raw = self._run_head(head, features, range(len(results)))
            found = head.inference(raw, size, images.image_sizes, output_sizes)
            for result, part in zip(results, found, strict=True):
                result.update(part)
        return results
