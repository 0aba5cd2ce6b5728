"""A network's results for the images of a dataset, with readers beside it."""

from collections.abc import Iterator, Sequence

from detectron2.config import CfgNode
from torch import nn
from tqdm import tqdm

from ..data.loader import build_eval_loader
from ..data.mapper import EvalMapper
from ..data.records import Record
from ..utils.errors import InputError


def network_results(
    model: nn.Module, cfg: CfgNode, records: Sequence[Record], title: str
) -> Iterator[dict | InputError]:
    """Yield the network's result for each image, or the error of an image that cannot be read.

    Args:
        model: the network, in evaluation mode.
        cfg: config with the readers' number and time limit (DATALOADER).
        records: records of the images.
        title: name of the progress bar.
    """
    if not records:
        return
    loader = build_eval_loader(cfg, records, map_record=_read)
    for (inputs,) in tqdm(loader, title, disable=None):
        if "error" in inputs:
            yield InputError(inputs["error"])
        else:
            yield model([inputs])[0]


def _read(record: Record) -> dict:
    """Return the network's input for an image, or the "error" of one that cannot be read."""
    try:
        return EvalMapper()(record)
    except InputError as error:  # which PyTorch would rewrite
        return {"error": str(error)}
