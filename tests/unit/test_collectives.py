"""The collectives of a step: the same on all ranks for all labels, and few that a GPU waits for."""

import pytest
import torch

from mtfixmatch.engine.samples import stack_images
from mtfixmatch.modeling.sync_norm import replace_sync_norms, share_statistics
from tests.support.engine_helpers import build_trainer, make_batch, run_config
from tests.support.faulty_steps import NARROW
from tests.support.thread_ranks import HOST, ThreadRanks

SYNC_BN = ("MODEL.RESNETS.NORM", "SyncBN", "MODEL.SEM_SEG_HEAD.NORM", "SyncBN")
PLAIN_BN = ("MODEL.RESNETS.NORM", "BN", "MODEL.SEM_SEG_HEAD.NORM", "BN")
# Images of one batch by the tasks that they are labeled for, in turn on one rank and the other.
MIXES = {
    "dsds": "no map on rank 0, no boxes on rank 1",
    "bnbn": "no label on rank 1",
    "nddd": "no map anywhere",
    "nnnn": "no label anywhere",
    "bsd": "one image more on rank 0",
}


@pytest.fixture(scope="module")
def build(street_root, tmp_path_factory):
    """A function that returns the training steps of two ranks."""

    def built(*opts):
        output = tmp_path_factory.mktemp("collectives")
        trainers = [build_trainer(run_config(street_root, output, *NARROW, *opts)) for _ in "01"]
        for trainer in trainers:
            replace_sync_norms(trainer._trainer.student)
        return trainers

    return built


def sent_in_a_step(trainers, kinds, precision=torch.float32, parts=1):
    """What each rank sends while it takes a step on its images of a batch."""
    batch = make_batch(trainers[0], kinds)
    ranks = ThreadRanks(len(trainers))

    def step(rank):
        trainer, own = trainers[rank], batch[rank :: len(trainers)]
        inner = trainer._trainer
        inner.precision, inner.accumulation_steps = precision, parts
        images = stack_images(own, inner.student.device)
        modules = (inner.student, inner.method, inner.normalizers)
        with inner.guard.rolling_back(modules, inner.optimizer, dict):
            record = inner.compute_gradients(own, images)
            inner.optimizer.zero_grad()
            share_statistics(inner.student)
            trainer._stop_request.agreed()
        return record.losses

    losses = ranks.run(step)
    assert losses[0] == losses[1]
    return ranks.sent


@pytest.fixture(scope="module")
def networks(build):
    return {
        ("SyncBN", "DenseFixMatch"): build(*SYNC_BN),
        ("SyncBN", "Supervised"): build(*SYNC_BN, "FIXMATCH.METHOD", "Supervised"),
        ("BN", "DenseFixMatch"): build(*PLAIN_BN),
    }


@pytest.mark.parametrize("kinds", MIXES)
@pytest.mark.parametrize("method", ["DenseFixMatch", "Supervised"])
def test_all_ranks_send_the_same(networks, method, kinds):
    first, second = sent_in_a_step(networks["SyncBN", method], kinds)
    assert first == second
    assert len(first) > 100  # several for each layer with a norm


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("parts", [1, 2])
def test_so_they_do_in_parts_and_in_mixed_precision(networks, precision, parts):
    steps = networks["SyncBN", "DenseFixMatch"]
    for kinds in ("bnbn", "bsd"):
        first, second = sent_in_a_step(steps, kinds, precision, parts)
        assert first == second
        assert {note[2] for note in first if len(note) > 2} == {torch.float32, torch.float64}


@pytest.mark.parametrize("kinds", MIXES)
def test_a_gpu_takes_part_three_times(networks, kinds):
    """For sums of elements, the finiteness check, which is waited for, and the statistics."""
    steps = networks["BN", "DenseFixMatch"]
    first, second = sent_in_a_step(steps, kinds)
    assert first == second
    on_device = [note for note in first if note[0] != HOST]
    assert [kind for _, kind, *_ in on_device] == ["all_reduce"] * 3
    assert [dtype for _, _, dtype, _ in on_device] == [torch.float64] * 2 + [torch.float32]
    on_host = [note for note in first if note[0] == HOST]
    assert len(on_host) == 2  # images of each head, stop request


def test_a_rank_that_sends_something_else_is_seen():
    ranks = ThreadRanks(2)

    def work(rank):
        x = torch.ones(1, dtype=(torch.float16, torch.float32)[rank])
        torch.distributed.all_reduce(x)
        return x.item()

    assert ranks.run(work) == [2.0, 2.0]
    assert ranks.sent[0] != ranks.sent[1]
