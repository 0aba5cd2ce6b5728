"""The evaluators in several processes."""

import torch
from detectron2.engine import launch

from tests.support.evaluators import (
    figures_of_a_rank,
    our_figures,
    random_answers,
    random_records,
)


def test_two_processes_have_the_figures_of_one(tmp_path):
    """Bit by bit, with 7 images and partial labels; the second process has no result."""
    records = random_records(tmp_path, 7)
    answers = random_answers(records)
    del records[0]["annotations"], records[3]["sem_seg_file_name"]
    launch(figures_of_a_rank, 2, dist_url="auto", args=(records, answers, tmp_path))
    found = torch.load(tmp_path / "0.pth", weights_only=False)
    assert torch.load(tmp_path / "1.pth", weights_only=False) == (None, None)
    expected = our_figures(records, answers)
    assert expected[0]["detectron2"]["AP"] > 1 and expected[1]["detectron2"]["mIoU"] > 1
    assert repr(found) == repr(expected)  # repr tells floats apart, and nan equals nan
