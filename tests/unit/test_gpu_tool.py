"""`make gpu`: its checks on a CPU, and the line that it prints without a GPU."""

import subprocess
import sys
import warnings

import pytest
import torch
from detectron2.utils.events import EventStorage

from mtfixmatch.modeling import compiled
from tests.support.faulty_steps import NARROW
from tests.support.helpers import REPOSITORY, SMALL
from tools import gpu


@pytest.fixture
def opts(street_root, tmp_path):
    keys = {
        **SMALL,
        "DATASETS.ROOT": street_root,
        "DATASETS.CACHE_DIR": tmp_path,
        "OUTPUT_DIR": tmp_path,
        "TASKS.DETECTION.LABELS": 8,
        "TASKS.SEGMENTATION.LABELS": 8,
        **dict(zip(NARROW[::2], NARROW[1::2], strict=True)),
    }
    return [str(x) for pair in keys.items() for x in pair]


def test_without_a_gpu_it_is_skipped_in_one_line():
    command = [sys.executable, "-W", "ignore", "-m", "tools.gpu"]
    done = subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True, env={"CUDA_VISIBLE_DEVICES": ""}
    )
    assert done.returncode == 0
    assert done.stdout == "make gpu: skipped, PyTorch finds no GPU on this machine\n"


def test_all_checks_run_on_a_cpu(opts, monkeypatch):
    monkeypatch.setattr(gpu, "BLOCK", 1)
    monkeypatch.setattr(gpu, "BLOCKS", 1)
    plain = compiled.compile_network
    eager = lambda network, **given: plain(network, **given, backend="eager")  # noqa: E731
    monkeypatch.setattr(compiled, "compile_network", eager)
    waits = []
    with EventStorage(0):
        figures = gpu.measure(opts, "cpu", lambda: waits.append(1))
    assert figures["tensors that are not on cpu"] == 0
    assert figures["step, relative to its floor"] > 0
    assert figures["bfloat16: total loss"] > 0 and figures["float32: total loss"] > 0
    assert figures["bfloat16: loss scaler"] == "none"
    assert figures["compiled: step, relative to the plain one"] > 0
    assert figures["CUDA graphs"] == "MODEL.CUDA_GRAPHS needs MODEL.DEVICE to be a GPU; it is cpu"
    assert len(waits) % 2 == 0 and len(waits) > 10  # before and after each block


def test_a_check_that_fails_does_not_end_the_others(opts, monkeypatch):
    for name in ("check_step", "check_precisions", "check_compiled"):
        monkeypatch.setattr(gpu, name, lambda *_, name=name: iter([(name, 1)]))
    monkeypatch.setattr(gpu, "check_precisions", lambda *_: (1 / 0 for _ in "x"))
    assert gpu.measure(opts, "cpu", lambda: None) == {
        "check_step": 1,
        "failed: precisions": "ZeroDivisionError: division by zero",
        "check_compiled": 1,
    }


def test_a_tensor_in_another_place_is_named(opts):
    with EventStorage(0):
        stepper = gpu.Stepper(*opts, "MODEL.DEVICE", "cpu")
        step = stepper.step
        stepper.run(1)
    assert gpu.elsewhere(step, "cpu") == []
    found = gpu.elsewhere(step, "cuda")
    assert "student backbone.bottom_up.stem.conv1.weight" in found
    assert "teacher backbone.bottom_up.stem.conv1.weight" in found
    assert "optimizer 0 momentum_buffer" in found


def test_waits_are_counted_by_line(monkeypatch):
    modes = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)

    def run():
        for _ in range(3):
            warnings.warn("called a synchronizing CUDA operation", UserWarning, stacklevel=1)
        warnings.warn("something else", UserWarning, stacklevel=1)

    counts = gpu.count_waits(run)
    assert modes == ["warn", "default"]
    (site, count), *others = counts.items()
    assert count == 3 and not others and "test_gpu_tool.py:" in site
