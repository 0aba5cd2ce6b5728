"""A dataset whose images are labeled for some of the classes, and whose maps are not finished."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from mtfixmatch.data.datasets import get_records
from mtfixmatch.utils.labels import IGNORE_LABEL
from tests.support.helpers import tiny_config

NAME = "partial_train"
PEOPLE = [0, 1]  # of street's classes of boxes: person and rider
OTHERS = [2, 3, 4, 5, 6, 7]  # cars first


def partial_record(record: dict, labeled: list[int] | None) -> dict:
    """A record that is labeled for some classes of boxes alone; None: for all."""
    if labeled is None or "annotations" not in record:
        return record
    boxes = [a for a in record["annotations"] if a["category_id"] in labeled]
    return record | {"annotations": boxes, "labeled_classes": labeled}


def half_map(record: dict) -> dict:
    """A record whose map has the first half of its classes alone, and is to be finished."""
    lut = bytes(IGNORE_LABEL if x >= 10 else x for x in record["sem_seg_lut"])
    return record | {"sem_seg_lut": lut, "sem_seg_partial": True}


@contextmanager
def partial_dataset(root: Path) -> Iterator[tuple[Any, ...]]:
    """Config options of street's training images, with boxes of all, some or the other classes."""
    tiny_config(root)
    subsets = (None, PEOPLE, OTHERS)
    records = [
        half_map(partial_record(record, subsets[i % 3]))
        for i, record in enumerate(get_records(["street_train"]))
    ]
    DatasetCatalog.register(NAME, lambda: records)
    MetadataCatalog.get(NAME).set(**without_name(MetadataCatalog.get("street_train").as_dict()))
    try:
        yield ("DATASETS.TRAIN", (NAME,))
    finally:
        DatasetCatalog.remove(NAME)
        MetadataCatalog.remove(NAME)


def without_name(metadata: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in metadata.items() if key != "name"}
