"""A config from folders alone: the real commands, and a training of two steps."""

import os
import subprocess
import sys

import pytest

from mtfixmatch.data.loader import train_pools, train_records
from mtfixmatch.engine import load_config
from mtfixmatch.tasks import build_tasks
from tests.support.engine_helpers import build_trainer
from tests.support.helpers import REPOSITORY
from tests.support.layouts import LAYOUTS, make_images

SHORT = {
    "INPUT.TRAIN_SIZE": (64, 64),
    "MODEL.FPN.OUT_CHANNELS": 64,
    "DATALOADER.NUM_WORKERS": 0,
    "SOLVER.MAX_ITER": 2,
    "SOLVER.WARMUP_ITERS": 0,
    "SOLVER.AMP.ENABLED": False,
}
TASKS = {"voc2012": ["detection", "segmentation"], "masks": ["segmentation"]}


def short_opts(folder):
    opts = SHORT | {"DATASETS.CACHE_DIR": folder / "cache"}
    return [str(x) for pair in opts.items() for x in pair]


def run(script, *args, folder):
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    env["PYTHONPATH"] = str(REPOSITORY)
    command = [sys.executable, str(REPOSITORY / "projects" / script), *map(str, args)]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=300)


def check(folder, *args):
    return run("check_data.py", "DATASETS.CACHE_DIR", folder / "cache", *args, folder=folder)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_folder_becomes_a_config_that_trains(tmp_path, name):
    LAYOUTS[name](tmp_path / "data")
    process = check(tmp_path, "--images", "data")
    assert process.returncode == 0, process.stderr
    config = tmp_path / "check_data" / "config.yaml"
    lines = process.stdout.splitlines()
    assert lines[0] == "# What was seen"
    assert lines[-1] == f"Next: python projects/train_net.py --config-file {config}"
    report = (tmp_path / "check_data" / "check_data.md").read_text()
    assert report in process.stdout and (tmp_path / "check_data" / "contact_sheet.png").exists()

    if name in ("detectron2", "voc2012"):
        process = run(
            "train_net.py", "--config-file", config, *short_opts(tmp_path), folder=tmp_path
        )
        assert process.returncode == 0, process.stderr
        assert (config.parent / "training" / "model_final.pth").exists()
        return
    cfg = load_config(str(config), short_opts(tmp_path))
    assert list(cfg.MODEL.TASKS) == TASKS.get(name, ["detection"])
    tasks = build_tasks(cfg)
    records = train_records(cfg, tasks)
    assert len(records) == 5
    assert sum(any(task.label_key in x for task in tasks) for x in records) == 4
    pools, counts = train_pools(cfg, tasks, records)
    assert [*map(len, pools)] == [4, 1] and counts == [4, 4]
    if name == "masks":
        build_trainer(cfg).train()


def test_a_second_check_of_other_data_names_the_config(tmp_path):
    LAYOUTS["labelme"](tmp_path / "data")
    assert check(tmp_path, "--images", "data").returncode == 0
    assert check(tmp_path, "--images", "data").returncode == 0  # the same config
    LAYOUTS["masks"](tmp_path / "others")
    process = check(tmp_path, "--images", "others")
    config = tmp_path / "check_data" / "config.yaml"
    assert process.returncode == 1
    assert process.stderr.splitlines()[-1].startswith(f"error: {config} exists and is not overwr")
    assert check(tmp_path, "--images", "others", "--output", "second").returncode == 0


def test_nothing_recognized_is_one_line(tmp_path):
    make_images(tmp_path / "data", 2)
    process = check(tmp_path, "--images", "data")
    assert process.returncode == 1 and not process.stdout
    (line,) = process.stderr.splitlines()
    assert line.startswith(f"error: {tmp_path / 'data'}: no labels were recognized")


@pytest.mark.parametrize(
    "args, words",
    [
        (("--labels", "a"), "need --images"),
        (("--images", "a", "--config-file", "b"), "not allowed with"),
    ],
)
def test_options_that_do_not_fit(tmp_path, args, words):
    process = check(tmp_path, *args)
    assert process.returncode == 2 and words in process.stderr
