"""Small networks for exports, without data and training."""

from pathlib import Path
from typing import Any

import torch
from detectron2.modeling import build_model
from torch import nn

from mtfixmatch.engine.setup import resolve_config
from mtfixmatch.inference.predictor import Predictor
from mtfixmatch.tasks import build_tasks
from mtfixmatch.tasks.config import set_classes
from tests.support.helpers import CONFIGS, SMALL

CLASSES = {"detection": 3, "segmentation": 5, "drivable": 2}
# Without GroupNorm in the heads the graphs are smaller.
PLAIN: dict[str, Any] = SMALL | {
    "MODEL.WEIGHTS": "",
    "MODEL.DEVICE": "cpu",
    "MODEL.FCOS.NUM_CONVS": 1,
    "MODEL.FPN.NORM": "",
    "MODEL.RETINANET.NORM": "",
    "MODEL.FCOS.NORM": "",
}


def small_predictor(*opts: Any, config: str | Path = "") -> Predictor:
    """A network with random weights whose boxes have scores of all heights.

    Args:
        opts: `KEY, VALUE` pairs.
        config: path of a config file; "": the small ResNet's.
    """
    torch.manual_seed(0)
    given = [x for pair in PLAIN.items() for x in pair]
    cfg = resolve_config(str(config or CONFIGS / "street" / "resnet18.yaml"), [*given, *opts])
    for task in build_tasks(cfg):
        if task.metadata_field:
            set_classes(cfg, task.name, [f"class {i}" for i in range(CLASSES[task.name])])
    model = build_model(cfg)
    for module in model.modules():
        if hasattr(module, "cls_score"):
            nn.init.normal_(module.cls_score.weight, std=0.1)
    return Predictor(model=model, cfg=cfg, name="tiny", sha256="0" * 64)
