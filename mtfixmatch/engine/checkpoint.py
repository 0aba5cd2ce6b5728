"""Checkpoints: full ones to resume from, and plain ones of the teacher.

A full checkpoint holds the teacher as "model" and the student as "student", so that Detectron2's
DetectionCheckpointer loads the teacher from either kind.
"""

import logging
import os
from typing import Any
from urllib.parse import urlparse

import torchvision
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from iopath.common.file_io import PathHandler
from torch import Tensor, nn

from ..runtime.checkpoint_files import LAST, damage_of, full_checkpoints, write_checkpoint
from ..runtime.safe_load import read_pickle, read_tensors
from ..utils.errors import InputError, first_line
from ..utils.files import write_atomically

logger = logging.getLogger(__name__)


class TorchvisionHandler(PathHandler):
    """Finds weights by torchvision's name, such as torchvision://ResNet50_Weights.IMAGENET1K_V2."""

    PREFIX = "torchvision://"

    def _get_supported_prefixes(self) -> list[str]:
        return [self.PREFIX]

    def _get_local_path(self, path: str, **kwargs: Any) -> str:
        try:
            url = torchvision.models.get_weight(path.removeprefix(self.PREFIX)).url
        except (ValueError, KeyError):
            expected = "weights of torchvision, such as ResNet50_Weights.IMAGENET1K_V2"
            raise InputError(f"MODEL.WEIGHTS {path} does not name {expected}") from None
        return PathManager.get_local_path(url, **kwargs)


PathManager.register_handler(TorchvisionHandler(), allow_override=True)


class MultiTaskCheckpointer(DetectionCheckpointer):
    """A checkpointer that verifies files, and also reads those of torchvision."""

    def __init__(
        self, model: nn.Module, save_dir: str = "", *, trust: bool = False, **checkpointables: Any
    ):
        """See base class.

        Args:
            model: network whose weights are read and written.
            save_dir: folder of full checkpoints.
            trust: load files that can run code (MODEL.TRUST_PICKLE).
            checkpointables: other objects with `state_dict` and `load_state_dict`.
        """
        super().__init__(model, save_dir, **checkpointables)
        self.trust = trust

    def load(self, path: str, *args, **kwargs) -> dict:
        """Load a file, see base class.

        Raises:
            InputError: the file does not exist, is damaged, cannot be read, might run code, or has
                weights of other shapes than the network.
        """
        if path:
            damage = damage_of(_local(path))
            if damage:
                raise InputError(f"the checkpoint {path} is damaged: {damage}")
        return self._load(path, *args, **kwargs)

    def _load(self, path: str, *args, **kwargs) -> dict:
        try:
            return super().load(path, *args, **kwargs)
        except RuntimeError as error:
            raise _unreadable(path, error) from None

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict:
        """Resume from the newest complete checkpoint; without any, load the weights of a file.

        Raises:
            InputError: all checkpoints are damaged, or an error of `load`.
        """
        if not (resume and self.has_checkpoint()):
            return self.load(path, checkpointables=[])
        name, damage = comm.all_gather(self._newest() if comm.is_main_process() else ("", ""))[0]
        if not name:
            raise InputError(
                f"no checkpoint to resume from: {damage}. Without --resume the run starts anew"
            )
        if damage and comm.is_main_process():
            logger.warning("Resuming from %s, because %s", name, damage)
        return self._load(os.path.join(self.save_dir, name))

    def _newest(self) -> tuple[str, str]:
        """Return the newest complete checkpoint, "" if none, and what is wrong with newer ones."""
        last = os.path.basename(self.get_checkpoint_file())
        older = [name for name in full_checkpoints(self.save_dir) if name != last]
        damaged: list[str] = []
        for name in [last, *older]:
            path = os.path.join(self.save_dir, name)
            damage = damage_of(path)
            if not damage:
                return name, "; ".join(damaged)
            damaged.append(f"{path} is damaged: {damage}")
        return "", "; ".join(damaged)

    def save(self, name: str, **kwargs) -> None:
        """Write a full checkpoint, then point `last_checkpoint` to it.

        Raises:
            InputError: the file cannot be written.
        """
        if self.save_to_disk:
            states = {key: part.state_dict() for key, part in self.checkpointables.items()}
            path = os.path.join(self.save_dir, f"{name}.pth")
            write_checkpoint({"model": self.model.state_dict(), **states, **kwargs}, path)
            self.tag_last_checkpoint(f"{name}.pth")

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Write the name of the checkpoint that a run resumes from."""
        write_atomically(os.path.join(self.save_dir, LAST), last_filename_basename)

    def _load_file(self, filename: str) -> dict:
        try:
            checkpoint = self._read(filename)
            names = checkpoint["model"].keys()
        except InputError:
            raise
        except Exception as error:  # unpickling unknown bytes can raise anything
            raise _unreadable(filename, error) from None
        if "layer1.0.conv1.weight" in names:
            checkpoint["model"] = from_torchvision(checkpoint["model"])
        return checkpoint

    def _read(self, filename: str) -> dict:
        if filename.endswith(".pkl"):
            return _from_zoo(read_pickle(filename, trust=self.trust))
        if filename.endswith(".pyth") and not self.trust:  # Detectron2 unpickles such files
            raise InputError(f"{filename} may run code: if you trust it, MODEL.TRUST_PICKLE True")
        return super()._load_file(filename)

    def _torch_load(self, f: str) -> dict:
        return read_tensors(f, trust=self.trust)

    def _load_model(self, checkpoint: dict):
        incompatible = super()._load_model(checkpoint)
        if incompatible.incorrect_shapes:
            key, shape, expected = incompatible.incorrect_shapes[0]
            raise InputError(
                f"the checkpoint's {key} is {tuple(shape)}, the network's {tuple(expected)}: it "
                "is for other classes or another architecture"
            )
        return incompatible


def _unreadable(path: str, error: Exception) -> InputError:
    return InputError(f"the checkpoint {path} cannot be read: {first_line(error)}")


def _local(path: str) -> str:
    """Return the local path of a file, downloaded if it is an address (detectron2://, https://)."""
    try:
        local = PathManager.get_local_path(urlparse(path)._replace(query="").geturl())
    except OSError as error:
        raise InputError(
            f"the checkpoint {path} cannot be fetched: {error} (MODEL.WEIGHTS)"
        ) from None
    if not os.path.isfile(local):
        raise InputError(f"the checkpoint {path} does not exist (MODEL.WEIGHTS)")
    return local


def _from_zoo(content: dict) -> dict:
    """Convert a file of the model zoo, in Detectron2's or Caffe2's format, to a checkpoint."""
    if "model" in content and "__author__" in content:
        return content
    weights = content.get("blobs", content)
    model = {name: value for name, value in weights.items() if not name.endswith("_momentum")}
    return {"model": model, "__author__": "Caffe2", "matching_heuristics": True}


def export_model(model: nn.Module, path: str, **info: Any) -> None:
    """Write a plain Detectron2 checkpoint of weights and `info`, without training state."""
    write_checkpoint({"model": model.state_dict(), **info}, path)


def from_torchvision(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of a torchvision ResNet for MultiTaskNet, without the classifier."""
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
