"""Kernel launches and waits of a training step, counted on a pretended GPU."""

from unittest import mock

import pytest
import torch

from mtfixmatch.tasks.retinanet import RetinaNetHead
from tests.support.counted_step import PASSES, count_step
from tests.support.engine_helpers import build_trainer, losses_of, run_config, run_step
from tests.support.pretend_cuda import pretended_cuda

DEVICE = "cuda:0"


@pytest.fixture
def device():
    with pretended_cuda() as mode:
        yield mode


def waits_of(device, function):
    before = sum(device.counts.waits.values())
    function()
    return sum(device.counts.waits.values()) - before


def test_it_computes_as_the_cpu_does(device):
    x = torch.arange(6.0).view(2, 3)
    y = x.to(DEVICE).requires_grad_()
    (y * y).sum().backward()
    assert y.grad.device == y.device == torch.device(DEVICE)
    assert y.grad.tolist() == (2 * x).tolist()
    assert y[:, [0, 2]].tolist() == x[:, [0, 2]].tolist()


@pytest.mark.parametrize(
    ("wait", "function"),
    [
        (1, lambda x: x.sum().item()),
        (1, lambda x: bool((x > 0).all())),
        (1, lambda x: x.tolist()),
        (1, lambda x: x.cpu()),
        (1, lambda x: x[x > 0]),
        (1, lambda x: x[[0, 1]]),
        (1, lambda x: (x > 0).nonzero()),
        (1, lambda x: torch.ones(2).to(DEVICE, non_blocking=True)),  # from memory that can move
        (0, lambda x: torch.ones(2).pin_memory().to(DEVICE, non_blocking=True)),
        (1, lambda x: torch.ones(2).pin_memory().to(DEVICE)),
        (0, lambda x: torch.where(x > 0, x, 1.0)),
        (0, lambda x: x[1:] + 1),
    ],
)
def test_what_waits_for_the_device(device, wait, function):
    x = torch.ones(3, device=DEVICE)
    assert waits_of(device, lambda: function(x)) == wait


def test_tensors_of_two_devices_are_refused(device):
    x = torch.ones(3, device=DEVICE)
    with pytest.raises(RuntimeError, match="found CPU tensors"):
        x + torch.ones(3)
    x + torch.tensor(1.0)  # a scalar is taken from anywhere


def test_launches_are_counted_by_part(device):
    x = torch.ones(3, device=DEVICE)
    with device.part("sums"):
        (x + 1)[:1].sum()
        torch._foreach_add_([x] * 111, 1)
    assert device.counts.launches["sums", "-"] == 4  # views launch nothing, 110 tensors once


@pytest.fixture(scope="module")
def config(street_root, tmp_path_factory):
    """Two images with labels and two with pseudo-labels a batch."""
    opts = [
        *("DATALOADER.SAMPLING", "explicit", "DATALOADER.LABELED", "all"),
        *("TASKS.DETECTION.LABELS", 8, "TASKS.SEGMENTATION.LABELS", 8, "FIXMATCH.RAMP_UP", 0.0),
        # Clipping each gradient by its own norm takes launches for each of them.
        *("SOLVER.CLIP_GRADIENTS.ENABLED", False),
    ]
    return run_config(street_root, tmp_path_factory.mktemp("launches"), *opts)


@pytest.fixture(scope="module")
def counted(config):
    return count_step(config)


def test_a_step_has_few_launches_and_waits(counted):
    counts, _ = counted
    launches = sum(n for (part, _), n in counts.launches.items() if part != PASSES)
    assert sum(counts.waits.values()) <= 4, counts.waits
    assert launches <= 500, counts.launches


def test_a_step_has_the_losses_of_the_cpu(config, counted):
    trainer = build_trainer(config)
    batches = iter(trainer._trainer.data_loader)
    losses = [losses_of(run_step(trainer, next(batches), step=step)) for step in range(2)]
    _, found = counted
    assert losses_of(found) == pytest.approx(losses[1], rel=1e-3)
    assert all(x for name, x in losses[1].items() if "unsup" in name)  # pseudo-labels of each task


def test_a_wait_in_the_step_is_found(config, counted):
    match_labels = RetinaNetHead.match_labels

    def waiting(self, quality, best, **kwargs):
        best.sum().item()
        return match_labels(self, quality, best, **kwargs)

    with mock.patch.object(RetinaNetHead, "match_labels", waiting):
        counts, _ = count_step(config)
    assert sum(counts.waits.values()) == sum(counted[0].waits.values()) + 2  # labels, pseudo-labels


def test_a_tensor_on_the_wrong_device_is_found(config):
    anchors = RetinaNetHead.anchors

    def on_cpu(self, size):
        return [boxes.to("cpu") for boxes in anchors(self, size)]

    with (
        mock.patch.object(RetinaNetHead, "anchors", on_cpu),
        pytest.raises(RuntimeError, match="found CPU tensors"),
    ):
        count_step(config)
