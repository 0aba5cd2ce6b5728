"""Checkpoints: full ones to resume from, and plain ones of the teacher.

A full checkpoint holds the teacher as "model" and the student as "student", so that Detectron2's
DetectionCheckpointer loads the teacher from either kind.
"""

import logging
import os
from typing import Any
from urllib.parse import urlparse

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from torch import Tensor, nn

from ..runtime.checkpoint_files import LAST, damage_of, full_checkpoints, write_checkpoint
from ..runtime.safe_load import read_pickle, read_tensors
from ..utils.errors import InputError, first_line
from ..utils.files import write_atomically

logger = logging.getLogger(__name__)


class MultiTaskCheckpointer(DetectionCheckpointer):
    """A checkpointer that also reads torchvision's files; weights of other shapes are an error."""

    def __init__(self, model: nn.Module, save_dir: str = "", *, trust: bool = False, **parts):
        """See the base class.

        Args:
            model: whose weights are read and written.
            save_dir: folder of full checkpoints.
            trust: load files that can run code (MODEL.TRUST_PICKLE).
            parts: other objects with a state.
        """
        super().__init__(model, save_dir, **parts)
        self.trust = trust

    def load(self, path: str, *args, **kwargs) -> dict:
        """Load a file; see the base class.

        Raises:
            InputError: if it does not exist, is damaged, cannot be read, might run code, or has
                other classes or layers.
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
        """Resume from the newest complete checkpoint; without one, load the weights of a file.

        Raises:
            InputError: if there are checkpoints, but none is complete; else as for `load`.
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
        """Return the newest complete checkpoint, "" for none, and the damage of newer ones."""
        last = os.path.basename(self.get_checkpoint_file())
        older = [name for name in full_checkpoints(self.save_dir) if name != last]
        bad: list[str] = []
        for name in [last, *older]:
            path = os.path.join(self.save_dir, name)
            damage = damage_of(path)
            if not damage:
                return name, "; ".join(bad)
            bad.append(f"{path} is damaged: {damage}")
        return "", "; ".join(bad)

    def save(self, name: str, **kwargs) -> None:
        """Write a full checkpoint, then point `last_checkpoint` to it.

        Raises:
            InputError: if it cannot be written.
        """
        if self.save_to_disk:
            parts = {key: part.state_dict() for key, part in self.checkpointables.items()}
            path = os.path.join(self.save_dir, f"{name}.pth")
            write_checkpoint({"model": self.model.state_dict(), **parts, **kwargs}, path)
            self.tag_last_checkpoint(f"{name}.pth")

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Name the checkpoint that a run resumes from."""
        write_atomically(os.path.join(self.save_dir, LAST), last_filename_basename)

    def _load_file(self, filename: str) -> dict:
        try:
            loaded = self._read(filename)
            names = loaded["model"].keys()
        except InputError:
            raise
        except Exception as error:  # unpickling unknown bytes can raise anything
            raise _unreadable(filename, error) from None
        if "layer1.0.conv1.weight" in names:
            loaded["model"] = from_torchvision(loaded["model"])
        return loaded

    def _read(self, filename: str) -> dict:
        if filename.endswith(".pkl"):
            return _from_zoo(read_pickle(filename, trust=self.trust))
        if filename.endswith(".pyth") and not self.trust:  # which Detectron2 may read unguarded
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
                "was made for other classes or another architecture"
            )
        return incompatible


def _unreadable(path: str, error: Exception) -> InputError:
    return InputError(f"the checkpoint {path} cannot be read: {first_line(error)}")


def _local(path: str) -> str:
    """Return a local path; addresses (detectron2://, https://) are downloaded."""
    try:
        local = PathManager.get_local_path(urlparse(path)._replace(query="").geturl())
    except OSError as error:
        reason = f"cannot be fetched: {error}"
        raise InputError(f"the checkpoint {path} {reason} (MODEL.WEIGHTS)") from None
    if not os.path.isfile(local):
        raise InputError(f"the checkpoint {path} does not exist (MODEL.WEIGHTS)")
    return local


def _from_zoo(content: dict) -> dict:
    """Bring the model zoo's two formats, Detectron2's and Caffe2's, into one."""
    if "model" in content and "__author__" in content:
        return content
    weights = content.get("blobs", content)
    momenta = [name for name in weights if name.endswith("_momentum")]
    kept = {name: value for name, value in weights.items() if name not in momenta}
    return {"model": kept, "__author__": "Caffe2", "matching_heuristics": True}


def export_model(model: nn.Module, path: str, **facts: Any) -> None:
    """Write a plain Detectron2 checkpoint: weights and a few facts, no training state."""
    write_checkpoint({"model": model.state_dict(), **facts}, path)


def from_torchvision(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename a torchvision ResNet's weights to MultiTaskNet's names, without the classifier."""
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
