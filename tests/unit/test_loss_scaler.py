"""The loss scaler of float16: its scale, and the steps that it skips."""

import torch

from mtfixmatch.engine.loss_scaler import LossScaler


def take_step(scaler, gradient):
    """A step of one weight, whose gradient is this; return the weight after it."""
    weight = torch.nn.Parameter(torch.tensor([1.0]))
    optimizer = torch.optim.SGD([weight], lr=0.5)
    scaler.scale((weight * gradient).sum()).backward()
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()
    return weight.item()


def test_it_counts_the_steps_that_it_skips():
    scaler = LossScaler("cpu", enabled=True, init_scale=8.0, growth_interval=2)
    seen = [(take_step(scaler, g), scaler.get_scale(), scaler.skipped) for g in (1, 1e38, 1, 1)]
    # Half of the gradient is taken off the weight; two steps in a row double the scale.
    assert seen == [(0.5, 8.0, 0), (1.0, 4.0, 1), (0.5, 4.0, 1), (0.5, 8.0, 1)]
    assert scaler.scalars() == {"loss_scaler/scale": 8.0, "loss_scaler/skipped_steps": 1}


def test_it_looks_at_the_device_once_a_step(monkeypatch):
    looks = []
    plain = torch.amp.GradScaler.get_scale
    monkeypatch.setattr(torch.amp.GradScaler, "get_scale", lambda x: looks.append(x) or plain(x))
    scaler = LossScaler("cpu", enabled=True)
    looks.clear()
    take_step(scaler, 1.0)
    assert scaler.get_scale() == scaler.scalars()["loss_scaler/scale"] == 65536.0
    assert len(looks) == 1


def test_its_state_survives_a_resume():
    scaler = LossScaler("cpu", enabled=True, init_scale=8.0)
    take_step(scaler, 1e38)
    resumed = LossScaler("cpu", enabled=True)
    resumed.load_state_dict(scaler.state_dict())
    assert (resumed.get_scale(), resumed.skipped) == (4.0, 1)
    plain = torch.amp.GradScaler("cpu", init_scale=2.0)
    resumed.load_state_dict(plain.state_dict())
    assert (resumed.get_scale(), resumed.skipped) == (2.0, 0)


def test_one_that_is_not_enabled_changes_nothing():
    scaler = LossScaler("cpu", enabled=False)
    assert take_step(scaler, 1.0) == 0.5
    assert (scaler.get_scale(), scaler.scalars(), scaler.state_dict()) == (1.0, {}, {})
