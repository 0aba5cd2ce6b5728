"""Several processes on the CPU (gloo) do what one does with the whole batch."""

import subprocess
import sys

import pytest
import torch

from mtfixmatch.engine.evaluation import flat_results
from tests.support.helpers import REPOSITORY
from tests.support.ranks import CASES, STEPS, differs, make_mixes

MIXES, ON_FOUR = 8, 2  # of each norm and method


@pytest.fixture(scope="module")
def found(street_root, tmp_path_factory):
    """What each rank of 1, 2 and 4 processes has left, by kind, rank and number of ranks."""
    output = tmp_path_factory.mktemp("ranks")
    numbers = [str(MIXES), str(ON_FOUR), "0"]
    command = [sys.executable, "-W", "ignore", "-m", "tests.support.ranks"]
    command += [str(street_root), str(output), *numbers]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    return {path.stem: torch.load(path, weights_only=False) for path in output.glob("*_of_*.pth")}


@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_several_processes_step_as_one(found, case, world_size):
    count = MIXES if world_size == 2 else ON_FOUR
    expected = found["mixes_0_of_1"][case][:count]
    for rank in range(world_size):
        steps = found[f"mixes_{rank}_of_{world_size}"][case]
        assert len(steps) == count
        for step, single in zip(steps, expected, strict=True):
            assert differs(step, single) == []


def test_the_mixes_are_what_they_say(found):
    kinds = [kinds for kinds, _ in make_mixes(6, 8, 0)]  # the same for all cases
    one = dict(zip(kinds, found["mixes_0_of_1"]["SyncBN", "DenseFixMatch"], strict=False))
    no_map = one["dddndndd"]["losses"]
    assert no_map["loss_segmentation_ce"] == 0 < no_map["loss_segmentation_ce_unsup"]
    assert one["nsnsnsns"]["losses"]["loss_detection_cls_unsup"] > 0
    nothing = found["mixes_0_of_1"]["SyncBN", "Supervised"][kinds.index("nnnnnnnn")]
    assert all((gradient == 0).all() for gradient in nothing["gradients"].values())
    assert any((gradient != 0).any() for gradient in one["nnnnnnnn"]["gradients"].values())


def test_images_and_views_depend_neither_on_workers_nor_on_the_split(found):
    whole = found["views_0_of_1"]
    assert len(whole) == 3 * 3 * 3 * 8
    parts = [found[f"views_{rank}_of_2"] for rank in (0, 1)]
    assert not parts[0].keys() & parts[1].keys()
    assert parts[0] | parts[1] == whole
    for (sampler, _, step, position), views in whole.items():
        assert views == whole[sampler, 0, step, position]
    assert len({strong for _, _, strong in whole.values()}) > 3 * 3 * 8 / 2  # not all the same


@pytest.mark.parametrize("precision, count", [("float64", STEPS), ("float32", 2)])
@pytest.mark.parametrize("sampler", ["explicit", "implicit", "uniform"])
def test_two_processes_train_as_one(found, sampler, precision, count):
    """With dropout; over several steps, from pseudo-labels of a teacher that learns.

    Single precision differs by 1e-7, until some anchor has another match for its rounding.
    """
    expected = found["losses_0_of_1"][sampler, precision]
    assert len(expected) == STEPS
    for rank in (0, 1):
        steps = found[f"losses_{rank}_of_2"][sampler, precision]
        for step, single in list(zip(steps, expected, strict=True))[:count]:
            assert step == pytest.approx(single, rel=1e-5, abs=1e-8)


def test_ranks_have_the_same_networks_though_each_normalises_by_its_own_images(found):
    own, other, alone = (found[f"networks_{name}"] for name in ("0_of_2", "1_of_2", "0_of_1"))
    assert own == other
    assert len(set(own) - set(alone)) == 2 * STEPS  # the norm does see its rank's images only


@pytest.mark.parametrize("images, world_size", [(1, 2), (2, 4)])
def test_there_may_be_more_processes_than_images_to_evaluate(found, images, world_size):
    expected = found["figures_0_of_1"][images]
    assert expected["teacher"]["segmentation"]["mIoU"] >= 0
    assert expected["teacher"]["segmentation"]["losses"]["ce"] > 0
    figures = found[f"figures_0_of_{world_size}"][images]
    assert flat_results(figures, "") == pytest.approx(flat_results(expected, ""), rel=1e-6)
