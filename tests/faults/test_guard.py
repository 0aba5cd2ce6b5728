"""What is not finite changes nothing, on no rank, and can be replayed."""

import logging
import math
import runpy

import pytest
import torch

from mtfixmatch.engine.loss_scaler import LossScaler
from mtfixmatch.engine.replay import FirstNonFinite, read_step, replay
from mtfixmatch.runtime.checkpoint_files import write_checkpoint
from mtfixmatch.runtime.nonfinite import not_finite
from mtfixmatch.utils.errors import InputError
from tests.support.engine_helpers import build_trainer, make_batch, run_config, run_step, same_state
from tests.support.faulty_steps import (
    NARROW,
    PLACES,
    spoil_in_two_processes,
    spoiled_step,
    state_of,
)
from tests.support.helpers import REPOSITORY

NAN, INF = float("nan"), float("inf")


def test_values_are_named_by_hand():
    tensors = {
        "a": torch.tensor([1.0, 3e38, 3e38]),  # finite, though their sum is not
        "b": torch.tensor([[0.0, -INF], [INF, NAN]]),
        "c": torch.tensor(NAN),
        "d": torch.tensor([2**60, 2**62]),
        "e": torch.zeros(0),
    }
    assert not_finite(tensors.items()) == ["b is -inf", "c is nan"]


# Two processes


@pytest.fixture(scope="module")
def spoiled(street_root, tmp_path_factory):
    """The output folder, and what each of two ranks found."""
    output = tmp_path_factory.mktemp("spoiled")
    return output, spoil_in_two_processes(street_root, output)


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("place", PLACES)
def test_no_rank_takes_in_what_one_of_them_spoils(spoiled, place, rank):
    output, ranks = spoiled
    for policy in ("skip", "stop"):
        here, there = (found[place, rank, policy] for found in ranks)
        assert here["unchanged"] and there["unchanged"]
        assert here["error"] == there["error"]
        assert bool(here["error"]) == (policy == "stop")
        assert (output / f"bad_step_{here['step']:07d}_rank{rank}.pth").is_file()
    for found in ranks:
        assert found[place, rank, "skip"]["logged"]["skipped_steps"] == 1
        assert "total_loss" not in found[place, rank, "skip"]["logged"]


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("place", PLACES)
def test_the_message_says_all(spoiled, place, rank):
    output, ranks = spoiled
    found = ranks[0][place, rank, "stop"]
    where = "0 (and 1)" if place == "gradient" else rank  # which the ranks have summed
    path = output / f"bad_step_{found['step']:07d}_rank{0 if place == 'gradient' else rank}.pth"
    assert found["error"].startswith(f"step {found['step']}, rank {where}: {PLACES[place][1]}")
    assert f"python projects/replay_step.py {path}." in found["error"]
    assert "\n" not in found["error"]
    names = read_step(str(path))["files"]
    assert len(names) == 2 and f"its images: {', '.join(names)};" in found["error"]


def test_the_training_goes_on_after_all_of_it(spoiled):
    for found in spoiled[1]:
        assert found["end"]["changed"] and found["end"]["finite"]
        assert math.isfinite(found["end"]["total_loss"])


# One process


@pytest.fixture(scope="module")
def trainer(street_root, tmp_path_factory):
    """After one step, so that the optimiser has its momenta; each test may skip steps."""
    output = tmp_path_factory.mktemp("guard")
    opts = ("SOLVER.NONFINITE", "skip", "SOLVER.ACCUMULATION_STEPS", 2)
    trainer = build_trainer(run_config(street_root, output, *NARROW, *opts))
    run_step(trainer, make_batch(trainer, "bn"))
    return trainer


@pytest.fixture
def clean(trainer):
    trainer._trainer.guard.skipped = 0
    return trainer


@pytest.mark.parametrize("place", ["loss", "gradient"])
def test_accumulated_parts_are_undone_too(clean, place):
    before = state_of(clean)
    assert spoiled_step(clean, place, 0, 1)[0] == ""
    assert same_state(state_of(clean), before)
    assert all(p.grad is None for p in clean._trainer.student.parameters())


def test_the_count_of_skipped_steps_survives_a_resume(clean, caplog):
    inner = clean._trainer
    with caplog.at_level(logging.WARNING):
        for step in range(1, 4):
            assert spoiled_step(clean, "image", 0, step)[0] == ""
    assert "The step is skipped, 3 of 5 (SOLVER.MAX_SKIPPED_STEPS)" in caplog.text
    state = inner.state_dict()
    assert state["skipped_steps"] == 3
    inner.guard.skipped = 0
    inner.load_state_dict(state)
    assert spoiled_step(clean, "image", 0, 4)[0] == ""
    assert spoiled_step(clean, "image", 0, 5)[0] == ""
    assert spoiled_step(clean, "image", 0, 6)[0].startswith("step 6, rank 0: the image ")


def test_a_full_disk_does_not_stop_a_run_that_may_skip(clean, caplog, monkeypatch):
    def full(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mtfixmatch.runtime.nonfinite.replacing", full)
    with caplog.at_level(logging.WARNING):
        assert spoiled_step(clean, "image", 0, 1)[0] == ""
    assert "cannot be written: [Errno 28] No space left on device" in caplog.text


def infinite_gradient(trainer, scale):
    """A step with one under a loss scaler: whether weights are unchanged, scale after it, log."""
    inner = trainer._trainer
    disabled = inner.grad_scaler
    inner.grad_scaler = LossScaler("cpu", enabled=True, init_scale=scale)
    weight = inner.student.backbone.bottom_up.stem.conv1.weight
    handle = weight.register_hook(lambda grad: grad * INF)
    before = {name: p.clone() for name, p in inner.student.named_parameters()}
    try:
        logged = run_step(trainer, make_batch(trainer, "bd", step=1), step=1)
        same = all(torch.equal(p, before[name]) for name, p in inner.student.named_parameters())
        return same, inner.grad_scaler.get_scale(), logged
    finally:
        handle.remove()
        inner.grad_scaler = disabled


def test_a_loss_scaler_finds_its_scale_undisturbed(clean):
    unchanged, scale, logged = infinite_gradient(clean, 65536.0)
    assert unchanged and scale == 32768.0
    assert logged["skipped_steps"] == 0 and math.isfinite(logged["total_loss"])
    assert logged["loss_scaler/scale"] == 32768.0 and logged["loss_scaler/skipped_steps"] == 1


def test_a_scale_of_one_is_no_excuse(clean):
    unchanged, scale, logged = infinite_gradient(clean, 1.0)
    assert unchanged and scale == 1.0
    assert logged["skipped_steps"] == 1


def test_no_checkpoint_takes_in_what_is_not_finite(tmp_path):
    path = str(tmp_path / "model_0000001.pth")
    write_checkpoint({"model": {"a": torch.ones(3)}}, path)
    before = (tmp_path / "model_0000001.pth").read_bytes()
    spoiled = {"trainer": {"optimizer": {"state": {0: {"m": torch.tensor([0.0, NAN])}}}}}
    with pytest.raises(FloatingPointError, match=r"0000001.pth .* trainer.optimizer.state.0.m is"):
        write_checkpoint(spoiled, path)
    assert (tmp_path / "model_0000001.pth").read_bytes() == before


# Replay


def test_the_command_names_the_module_of_a_bad_weight(clean, capsys, monkeypatch):
    conv = clean._trainer.student.heads["segmentation"].head.predictor
    right = conv.weight.detach().clone()
    with torch.no_grad():
        conv.weight.fill_(3e38)
    run_step(clean, make_batch(clean, "bdsn", step=7), step=7)
    with torch.no_grad():
        conv.weight.copy_(right)
    path = f"{clean.cfg.OUTPUT_DIR}/bad_step_0000007.pth"
    monkeypatch.setattr("sys.argv", ["replay_step.py", path])
    capsys.readouterr()
    runpy.run_path(str(REPOSITORY / "projects" / "replay_step.py"), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "step 7, rank 0, seed 0"
    assert lines[1].count("leftImg8bit.png") == 4
    assert lines[2].startswith("not finite in the training: loss_segmentation_ce is ")
    place = "forward pass, output of the student's heads.segmentation.head.predictor"
    assert lines[3] == f"first value that is not finite: {place}"


def test_a_replay_names_the_image_and_a_poisoned_teacher(clean):
    folder = clean.cfg.OUTPUT_DIR
    spoiled_step(clean, "image", 0, 8)
    name = read_step(f"{folder}/bad_step_0000008.pth")["files"][0]
    assert replay(read_step(f"{folder}/bad_step_0000008.pth")) == f"the image {name}"
    mean = clean.teacher.backbone.bottom_up.stem.conv1.norm.running_mean
    right = mean.clone()
    mean[0] = NAN
    run_step(clean, make_batch(clean, "bdsn", step=9), step=9)
    mean.copy_(right)
    expected = "the teacher's backbone.bottom_up.stem.conv1.norm.running_mean, before the step"
    assert replay(read_step(f"{folder}/bad_step_0000009.pth")) == expected


def test_a_replay_of_what_was_no_computation_is_finite(clean):
    spoiled_step(clean, "gradient", 0, 10)
    found = read_step(f"{clean.cfg.OUTPUT_DIR}/bad_step_0000010.pth")
    assert replay(found) == ""
    assert found["nonfinite"] == ["the gradient of backbone.bottom_up.res2.0.conv1.weight is nan"]


class Root(torch.nn.Module):
    """The gradient of its output at 0 is infinite."""

    def forward(self, x):
        return torch.sqrt(x)


def test_the_first_place_of_a_backward_pass_is_found():
    network = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False), Root(), torch.nn.Linear(2, 1))
    torch.nn.init.zeros_(network[0].weight)
    first = FirstNonFinite()
    first.watch("student", network)
    network(torch.ones(1, 2)).sum().backward()
    assert first.place == "backward pass, at the output of the student's 0"


def test_other_files_are_refused_in_one_sentence(tmp_path):
    path = tmp_path / "bad_step_0000001.pth"
    path.write_bytes(b"no zip")
    with pytest.raises(InputError, match=r"bad_step_0000001.pth cannot be read: "):
        read_step(str(path))
