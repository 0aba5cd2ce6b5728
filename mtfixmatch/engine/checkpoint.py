"""Checkpoints: everything a resumed run needs, and plain ones of the teacher."""

import os
from urllib.parse import urlparse

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils.file_io import PathManager
from torch import Tensor, nn

from ..errors import InputError


class MultiTaskCheckpointer(DetectionCheckpointer):
    """Reads Detectron2's and torchvision's files; a file of another shape is an error."""

    def load(self, path: str, *args, **kwargs) -> dict:
        """Load a file; see the base class.

        Raises:
            InputError: if it does not exist, cannot be read, or has other classes or layers.
        """
        if path:
            _check_exists(path)
        try:
            return super().load(path, *args, **kwargs)
        except RuntimeError as error:
            raise _unreadable(path, error) from None

    def save(self, name: str, **kwargs) -> None:
        """Write a full checkpoint and point `last_checkpoint` to it, once it is whole."""
        if self.save_to_disk:
            parts = {key: part.state_dict() for key, part in self.checkpointables.items()}
            file_name = f"{name}.pth"
            write_checkpoint(
                {"model": self.model.state_dict(), **parts, **kwargs},
                os.path.join(self.save_dir, file_name),
            )
            self.tag_last_checkpoint(file_name)

    def _load_file(self, filename: str) -> dict:
        try:
            loaded = super()._load_file(filename)
            names = loaded["model"].keys()
        except Exception as error:  # there is no end to what unpickling foreign bytes raises
            raise _unreadable(filename, error) from None
        if "layer1.0.conv1.weight" in names:
            loaded["model"] = from_torchvision(loaded["model"])
        return loaded

    def _load_model(self, checkpoint: dict):
        incompatible = super()._load_model(checkpoint)
        if incompatible.incorrect_shapes:
            key, found, expected = incompatible.incorrect_shapes[0]
            raise InputError(
                f"the checkpoint's {key} is {tuple(found)}, the network's {tuple(expected)}: it "
                "was made for other classes or another architecture"
            )
        return incompatible


def _unreadable(path: str, error: Exception) -> InputError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return InputError(f"the checkpoint {path} cannot be read: {reason}")


def _check_exists(path: str) -> None:
    """Fetch what is not on this machine (detectron2://, https://); other paths are files."""
    try:
        local = PathManager.get_local_path(urlparse(path)._replace(query="").geturl())
    except OSError as error:
        reason = f"cannot be fetched: {error}"
        raise InputError(f"the checkpoint {path} {reason} (MODEL.WEIGHTS)") from None
    if not os.path.isfile(local):
        raise InputError(f"the checkpoint {path} does not exist (MODEL.WEIGHTS)")


def write_checkpoint(data: dict, path: str) -> None:
    """Write a file that is either whole or not there."""
    torch.save(data, path + ".tmp")
    os.replace(path + ".tmp", path)


def export_model(model: nn.Module, path: str, **facts: float | int) -> None:
    """A plain Detectron2 checkpoint: the weights and a few facts, no training state."""
    write_checkpoint({"model": model.state_dict(), **facts}, path)


def from_torchvision(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names of a torchvision ResNet's weights as MultiTaskNet has them; its classifier is left."""
    renamed = {}
    for name, value in state.items():
        if name.startswith("fc."):
            continue
        if not name.startswith("layer"):
            name = f"stem.{name}"
        for stage in (1, 2, 3, 4):
            name = name.replace(f"layer{stage}", f"res{stage + 1}")
        for conv in (1, 2, 3):
            name = name.replace(f"bn{conv}", f"conv{conv}.norm")
        name = name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
        renamed[f"backbone.bottom_up.{name}"] = value
    return renamed
