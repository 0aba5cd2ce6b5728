"""Two processes on the CPU (gloo) do what one does with the whole batch."""

from pathlib import Path

import pytest
import torch
from detectron2.engine import launch
from detectron2.utils import comm
from engine_helpers import (
    NO_MIXING,
    build_trainer,
    gradients,
    losses_of,
    make_batch,
    relative_difference,
    run_config,
    run_step,
)

# Kinds of the images in their order; ranks take every second one.
CASES: dict[str, tuple[str, tuple]] = {
    "mixed": ("bdsn", ()),
    "no segmentation label on rank 0": ("dsds", ()),
    "supervised, rank 1 idle": ("bndn", ("FIXMATCH.METHOD", "supervised")),
    "accumulation, uneven ranks": ("dbbb", ("SOLVER.ACCUMULATION_STEPS", 3)),
}


def one_step(root: Path, output: Path, case: str) -> dict:
    """The gradients, losses and normalisers of a step on this rank's images of a case."""
    kinds, opts = CASES[case]
    trainer = build_trainer(run_config(root, output, *NO_MIXING, *opts))
    whole_pixels(trainer.teacher.heads["detection"])
    whole = make_batch(trainer, kinds)
    batch = whole[comm.get_rank() :: comm.get_world_size()]
    losses = losses_of(run_step(trainer, batch))
    return {
        "losses": losses,
        "gradients": gradients(trainer),
        "normalizers": trainer._trainer.student.heads["detection"].normalizers.clone(),
        "teacher": trainer.teacher.state_dict(),
    }


def whole_pixels(head) -> None:
    """Round pseudo-boxes: anchors at equal IoU with a box are all its best, or by rounding one."""
    exact = head.pseudo_labels

    def rounded(raw, size, valid):
        targets = exact(raw, size, valid)
        for target in targets:
            target.gt_boxes.tensor.round_()
        return targets

    head.pseudo_labels = rounded


def work(root: Path, output: Path) -> None:
    """What each process does."""
    torch.set_num_threads(1)
    found = {case: one_step(root, output, case) for case in CASES}
    torch.save(found, output / f"rank{comm.get_rank()}.pth")


@pytest.fixture(scope="module")
def steps(street_root, tmp_path_factory):
    """The steps of two processes and of this one, by case."""
    output = tmp_path_factory.mktemp("ranks")
    launch(work, 2, dist_url="auto", args=(street_root, output))
    ranks = [torch.load(output / f"rank{rank}.pth") for rank in (0, 1)]
    return {
        case: [*(r[case] for r in ranks), one_step(street_root, output, case)] for case in CASES
    }


@pytest.mark.parametrize("case", CASES)
def test_two_processes_step_as_one(steps, case):
    *ranks, single = steps[case]
    for rank in ranks:
        assert rank["losses"] == pytest.approx(single["losses"], rel=1e-4, abs=1e-7)
        torch.testing.assert_close(rank["normalizers"], single["normalizers"])
        found, expected = rank["gradients"], single["gradients"]
        assert found.keys() == expected.keys()
        assert relative_difference(found.values(), expected.values()) < 1e-4
        close = zip(rank["teacher"].values(), single["teacher"].values(), strict=True)
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in close)


def test_the_cases_are_what_they_say(steps):
    without = steps["no segmentation label on rank 0"][0]["losses"]
    assert without["loss_segmentation_ce"] > 0  # logged over both ranks
    assert all(not key.endswith("unsup") for key in steps["supervised, rank 1 idle"][0]["losses"])
