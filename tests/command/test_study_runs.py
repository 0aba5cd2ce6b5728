"""Short real runs of each kind of experiment on generated data, and the command run_study.py."""

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mtfixmatch.data.partial_labels import count_labels
from mtfixmatch.engine import load_config
from mtfixmatch.street import generate as street
from mtfixmatch.study.plan import load_study
from mtfixmatch.utils.errors import InputError
from tests.support.engine_helpers import build_trainer
from tests.support.helpers import REPOSITORY, SMALL

PROJECTS = REPOSITORY / "projects"
KEYS = {"detection": "annotations", "segmentation": "sem_seg_file_name"}
# The paper's network in small; the data have a few images for the paper's thousands.
TINY = {
    **SMALL,
    "MODEL.WEIGHTS": "",
    "MODEL.DEVICE": "cpu",
    "MODEL.RESNETS.DEPTH": 18,
    "MODEL.BACKBONE.ENCODER_STRIDE": 32,
    "MODEL.RESNETS.NORM": "BN",
    "MODEL.FPN.NORM": "GN",
    "MODEL.SEM_SEG_HEAD.NORM": "BN",
    "MODEL.SEM_SEG_HEAD.ASPP_DROPOUT": 0.0,
    "SOLVER.AMP.ENABLED": False,
    "SOLVER.MAX_ITER": 2,
    "TEST.PICTURES": 0,
}
# What the factors decide is left to them.
for key in ("TASKS.DETECTION.LABELS", "TASKS.SEGMENTATION.LABELS", "DATALOADER.LABELED"):
    del TINY[key]


def options(root: Path, **changes) -> list[str]:
    places = {"DATASETS.ROOT": root, "DATASETS.CACHE_DIR": root / "cache"}
    return [str(x) for pair in (TINY | places | changes).items() for x in pair]


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Generated data as cityscapes/ with all its splits, and as bdd100k/."""
    root = tmp_path_factory.mktemp("study")
    layout = {"num_val": 3, "size": (128, 64), "seed": 1}
    street.generate(root / "cityscapes", num_train=8, **layout)
    street.generate(root / "bdd100k", num_train=24, layout="bdd100k", **layout)
    images = root / "cityscapes" / "leftImg8bit"
    for i, image in enumerate(sorted(images.glob("train/*/*.png"))):
        city = image.parent.name
        extra = images / "train_extra" / f"{city}x"
        frames = root / "cityscapes" / "leftImg8bit_sequence" / "train" / city
        for folder in (extra, frames):
            folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(image, extra / f"{city}x_{i:06d}_000000_leftImg8bit.png")
        shutil.copy(image, frames / image.name)  # the annotated frame, which is left out
        shutil.copy(image, frames / f"{city}_{900 + i:06d}_000001_leftImg8bit.png")
    return root


def train(study: str, root: Path, output: Path, labels=None, **only):
    """Train the one run that the factors select and return its trainer."""
    study = load_study(PROJECTS / study)
    (run,) = study.select({factor: [str(value)] for factor, value in only.items()})
    few = {f"TASKS.{name.upper()}.LABELS": count for name, count in (labels or {}).items()}
    opts = run.overrides + options(root, OUTPUT_DIR=output, **few)
    trainer = build_trainer(load_config(str(study.config), opts))
    output.mkdir(exist_ok=True)
    trainer.train()
    return trainer


def check(trainer, labels=None):
    """Check the files of a run and its number of labels."""
    folder = Path(trainer.cfg.OUTPUT_DIR)
    best = json.loads((folder / "results_best.json").read_text())
    assert set(best["teacher"]) == {*trainer.cfg.MODEL.TASKS, "geometric_mean"}
    manifest = json.loads((folder / "label_subsets.json").read_text())["labels"]
    counts = count_labels(trainer.records, list(KEYS.values()))
    for name in trainer.cfg.MODEL.TASKS:
        assert manifest[name]["count"] == counts[KEYS[name]]
        if labels:
            assert counts[KEYS[name]] == labels[name]
    return best["teacher"]


LOW_DATA = [
    ("single", "detection", "dense_fixmatch", "explicit", {"detection": 3}),
    ("single", "segmentation", "fixmatch", "implicit", {"segmentation": 3}),
    ("a", "both", "dense_fixmatch", "explicit", {"detection": 8, "segmentation": 3}),
    ("b", "both", "supervised", "uniform", {"detection": 3, "segmentation": 3}),
    ("c", "both", "fixmatch", "explicit", {"detection": 3, "segmentation": 3}),
    ("e", "both", "dense_fixmatch", "implicit", {"detection": 5, "segmentation": 2}),
]


@pytest.mark.parametrize("setting, tasks, method, sampling, labels", LOW_DATA)
def test_low_data_regime(root, tmp_path, setting, tasks, method, sampling, labels):
    first = {"single": 93, "a": 93, "b": 93, "c": 93, "e": 93}[setting]
    count = {f"{t}_labels": first for t in labels if t == "segmentation" or tasks == t}
    if setting in "bc":
        count["detection_labels"] = 93
    if setting == "e":
        count["detection_labels"] = 372
    trainer = train(
        "cityscapes_low_data", root, tmp_path / "run", labels,
        setting=setting, tasks=tasks, method=method, sampling=sampling, **count,
    )  # fmt: skip
    check(trainer, labels)
    if setting in "ce":
        assert trainer.cfg.DATASETS.LABEL_SUBSETS == "random"


@pytest.mark.parametrize(
    "setting, method, sampling, on, images",
    [
        ("train", "dense_fixmatch", "implicit", "all", 8),
        ("train_extra", "fixmatch", "explicit", "all", 16),
        ("sequence", "dense_fixmatch", "explicit", "unlabeled", 24),
    ],
)
def test_all_of_cityscapes(root, tmp_path, setting, method, sampling, on, images):
    factors = {"method": method, "sampling": sampling, "unsupervised_on": on}
    trainer = train("cityscapes_full", root, tmp_path / "run", setting=setting, **factors)
    check(trainer, {"detection": 8, "segmentation": 8})
    assert len(trainer.records) == images


@pytest.mark.parametrize(
    "factors",
    [
        {"setting": "full", "method": "supervised"},
        {"tasks": "segmentation", "method": "supervised"},
        {"method": "dense_fixmatch", "sampling": "explicit", "unsupervised_on": "all"},
    ],
)
def test_bdd100k(root, tmp_path, factors):
    trainer = train("bdd100k", root, tmp_path / "run", **factors)
    results = check(trainer)
    tasks = trainer.cfg.MODEL.TASKS
    for name in tasks:
        assert all(value > 0 for value in results[name]["losses"].values())
    counts = count_labels(trainer.records, list(KEYS.values()))
    if len(tasks) == 1:  # the labels of the other task are not read, but its images are there
        assert counts["all"] == 0 < counts[KEYS[tasks[0]]] < len(trainer.records)
    else:
        assert 0 < counts["all"] < min(counts[key] for key in KEYS.values())


@pytest.fixture
def run_study(capfd):
    """Run the command in this process and return its output."""
    spec = importlib.util.spec_from_file_location("run_study", PROJECTS / "run_study.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def run(*args, expect=0):
        try:
            assert module.main(module.parse([str(arg) for arg in args])) == expect
        except InputError as error:
            assert expect == 1
            return str(error)
        return "".join(capfd.readouterr())

    return run


def test_the_command_runs_what_is_missing_names_what_fails_and_reports(root, tmp_path, run_study):
    """One run works, one asks for too many labels; a second call trains only the failed run."""
    folder = tmp_path / "study"
    folder.mkdir()
    content = yaml.safe_load((PROJECTS / "street" / "study.yaml").read_text())
    content["config"] = str(REPOSITORY / "configs" / "street" / "resnet18.yaml")
    content["runs"] = [{
        "setting": "b", "tasks": "both", "method": "supervised", "sampling": "uniform",
        "detection_labels, segmentation_labels": [[3, 3], [9, 3]], "variant": "default", "seed": 0,
    }]  # fmt: skip
    (folder / "study.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    (root / "street").is_symlink() or (root / "street").symlink_to(root / "cityscapes")
    where = [folder, "--output", tmp_path / "out"]
    given = ["--opts", *options(root)]

    printed = run_study(*where, "--dry-run", *given)
    assert "2 of 2 runs" in printed and "2 missing" in printed
    assert not (tmp_path / "out").exists()

    printed = run_study(*where, *given, expect=1)
    failed = "b-both-supervised-uniform-detection_labels9-segmentation_labels3-default-seed0"
    assert f"failed: {failed}: exit status 1: error: " in printed
    assert "only 8 images have it" in printed

    shown = run_study(*where, "--dry-run", *given)
    assert "1 done, 1 failed" in shown
    again = run_study(*where, *given, expect=1)
    assert "starts: b-both-supervised-uniform-detection_labels3" not in again

    path = run_study(*where, "--report", *given).strip().splitlines()[-1]
    report = Path(path).read_text()
    assert "only 8 images have it" in report and "mIoU" in report

    line = run_study(*where, "--archive", *given, expect=1)
    assert line == "--archive: only runs of the study's own output belong to its archive"
    content["output"] = str(tmp_path / "out")
    (folder / "study.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    printed = run_study(folder, "--archive", *given)
    done = failed.replace("labels9", "labels3")
    assert printed.splitlines() == [
        f"{folder / 'runs.tar.xz'}: 1 runs added",
        f"may be deleted: {tmp_path / 'out' / done}",
    ]
    shutil.rmtree(tmp_path / "out")
    assert "1 done, 1 missing" in run_study(folder, "--dry-run", *given)


def test_a_wrong_study_is_one_line(run_study):
    command = [sys.executable, "-W", "ignore", str(PROJECTS / "run_study.py"), "citi"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode == 1 and not done.stdout
    assert done.stderr.startswith("error: STUDY citi: no folder with study.yaml, and none of bdd")
    assert done.stderr.count("\n") == 1
    line = run_study("bdd100k", "--only", "method", expect=1)
    assert line == "--only: 'method' is not KEY=VALUE"
    line = run_study("bdd100k", "--opts", "SOLVER.MAX", "1", expect=1)
    assert "detection-supervised-uniform-partial-seed0: " in line and "SOLVER.MAX" in line
