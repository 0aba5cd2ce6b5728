"""Checkpoints: full ones to resume from, and plain ones of the teacher.

A full checkpoint holds the teacher as "model" and the student as "student", so that Detectron2's
DetectionCheckpointer loads the teacher from either kind.
"""

import logging
import os
from typing import Any

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils import comm
from torch import Tensor, nn

from ..modeling import MultiTaskNet
from ..runtime.checkpoint_files import LAST, damage_of, full_checkpoints, write_checkpoint
from ..runtime.safe_load import read_pickle, read_tensors
from ..utils.errors import InputError, first_line
from ..utils.files import write_atomically
from .fit_weights import compare_heads, fit_classes
from .weights import find_weights, local_path

logger = logging.getLogger(__name__)


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
        # Of the file that is loaded: its name, and whether it may have other classes or heads.
        self._path, self._adapt = "", False

    def load(self, path: str, *args, adapt: bool = False, **kwargs) -> dict:
        """Load a file, see base class.

        Args:
            path: what MODEL.WEIGHTS may name, see `find_weights`.
            args: arguments of the base class.
            adapt: accept a file with other classes, or without some heads, for a new training. What
                it lacks keeps the values of the network, and a warning names it.
            kwargs: arguments of the base class.

        Raises:
            InputError: the file does not exist, is damaged, cannot be read, might run code, has
                weights of other shapes than the network; or, unless `adapt`, other classes or no
                weights for a head.
        """
        if path:
            path = find_weights(path)
            damage = damage_of(local_path(path))
            if damage:
                raise InputError(f"the checkpoint {path} is damaged: {damage}")
        return self._load(path, *args, adapt=adapt, **kwargs)

    def _load(self, path: str, *args, adapt: bool = False, **kwargs) -> dict:
        self._path, self._adapt = path, adapt
        try:
            return super().load(path, *args, **kwargs)
        except RuntimeError as error:
            raise _unreadable(path, error) from None

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict:
        """Resume from the newest complete checkpoint; without any, start from a file's weights.

        That file may have other classes, or lack some heads, see `load`.

        Raises:
            InputError: all checkpoints are damaged, or an error of `load`.
        """
        if not (resume and self.has_checkpoint()):
            return self.load(path, adapt=True, checkpointables=[])
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
        try:
            return self._fit_model(checkpoint)
        except InputError as error:
            raise InputError(f"the checkpoint {self._path}: {error}") from None

    def _fit_model(self, checkpoint: dict):
        net, sentences = self.model, []
        if isinstance(net, MultiTaskNet):
            weights, classes = checkpoint["model"], checkpoint.get("classes")
            self._convert_ndarray_to_tensor(weights)
            sentences += fit_classes(net, weights, classes, adapt=self._adapt)
        incompatible = super()._load_model(checkpoint)
        if incompatible.incorrect_shapes:
            key, shape, expected = incompatible.incorrect_shapes[0]
            raise InputError(
                f"its {key} is {tuple(shape)}, the network's {tuple(expected)}: it is for other "
                "classes or another architecture"
            )
        if isinstance(net, MultiTaskNet):
            sentences += compare_heads(net, incompatible, adapt=self._adapt)
        if sentences and comm.is_main_process():
            logger.warning("The checkpoint %s: %s", self._path, "; ".join(sentences))
        return incompatible


def _unreadable(path: str, error: Exception) -> InputError:
    return InputError(f"the checkpoint {path} cannot be read: {first_line(error)}")


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
