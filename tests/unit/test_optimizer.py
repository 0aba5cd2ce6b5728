"""The optimizer of a CPU gives what PyTorch's gives tensor by tensor, in any memory layout."""

import copy
import itertools

import pytest
import torch
from detectron2.solver.build import build_optimizer as detectron2_optimizer
from torch import nn
from torch.profiler import ProfilerActivity, profile

from mtfixmatch.engine.optimizer import FusedSGD, build_optimizer
from mtfixmatch.engine.setup import resolve_config

LAST, FIRST = torch.channels_last, torch.contiguous_format
OPTIONS = {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}
SHAPES = ((8, 6, 3, 3), (8, 6, 1, 1), (1, 6, 3, 3), (5,))


def parameters(layout=LAST):
    rng = torch.Generator().manual_seed(0)
    drawn = [torch.randn(shape, generator=rng) for shape in SHAPES]
    return [nn.Parameter(x.contiguous(memory_format=layout) if x.dim() == 4 else x) for x in drawn]


def take_steps(optimizer, params, first=0, count=3, layout=LAST):
    """Take steps on gradients that depend on the number of the step."""
    for step in range(first, first + count):
        rng = torch.Generator().manual_seed(1 + step)
        for p in params:
            grad = torch.randn(p.shape, generator=rng)
            p.grad = grad.contiguous(memory_format=layout) if grad.dim() == 4 else grad
        optimizer.step()


def assert_equal(params, expected):
    for p, x in zip(params, expected, strict=True):
        torch.testing.assert_close(p, x, rtol=0, atol=1e-6)


@pytest.mark.parametrize("weights, grads", itertools.product((LAST, FIRST), repeat=2))
def test_equals_the_loop_over_tensors_in_any_layout(weights, grads):
    own, others = parameters(weights), parameters(FIRST)
    take_steps(FusedSGD(own, **OPTIONS), own, layout=grads)
    take_steps(torch.optim.SGD(others, **OPTIONS, foreach=False), others, layout=FIRST)
    assert_equal(own, others)
    assert own[0].is_contiguous(memory_format=weights)


@pytest.mark.parametrize("before, after", ((LAST, FIRST), (FIRST, LAST)))
def test_goes_on_with_a_momentum_of_another_layout(before, after):
    """As after a resume with another MODEL.CHANNELS_LAST."""
    expected = parameters(FIRST)
    take_steps(torch.optim.SGD(expected, **OPTIONS, foreach=False), expected, count=5)
    params = parameters(before)
    optimizer = FusedSGD(params, **OPTIONS)
    take_steps(optimizer, params, layout=before)
    state = copy.deepcopy(optimizer.state_dict())
    resumed = [nn.Parameter(p.detach().clone()) for p in params]
    for p in resumed[:3]:
        p.data = p.data.contiguous(memory_format=after)
    optimizer = FusedSGD(resumed, **OPTIONS)
    optimizer.load_state_dict(state)
    take_steps(optimizer, resumed, first=3, count=2, layout=after)
    assert_equal(resumed, expected)


def test_a_weight_without_a_gradient_stays():
    params = parameters()
    optimizer = FusedSGD(params, **OPTIONS)
    take_steps(optimizer, params)
    params[0].grad, before = None, [p.detach().clone() for p in params]
    optimizer.step()
    assert [torch.equal(a, b) for a, b in zip(params, before, strict=True)] == [True, *[False] * 3]


@pytest.mark.parametrize("layout", (LAST, FIRST))
def test_a_step_copies_nothing(layout):
    params = parameters(layout)
    optimizer = FusedSGD(params, **OPTIONS)
    take_steps(optimizer, params, layout=layout)
    with profile(activities=[ProfilerActivity.CPU]) as found:
        optimizer.step()
    names = {event.name for event in found.events()}
    assert "aten::_fused_sgd_" in names and not names & {"aten::copy_", "aten::clone"}


@pytest.mark.parametrize("clip", (False, True))
def test_has_the_state_and_the_groups_of_detectron2s(clip):
    pairs = {"SOLVER.CLIP_GRADIENTS.ENABLED": clip, "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": "norm"}
    pairs |= {"SOLVER.CLIP_GRADIENTS.CLIP_VALUE": 0.5, "SOLVER.WEIGHT_DECAY_NORM": 0.0}
    cfg = resolve_config("configs/Base-Small.yaml", [x for pair in pairs.items() for x in pair])
    cfg.MODEL.DEVICE = "cpu"
    models = [nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    own, other = build_optimizer(cfg, models[0]), detectron2_optimizer(cfg, models[1])
    assert isinstance(own, FusedSGD)
    for optimizer, model in zip((own, other), models, strict=True):
        take_steps(optimizer, list(model.parameters()), layout=FIRST)
    assert_equal(models[0].parameters(), models[1].parameters())
    assert own.state_dict()["param_groups"] == other.state_dict()["param_groups"]
    states = [optimizer.state_dict()["state"] for optimizer in (own, other)]
    assert states[0].keys() == states[1].keys() and len(states[0]) == 4
    for mine, stock in zip(states[0].values(), states[1].values(), strict=True):
        assert mine.keys() == stock.keys()
        torch.testing.assert_close(mine["momentum_buffer"], stock["momentum_buffer"])
