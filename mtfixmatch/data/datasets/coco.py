"""COCO 2017 in Detectron2's layout, read as the user's own data are."""

import os
from collections.abc import Mapping, Sequence

from detectron2.config import CfgNode
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES

from ...tasks.base import Task
from ...tasks.config import add_own_data
from .own_data import TRAIN, VAL, OwnData

# Below the folder of COCO, by key of the user's own data.
FILES = {
    "IMAGES": "{}2017",
    "BOXES": "annotations/instances_{}2017.json",
    "MAPS": "annotations/panoptic_{}2017.json",  # beside it a folder of the same name with PNGs
}


def coco_data(root: str, kinds: Mapping[str, type[Task]]) -> OwnData:
    """Return COCO 2017 below a folder, for tasks of these kinds, by name.

    Boxes have the 80 classes of things, maps those 80 and the 53 of stuff. The maps are those of
    the panoptic annotations; without them, no image is labeled for segmentation.
    """
    node = CfgNode({TRAIN: CfgNode(), VAL: CfgNode()}, new_allowed=True)
    for name, kind in kinds.items():
        add_own_data(node, kind, name)
    for split in (TRAIN, VAL):
        places = {key: os.path.join(root, x.format(split.lower())) for key, x in FILES.items()}
        if not os.path.exists(places["MAPS"]):
            places["MAPS"] = ""
        node[split].update(places)
    return OwnData(node, kinds, coco_classes(), place="coco_2017")


def coco_classes() -> dict[str, Sequence[str]]:
    """Return task name -> names of its classes, in the order of COCO's ids."""
    things = [x["name"] for x in COCO_CATEGORIES if x["isthing"]]
    return {"detection": things, "segmentation": [x["name"] for x in COCO_CATEGORIES]}
