"""The images that predictions.png shows."""

import re

import numpy as np
import pytest
from PIL import Image

from mtfixmatch.engine.visualize import choose_records, truth_tiles
from mtfixmatch.utils.errors import InputError
from tests.support.engine_helpers import build_trainer, run_config

RECORDS = [
    {"file_name": f"/data/{folder}/{name}.png", "image_id": f"{folder}/{name}"}
    for folder, name in (("x", "a"), ("x", "b"), ("y", "b"), ("y", "c"))
]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ([], [0, 1]),
        (["c.png", "a.png", "x/b"], [3, 0, 1]),  # their order, not that of the records
        (["/data/y/b.png"], [2]),
    ],
)
def test_images_are_chosen_by_name(files, expected):
    assert choose_records(RECORDS, files, 2) == [RECORDS[i] for i in expected]


@pytest.mark.parametrize(("file", "number"), [("d.png", 0), ("a", 0), ("b.png", 2)])
def test_a_name_of_no_image_or_two_is_named(file, number):
    message = re.escape(f"KEY: {number} test images have the path, file name or image id '{file}'")
    with pytest.raises(InputError, match=message):
        choose_records(RECORDS, ["c.png", file], 2, "KEY")


def test_predictions_of_named_images(street_root, tmp_path):
    """One row with the fourth image, although TEST.PICTURES is 0."""
    opts = ("SOLVER.MAX_ITER", 1, "FIXMATCH.METHOD", "Supervised", "TEST.PICTURES", 0)
    with pytest.raises(InputError, match="TEST.PICTURE_FILES: 0 test images have .*'nowhere.png'"):
        build_trainer(run_config(street_root, tmp_path, "TEST.PICTURE_FILES", ["nowhere.png"]))
    trainer = build_trainer(run_config(street_root, tmp_path, *opts))
    record = trainer.eval_records[3]
    chosen = ("TEST.PICTURE_FILES", [record["image_id"]])
    trainer = build_trainer(run_config(street_root, tmp_path, *opts, *chosen))
    trainer.train()
    (tile,) = truth_tiles([record], trainer.tasks)
    with Image.open(tmp_path / "predictions.png") as picture:
        pixels = np.asarray(picture)
    height, width = tile.shape[:2]
    assert pixels.shape[0] < 2 * height
    assert (pixels[-height - 4 : -4, :width] == tile).all()
