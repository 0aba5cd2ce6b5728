"""The bench of a step against one with the structure of Unbiased-Teacher."""

from mtfixmatch.engine.step import MultiTaskStep
from tests.support.faulty_steps import NARROW
from tests.support.helpers import SMALL
from tools import bench_structure


def test_the_other_structure_has_three_passes(street_root, tmp_path, monkeypatch):
    """Of 2 labeled images, the same in strong views, and 2 others; ours has one pass of 4."""
    passes = []
    original = MultiTaskStep.forward_backward

    def count(step, samples, images):
        passes.append((type(step).__name__, len(samples)))
        return original(step, samples, images)

    monkeypatch.setattr(MultiTaskStep, "forward_backward", count)
    monkeypatch.setattr(bench_structure, "BLOCK", 1)
    monkeypatch.setattr(bench_structure, "BLOCKS", 1)
    keys = {
        **SMALL,
        "DATASETS.ROOT": street_root,
        "DATASETS.CACHE_DIR": tmp_path,
        "DATASETS.TRAIN": ("street_train",),
        "TASKS.DETECTION.LABELS": 8,
        "TASKS.SEGMENTATION.LABELS": 8,
        **dict(zip(NARROW[::2], NARROW[1::2], strict=True)),
    }
    opts = [str(x) for pair in keys.items() for x in pair]
    found = bench_structure.bench_structure("configs/Base-Small.yaml", opts)
    assert passes == 2 * [("MultiTaskStep", 4), *3 * [("UnbiasedTeacherStep", 2)]]
    assert all(ratio > 0 for ratio in found.values())
