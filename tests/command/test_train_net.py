"""The real command, as a subprocess where that matters, else its functions in this process."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys

import pytest
import torch
from detectron2.engine import default_argument_parser
from PIL import Image

from mtfixmatch.street import generate as street
from mtfixmatch.utils.errors import InputError
from tests.support.helpers import CONFIGS, REPOSITORY, SMALL

TORCH_LOG = re.compile(r"(\[rank\d\]:)?W\d{4} [\d:.]+ \d+ (\S+/)?torch/")
COMMAND = REPOSITORY / "projects" / "train_net.py"
RESNET18 = CONFIGS / "street" / "resnet18.yaml"
OPTS = {
    **SMALL,
    **{"MODEL.FPN.OUT_CHANNELS": 64, "TASKS.DETECTION.LABELS": 6, "TASKS.SEGMENTATION.LABELS": 4},
    **{"TASKS.DETECTION.THRESHOLD": 0.005, "FIXMATCH.DIAGNOSTICS_PERIOD": 2},
    **{
        "SOLVER.AMP.ENABLED": False,
        "SOLVER.MAX_ITER": 4,
        "SOLVER.CHECKPOINT_PERIOD": 2,
        "TEST.EVAL_PERIOD": 2,
    },
    **{"TEST.PICTURES": 2, "MODEL.RETINANET.SCORE_THRESH_TEST": 0.0},
    **{"MODEL.RETINANET.TOPK_CANDIDATES_TEST": 50},
}


def arguments(root, output, *flags, **changed):
    """The command's arguments; `changed` has keys with __ for the dot."""
    places = {"DATASETS.ROOT": root, "DATASETS.CACHE_DIR": root / "cache", "OUTPUT_DIR": output}
    opts = OPTS | places | {key.replace("__", "."): value for key, value in changed.items()}
    pairs = [str(x) for pair in opts.items() for x in pair]
    return ["--config-file", str(RESNET18), *flags, *pairs]


def run(args, **kwargs):
    # Warnings of the libraries to their own callers are not the command's.
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, str(COMMAND), *map(str, args)]
    return subprocess.run(
        command, cwd=REPOSITORY, env=env, capture_output=True, text=True, timeout=300, **kwargs
    )


def read_json(path):
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def trained(street_root, tmp_path_factory):
    """The output of four steps, and what the command printed."""
    output = tmp_path_factory.mktemp("trained") / "new" / "folder"
    done = run(arguments(street_root, output))
    assert done.returncode == 0, done.stderr
    return output, done


def test_a_training_leaves_its_results(trained):
    output, done = trained
    assert "Traceback" not in done.stderr
    assert "Starting training from iteration 0" in done.stdout
    for name in ("metrics.json", "report.md", "results.json", "config.yaml", "log.txt"):
        assert (output / name).stat().st_size > 0
    for name in ("model_0000001.pth", "model_0000003.pth", "model_best.pth", "model_final.pth"):
        assert torch.load(output / name)["model"]
    for name in ("predictions.png", "pseudo_labels.png", "curves.png", "labels.png"):
        with Image.open(output / name) as picture:
            assert min(picture.size) > 64 and len(set(picture.convert("L").tobytes())) > 20
    assert list(output.glob("events.out.tfevents.*"))


def test_the_log_has_the_lines_from_before_its_folder(trained):
    text = (trained[0] / "log.txt").read_text()
    assert "street_train: " in text and "Training labels: " in text
    assert text.count("street_train: ") == 1


def test_the_results_are_numbers(trained):
    output, _ = trained
    teacher = read_json(output / "results.json")["teacher"]
    assert 0 <= teacher["detection"]["mAP"] <= 1
    assert 0 < teacher["segmentation"]["mIoU"] <= 1
    assert len(teacher["detection"]["per_class"]) == 8
    assert len(teacher["segmentation"]["per_class"]) == 19
    lines = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    names = set().union(*lines)
    assert {"total_loss", "lr", "loss_segmentation_ce_unsup", "lambda/detection"} <= names
    assert {"teacher/geometric_mean", "[metric]segmentation/valid_pixels"} <= names


def test_the_report_has_its_tables(trained):
    text = (trained[0] / "report.md").read_text()
    for title in ("Results", "Labels", "Detection", "Segmentation", "Curves", "Configuration"):
        assert f"\n## {title}\n" in text
    assert "geometric mean |" in text
    for name in ("predictions.png", "pseudo_labels.png", "curves.png", "labels.png"):
        assert f"]({name})" in text
    counts = {row.split("|")[1].strip(): row.split("|")[2].strip() for row in rows_of(text)}
    assert {"car", "bicycle", "road", "vegetation"} <= counts.keys()
    assert counts["training images"] == "16"
    assert counts["labeled for detection"] == "6"
    assert counts["labeled for segmentation"] == "4"


def rows_of(text):
    return [row for row in text.splitlines() if row.startswith("|") and row.count("|") >= 3]


@pytest.mark.parametrize("name", ["model_final.pth", "model_0000003.pth"])
def test_eval_only_finds_the_same_figures(trained, street_root, tmp_path, name):
    output, _ = trained
    args = arguments(street_root, tmp_path, "--eval-only", MODEL__WEIGHTS=output / name)
    call(args)
    found = read_json(tmp_path / "eval" / "results.json")["teacher"]
    assert flat(found) == pytest.approx(flat(read_json(output / "results.json")["teacher"]))


def test_eval_only_takes_the_best_teacher_of_a_folder(trained, street_root, tmp_path):
    output, _ = trained
    call(arguments(street_root, tmp_path, "--eval-only", MODEL__WEIGHTS=output))
    found = read_json(tmp_path / "eval" / "results.json")["teacher"]
    assert flat(found) == pytest.approx(flat(read_json(output / "results_best.json")["teacher"]))


def test_a_config_of_the_package_by_its_name(trained, street_root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # without a file of that name
    args = arguments(street_root, tmp_path, "--eval-only", MODEL__WEIGHTS=trained[0])
    call(["--config-file", "street/resnet18.yaml", *args[2:]])
    found = read_json(tmp_path / "eval" / "results.json")["teacher"]
    assert flat(found) == pytest.approx(
        flat(read_json(trained[0] / "results_best.json")["teacher"])
    )


def flat(results):
    """Numbers by path; a class that never occurs has none."""
    found = {}
    for key, value in results.items():
        if isinstance(value, dict):
            found |= {f"{key}/{name}": x for name, x in flat(value).items()}
        elif value is not None:
            found[key] = value
    return found


def test_eval_only_as_a_command(trained, street_root, tmp_path):
    output, _ = trained
    final = output / "model_final.pth"
    done = run(arguments(street_root, tmp_path, "--eval-only", MODEL__WEIGHTS=final))
    assert done.returncode == 0, done.stderr
    found, expected = (
        read_json(x / "results.json")["teacher"] for x in (tmp_path / "eval", output)
    )
    assert found["detection"]["mAP"] == pytest.approx(expected["detection"]["mAP"])
    assert found["segmentation"]["mIoU"] == pytest.approx(expected["segmentation"]["mIoU"])
    assert "mIoU" in done.stdout
    assert not list(tmp_path.glob("*.pth"))


def test_an_evaluation_leaves_the_files_of_the_run_alone(trained, street_root, tmp_path):
    shutil.copytree(trained[0], tmp_path / "run")
    before = {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir()}
    final = tmp_path / "run" / "model_final.pth"
    flags = ("--eval-only",)
    call(arguments(street_root, tmp_path / "run", *flags, MODEL__WEIGHTS=final, SEED=3))
    after = {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir() if p.is_file()}
    assert after == before
    assert "SEED: 3" in (tmp_path / "run" / "eval" / "config.yaml").read_text()


def test_eval_only_needs_the_test_data_alone(trained, street_root, tmp_path):
    output, _ = trained
    unread = shutil.ignore_patterns("train", "cache")
    shutil.copytree(street_root, tmp_path / "data", ignore=unread)
    args = arguments(tmp_path / "data", tmp_path, MODEL__WEIGHTS=output / "model_final.pth")
    with pytest.raises(InputError, match="leftImg8bit/train"):
        call(args)
    done = run([*args[:2], "--eval-only", *args[2:]])
    assert done.returncode == 0, done.stderr
    found = read_json(tmp_path / "eval" / "results.json")["teacher"]
    assert flat(found) == pytest.approx(flat(read_json(output / "results.json")["teacher"]))


def test_eval_only_without_test_data_ends_with_one_line(trained, street_root, tmp_path):
    weights = trained[0] / "model_final.pth"
    args = arguments(street_root, tmp_path, "--eval-only", MODEL__WEIGHTS=weights)
    assert_one_line(run([*args, "DATASETS.TEST", "()"]), "DATASETS.TEST is empty")


def test_a_training_without_test_data(street_root, tmp_path):
    """The files of an evaluation are missing, the others are there; that is said once."""
    done = run(arguments(street_root, tmp_path, DATASETS__TEST="()"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("DATASETS.TEST is empty") == 1
    names = {path.name for path in tmp_path.iterdir()}
    assert {"model_final.pth", "model_0000003.pth", "curves.png", "pseudo_labels.png"} <= names
    absent = {"model_best.pth", "results.json", "results_best.json", "predictions.png"}
    assert not absent & names
    report = (tmp_path / "report.md").read_text()
    assert "## Results\n\nDATASETS.TEST is empty: there was no evaluation.\n" in report
    assert "## Labels" in report and "## Curves" in report and "## Detection" not in report
    assert "teacher/" not in (tmp_path / "metrics.json").read_text()


def test_boxes_of_bdd100k_alone(tmp_path):
    """A download of the 100K part and its boxes."""
    root = tmp_path / "data" / "street_bdd100k"
    scenes = {"num_train": 20, "num_val": 3, "size": (128, 64), "seed": 1}
    street.generate(root, **scenes, layout="bdd100k")
    shutil.rmtree(root / "images" / "10k")
    shutil.rmtree(root / "labels" / "sem_seg")
    names = {"DATASETS__TRAIN": "('street_bdd100k_train',)"}
    names |= {"DATASETS__TEST": "('street_bdd100k_val',)", "MODEL__TASKS": "['detection']"}
    done = run(arguments(tmp_path / "data", tmp_path / "out", **names))
    assert done.returncode == 0, done.stderr
    results = read_json(tmp_path / "out" / "results.json")["teacher"]
    assert results.keys() == {"detection", "geometric_mean"}
    counts = read_json(tmp_path / "out" / "label_subsets.json")
    assert (counts["num_images"], counts["labels"]["detection"]["count"]) == (15, 6)


def test_resume_goes_on(trained, street_root, tmp_path):
    output = tmp_path / "out"
    shutil.copytree(trained[0], output)
    call(arguments(street_root, output, "--resume", SOLVER__MAX_ITER=6))
    assert torch.load(output / "model_final.pth")["iteration"] == 5
    lines = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    assert max(line["iteration"] for line in lines) == 5
    assert (output / "last_checkpoint").read_text() == "model_0000005.pth"


def test_two_processes_on_the_cpu(street_root, tmp_path):
    flags = ("--num-gpus", "2", "--dist-url", "auto")
    done = run(arguments(street_root, tmp_path, *flags, SOLVER__MAX_ITER=2))
    assert done.returncode == 0, done.stderr
    assert torch.load(tmp_path / "model_final.pth")["iteration"] == 1
    results = read_json(tmp_path / "results.json")["teacher"]
    assert results["segmentation"]["mIoU"] > 0


# Input that cannot be used


def call(args):
    """The command's functions in this process."""
    spec = importlib.util.spec_from_file_location("train_net", COMMAND)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.launch_main(default_argument_parser().parse_args(list(map(str, args))))


BAD = {
    "unknown task": ({"MODEL__TASKS": ["depth"]}, ["MODEL.TASKS", "depth", "segmentation"]),
    "unknown method": ({"FIXMATCH__METHOD": "magic"}, ["FIXMATCH.METHOD", "magic", "Supervised"]),
    "unknown sampler": ({"DATALOADER__SAMPLING": "lucky"}, ["DATALOADER.SAMPLING", "lucky"]),
    "unknown labeled": ({"DATALOADER__LABELED": "some"}, ["DATALOADER.LABELED", "some", "any"]),
    "unknown dataset": ({"DATASETS__TRAIN": ["moon_train"]}, ["DATASETS", "moon_train"]),
    "too many labels": ({"TASKS__DETECTION__LABELS": 17}, ["17", "16"]),
    "explicit without others": (
        {"TASKS__DETECTION__LABELS": -1, "TASKS__SEGMENTATION__LABELS": -1},
        ["DATALOADER.SAMPLING", "explicit", "no image is unlabeled"],
    ),
    "missing checkpoint": ({"MODEL__WEIGHTS": "none/here.pth"}, ["MODEL.WEIGHTS", "none/here.pth"]),
    "wrong class count": ({"MODEL__SEM_SEG_HEAD__NUM_CLASSES": 3}, ["NUM_CLASSES", "3", "19"]),
    "wrong size": ({"INPUT__TRAIN_SIZE": "(64, 60)"}, ["INPUT.TRAIN_SIZE", "60"]),
    "wrong scale": ({"INPUT__SCALE_RANGE": "(2.0, 1.0)"}, ["INPUT.SCALE_RANGE"]),
    "no steps": ({"SOLVER__MAX_ITER": 0}, ["SOLVER.MAX_ITER", "0"]),
    "wrong type": ({"SOLVER__MAX_ITER": "many"}, ["the command line", "many"]),
    "unknown key": ({"SOLVER__NO_SUCH_KEY": 1}, ["SOLVER.NO_SUCH_KEY"]),
    "odd batch of labeled": ({"DATALOADER__LABELED_PER_BATCH": 4}, ["LABELED_PER_BATCH", "4"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(street_root, tmp_path, case):
    changed, named = BAD[case]
    with pytest.raises(InputError) as caught:
        call(arguments(street_root, tmp_path, **changed))
    message = str(caught.value)
    assert "\n" not in message
    assert all(name in message for name in named), message
    assert not list(tmp_path.glob("*.pth"))


def test_a_checkpoint_of_other_classes_is_named(trained, street_root, tmp_path):
    found = torch.load(trained[0] / "model_final.pth")
    key = next(k for k in found["model"] if k.endswith("predictor.weight"))
    found["model"][key] = found["model"][key][:7]
    other = tmp_path / "other.pth"
    torch.save(found, other)
    for flags in ((), ("--eval-only",)):
        with pytest.raises(InputError, match="predictor.weight.* other classes") as caught:
            call(arguments(street_root, tmp_path / "out", *flags, MODEL__WEIGHTS=other))
        assert "\n" not in str(caught.value)


def test_classes_in_another_order_start_a_training_with_a_warning(trained, street_root, tmp_path):
    found = torch.load(trained[0] / "model_final.pth")
    found["classes"]["detection"].reverse()
    other = tmp_path / "other.pth"
    torch.save(found, other)
    changed = {"MODEL__WEIGHTS": other, "SOLVER__MAX_ITER": 1}
    done = run(arguments(street_root, tmp_path / "out", **changed))
    assert done.returncode == 0, done.stderr
    assert "other classes in heads.detection.detector.head.cls_score (kept: " in done.stdout
    expected = r"other\.pth: it has other classes of detection \(in another order\)"
    with pytest.raises(InputError, match=expected) as caught:
        call(arguments(street_root, tmp_path / "out", "--eval-only", **changed))
    assert "\n" not in str(caught.value)


def assert_one_line(done, *named):
    assert done.returncode in (1, 2)
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    assert all(name in lines[0] for name in named), lines[0]
    assert "Traceback" not in done.stdout


def test_a_missing_folder_ends_with_one_line(tmp_path):
    done = run(arguments(tmp_path / "nowhere", tmp_path / "out"))
    assert_one_line(done, str(tmp_path / "nowhere"), "street")


def test_a_missing_config_file_ends_with_one_line(tmp_path):
    done = run(["--config-file", tmp_path / "none.yaml"])
    assert_one_line(done, "none.yaml", "--config-file")


def test_a_missing_folder_ends_with_one_line_in_two_processes(tmp_path):
    flags = ("--num-gpus", "2", "--dist-url", "auto")
    done = run(arguments(tmp_path / "nowhere", tmp_path / "out", *flags))
    # torch says that it ends the other process.
    done.stderr = "".join(x for x in done.stderr.splitlines(True) if not TORCH_LOG.match(x))
    assert_one_line(done, str(tmp_path / "nowhere"), "street")
