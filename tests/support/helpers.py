"""What several test files share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from detectron2.config import CfgNode

from mtfixmatch.engine import load_config
from mtfixmatch.utils.errors import InputError

REPOSITORY = Path(__file__).resolve().parents[2]
CONFIGS = REPOSITORY / "configs"

SMALL: dict[str, Any] = {
    "INPUT.TRAIN_SIZE": (64, 64),
    "INPUT.SCALE_RANGE": (0.5, 2.0),
    # GroupNorm of a single image at 1 x 1 needs more than one channel in each of its 32 groups.
    "MODEL.FPN.OUT_CHANNELS": 64,
    "MODEL.RETINANET.NUM_CONVS": 1,
    "MODEL.SEM_SEG_HEAD.ASPP_CHANNELS": 32,
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": 32,
    "MODEL.SEM_SEG_HEAD.PROJECT_CHANNELS": [16],
    # Where that config leaves the paper.
    "TASKS.DETECTION.LABELS": -1,
    "TASKS.DETECTION.THRESHOLD": 0.5,
    "TASKS.SEGMENTATION.LABELS": -1,
    "TASKS.SEGMENTATION.THRESHOLD": 0.0,
    "FIXMATCH.RAMP_UP": 0.05,
    "DATALOADER.LABELED": "any",
    "DATALOADER.NUM_WORKERS": 0,
    "DATALOADER.LABELED_PER_BATCH": 2,
    "SOLVER.IMS_PER_BATCH": 4,
    "TEST.EVAL_PERIOD": 0,
}


def tiny_config(root: str | Path, *opts: Any, **flags: bool) -> CfgNode:
    """The small ResNet on the data below `root`, small enough for a test.

    Args:
        root: the fixture `street_root`.
        opts: `KEY, VALUE` pairs that come last.
        flags: `resume` and `eval_only` of `load_config`.
    """
    places = {"DATASETS.ROOT": str(root), "DATASETS.CACHE_DIR": str(Path(root) / "cache")}
    given = [x for pair in (SMALL | places).items() for x in pair]
    config = str(CONFIGS / "street" / "resnet18.yaml")
    return load_config(config, [*given, *opts], **flags)


def message_of(read: Callable[[str], Any], path: str) -> str:
    """Return the message of the InputError of a reader: one line that begins with the file."""
    with pytest.raises(InputError) as error:
        read(path)
    message = str(error.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    return message
