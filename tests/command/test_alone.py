"""The folder of a run can be used without data: by this package and by plain Detectron2."""

import os
import subprocess
import sys

import cv2
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.engine import DefaultPredictor
from detectron2.modeling import build_model

from mtfixmatch.data.mapper import EvalMapper
from mtfixmatch.engine.setup import resolve_config
from tests.support.engine_helpers import build_trainer, copy_state, run_config, same_state

STEPS = 2


@pytest.fixture(scope="module")
def trainer(street_root, tmp_path_factory):
    """A finished training, with the files that the command leaves."""
    output = tmp_path_factory.mktemp("run")
    shown = ("MODEL.RETINANET.SCORE_THRESH_TEST", 0.0)
    cfg = run_config(street_root, output, "SOLVER.MAX_ITER", STEPS, *shown)
    (output / "config.yaml").write_text(cfg.dump())
    trainer = build_trainer(cfg)
    trainer.train()
    return trainer


@pytest.fixture(scope="module")
def run(trainer):
    """The folder of the training."""
    return trainer.cfg.OUTPUT_DIR


LOAD = """
import sys, torch
import mtfixmatch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.modeling import META_ARCH_REGISTRY, build_model

assert "MultiTaskNet" in META_ARCH_REGISTRY
config, path = sys.argv[1:]
cfg = get_cfg()
mtfixmatch.add_mtfixmatch_config(cfg)
cfg.merge_from_file(config)
cfg.DATASETS.ROOT = "nowhere"
model = build_model(cfg)
rest = DetectionCheckpointer(model).load(path)
saved = torch.load(path, weights_only=True)
weights = model.state_dict()
assert weights.keys() == saved["model"].keys()
assert all(torch.equal(weights[name], saved["model"][name]) for name in weights)
classes = {name.lower(): list(node.CLASSES) for name, node in cfg.TASKS.items()}
assert classes == rest["classes"] == saved["classes"]
assert {name: len(names) for name, names in classes.items()} == {"detection": 8, "segmentation": 19}
"""


def test_a_fresh_process_loads_a_run_without_its_data(run, tmp_path):
    env = {key: value for key, value in os.environ.items() if key != "DETECTRON2_DATASETS"}
    files = (f"{run}/config.yaml", f"{run}/model_final.pth")
    command = [sys.executable, "-W", "ignore", "-c", LOAD, *files]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def records_of(trainer, folder):
    """Two images of the evaluation, and one whose size is no multiple of 32."""
    records = trainer.eval_records[:2]
    crop = cv2.imread(records[0]["file_name"])[:87, :141]
    path = str(folder / "crop.png")
    cv2.imwrite(path, crop)
    return [*records, {"file_name": path, "image_id": "crop", "height": 87, "width": 141}]


def test_detectron2s_predictor_gives_the_results_of_the_evaluation(trainer, run, tmp_path):
    cfg = resolve_config(f"{run}/config.yaml", ["MODEL.WEIGHTS", f"{run}/model_final.pth"])
    predictor = DefaultPredictor(cfg)
    for record in records_of(trainer, tmp_path):
        with torch.no_grad():
            (expected,) = trainer.teacher.eval()([EvalMapper()(record)])
        result = predictor(cv2.imread(record["file_name"]))
        assert result.keys() == expected.keys()
        assert torch.equal(result["sem_seg"], expected["sem_seg"])
        instances, wanted = result["instances"], expected["instances"]
        assert len(instances) == len(wanted) > 0
        assert torch.equal(instances.pred_boxes.tensor, wanted.pred_boxes.tensor)
        assert torch.equal(instances.scores, wanted.scores)
        assert torch.equal(instances.pred_classes, wanted.pred_classes)


def test_detectron2_takes_the_teacher_from_a_full_checkpoint(trainer, run):
    path = f"{run}/model_{STEPS - 1:07d}.pth"
    model = build_model(trainer.cfg)
    DetectionCheckpointer(model).load(path)
    teacher, student = copy_state(trainer.teacher), copy_state(trainer._trainer.student)
    assert not same_state(teacher, student)
    assert same_state(model.state_dict(), teacher)
