"""A predictor from the files of a run gives what the evaluation of the run computes."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import mtfixmatch
from mtfixmatch.data.loader import build_eval_loader
from mtfixmatch.engine.visualize import prediction_tiles
from mtfixmatch.model_zoo.publish import publish
from mtfixmatch.utils.errors import InputError
from tests.support.engine_helpers import trained_run


@pytest.fixture(scope="module")
def trainer(street_root, tmp_path_factory):
    return trained_run(street_root, tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def predictor(trainer):
    return mtfixmatch.load(trainer.cfg.OUTPUT_DIR, device="cpu")


@pytest.fixture
def run(trainer, tmp_path):
    """A copy of the folder of the training, without its full checkpoints, which are large."""
    without = shutil.ignore_patterns("model_0*.pth", "events*")
    yield shutil.copytree(trainer.cfg.OUTPUT_DIR, tmp_path / "my_run", ignore=without)
    shutil.rmtree(tmp_path / "my_run")


def message(source):
    with pytest.raises(InputError) as error:
        mtfixmatch.load(source)
    assert "\n" not in str(error.value)
    return str(error.value)


def same(prediction, results):
    """Whether all results are equal, bit by bit."""
    boxes, expected = prediction.instances, results["instances"]
    pairs = [(boxes.pred_boxes.tensor, expected.pred_boxes.tensor)]
    pairs += [(boxes.get(x), expected.get(x)) for x in ("scores", "pred_classes")]
    pairs += [(prediction.results["sem_seg"], results["sem_seg"])]
    return all(torch.equal(a, b) for a, b in pairs)


def test_results_are_those_of_the_evaluation(trainer, predictor):
    records = trainer.eval_records
    with torch.no_grad():
        loader = build_eval_loader(trainer.cfg, records)
        expected = [result for batch in loader for result in predictor.model(batch)]
    paths = [record["file_name"] for record in records]
    assert len(expected[0]["instances"]) == 100
    found = predictor(paths)
    assert len(found) == len(expected) == len(paths)
    assert all(map(same, found, expected))
    assert [x.file_name for x in found] == paths
    assert all(map(same, predictor(iter(paths)), expected))
    assert same(predictor(paths[0]), expected[0])


def test_weights_are_those_of_the_best_step(trainer, run):
    saved = torch.load(run / "model_best.pth", weights_only=True)["model"]
    weights = mtfixmatch.load(str(run), device="cpu").model.state_dict()
    assert all(torch.equal(weights[name], saved[name]) for name in saved)
    (run / "model_best.pth").unlink()
    (run / "model_final.pth").unlink()
    os.symlink(f"{trainer.cfg.OUTPUT_DIR}/model_0000001.pth", run / "model_0000001.pth")
    full = torch.load(run / "model_0000001.pth", weights_only=True)["model"]  # the teacher
    weights = mtfixmatch.load(run, device="cpu").model.state_dict()
    assert all(torch.equal(weights[name], full[name]) for name in weights)


def test_forms_of_an_image(trainer, predictor, tmp_path):
    """The file of a phone, which lies on its side; turned, it has 64 rows and 128 columns."""
    pixels = np.asarray(Image.open(trainer.eval_records[0]["file_name"]))[:64, :128]
    exif = Image.Exif()
    exif[274] = 6  # rows are stored as columns
    sideways = Image.fromarray(np.rot90(pixels).copy())
    sideways.save(tmp_path / "phone.png", exif=exif)
    expected = predictor(pixels, color="RGB")
    assert expected.image.shape == (64, 128, 3) and expected.file_name == ""
    with Image.open(tmp_path / "phone.png") as phone:
        images = [tmp_path / "phone.png", str(tmp_path / "phone.png"), phone]
        for image in images:
            assert same(predictor(image), expected.results)
    assert same(predictor(pixels[..., ::-1], color="BGR"), expected.results)
    grey = np.full((32, 32), 7, np.uint8)
    assert (predictor(grey).image == 7).all() and predictor(grey).image.shape == (32, 32, 3)


@pytest.mark.parametrize(
    "image, color, text",
    [
        (np.zeros((4, 4, 3), np.uint8), None, 'an array needs color="RGB" or color="BGR"'),
        (np.zeros((4, 4, 3), np.uint8), "bgr", "color is 'bgr'"),
        (np.zeros((4, 4, 3)), "RGB", "an image is float64 (4, 4, 3), expected a path"),
        (np.zeros((4, 4, 4), np.uint8), "RGB", "an image is uint8 (4, 4, 4), expected"),
        (np.zeros((0, 4, 3), np.uint8), "RGB", "an image is uint8 (0, 4, 3), expected"),
        (Image.new("I;16", (4, 4)), None, "the PIL image has the mode I;16, expected"),
        (7, None, "an image is a int, expected a path"),
        ("nowhere.png", None, "cannot read the image nowhere.png: No such file"),
    ],
)
def test_images_of_another_form(predictor, image, color, text):
    with pytest.raises(InputError, match="^" + text.replace("(", r"\(").replace(")", r"\)")):
        predictor(image, color=color)


def test_maps_and_pictures(trainer, predictor):
    record = trainer.eval_records[0]
    prediction = predictor(record["file_name"])
    (name, classes), *others = prediction.maps.items()
    assert name == "segmentation" and not others
    assert torch.equal(classes, prediction.results["sem_seg"].argmax(dim=0).to(torch.uint8))
    for threshold in (0.0, 1.0):
        (tile,) = prediction_tiles(predictor.model, [record], predictor.tasks, threshold)
        assert np.array_equal(prediction.draw(threshold), tile)
    assert not np.array_equal(prediction.draw(0.0), prediction.draw(1.0))
    assert np.array_equal(prediction.draw(), prediction.draw(predictor.threshold))


def test_what_a_predictor_says_of_itself(run):
    predictor = mtfixmatch.load(run, device="cpu")
    assert {task: len(names) for task, names in predictor.classes.items()} == {
        "detection": 8,
        "segmentation": 19,
    }
    assert predictor.identity == f"my_run@{predictor.sha256[:12]}" and len(predictor.sha256) == 64


def test_published_models(run, tmp_path, monkeypatch):
    (run / "report.md").touch()
    zoo = tmp_path / "zoo"
    facts = publish(run, "street/tiny", str(zoo))
    monkeypatch.setenv("MTFIXMATCH_MODEL_ZOO", str(zoo))
    by_name = mtfixmatch.load("street/tiny", device="cpu")
    by_path = mtfixmatch.load(zoo / facts["weights"], device="cpu")
    assert by_name.identity == by_path.identity == f"street/tiny@{facts['sha256'][:12]}"
    (zoo / facts["weights"]).write_bytes(b"other")
    assert "expected" in message("street/tiny") and "sha256" in message("street/tiny")


def test_classes_from_the_weights(run):
    config = yaml.safe_load((run / "config.yaml").read_text())
    for task in ("DETECTION", "SEGMENTATION"):
        config["TASKS"][task]["CLASSES"] = []
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    assert len(mtfixmatch.load(run, device="cpu").classes["segmentation"]) == 19
    content = torch.load(run / "model_best.pth", weights_only=True)
    torch.save({"model": content["model"]}, run / "model_best.pth")
    assert message(run) == (
        f"{run}/model_best.pth: neither it nor its config has the classes (TASKS.DETECTION.CLASSES)"
    )


def test_what_is_no_network(run, tmp_path):
    assert message("no/such").startswith("no/such is no folder of a run, no checkpoint and no publ")
    (tmp_path / "empty").mkdir()
    assert "the folder has no model_best.pth" in message(tmp_path / "empty")
    (run / "config.yaml").rename(run / "other.yaml")
    assert f"{run}/config.yaml is missing" in message(run)
    (run / "other.yaml").rename(run / "config.yaml")
    (run / "model_best.json").write_text(json.dumps({"size": 3}))
    assert "'sha256' is missing" in message(run / "model_best.pth")
    (run / "model_best.json").unlink()
    (run / "model_best.pth").write_bytes(b"no weights")
    assert f"{run}/model_best.pth: its weights cannot be read" in message(run)


LOAD = """
import sys, mtfixmatch
predictor = mtfixmatch.load(sys.argv[1], device="cpu")
print(len(predictor(sys.argv[2]).instances))
"""


def test_a_fresh_process_without_the_data(trainer, tmp_path):
    env = {key: value for key, value in os.environ.items() if key != "DETECTRON2_DATASETS"}
    files = (trainer.cfg.OUTPUT_DIR, trainer.eval_records[0]["file_name"])
    command = [sys.executable, "-W", "ignore", "-c", LOAD, *files]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.stdout == "100\n", done.stderr
