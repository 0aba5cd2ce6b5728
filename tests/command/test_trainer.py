import copy
import json
import math
import os
import pickle
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from detectron2.utils.file_io import Detectron2Handler
from PIL import Image

from mtfixmatch.data.loader import build_train_loader, train_records
from mtfixmatch.data.mapper import TrainMapper
from mtfixmatch.data.samplers import Draw
from mtfixmatch.engine import evaluate_checkpoint
from mtfixmatch.engine.evaluation import geometric_mean
from mtfixmatch.engine.hooks import PseudoLabelDiagnostics, TeacherEvalHook
from mtfixmatch.methods import Supervised
from mtfixmatch.tasks import build_tasks
from mtfixmatch.utils.errors import InputError
from tests.support.engine_helpers import (
    FLOAT32,
    LossRecorder,
    build_trainer,
    copy_state,
    make_batch,
    run_config,
    run_step,
    same_state,
    train_and_record,
)
from tests.support.helpers import REPOSITORY, tiny_config

COCO_SMALL = REPOSITORY.parent / "shared" / "data" / "coco_small"
SETTING = ("DATALOADER.SAMPLING", "explicit", "DATASETS.LABEL_SUBSETS", "random")
LABELS = ("TASKS.DETECTION.LABELS", 6, "TASKS.SEGMENTATION.LABELS", 5)
# BatchNorm and dropout, whose states and draws a resumed run has to find again.
RANDOM = ("MODEL.SEM_SEG_HEAD.ASPP_DROPOUT", 0.3)
NUM_STEPS, SAVED = 20, 12


# Batches


def first_batches(cfg, count):
    tasks = build_tasks(cfg)
    records = train_records(cfg, tasks)
    batches = iter(build_train_loader(cfg, tasks, records))
    return [next(batches) for _ in range(count)]


@pytest.mark.parametrize("labeled", ["any", "all", "segmentation"])
def test_explicit_batches_have_the_exact_composition(street_root, tmp_path, labeled):
    cfg = run_config(street_root, tmp_path, *SETTING, *LABELS, "DATALOADER.LABELED", labeled)
    mixed = set()
    for step, batch in enumerate(first_batches(cfg, 6)):
        assert [item["draw"].position for item in batch] == [0, 1, 2, 3]
        assert {item["draw"].step for item in batch} == {step}
        for item in batch:
            has = {task for task, target in item["targets"].items() if target is not None}
            mixed.add(frozenset(has))
            counts = {"any": bool(has), "all": len(has) == 2, "segmentation": labeled in has}
            assert counts[labeled] == (item["draw"].position < 2)
    assert len(mixed) > 2


# Reproduction and resuming


@pytest.fixture(scope="module")
def uninterrupted(street_root, tmp_path_factory):
    """The config and the losses of a whole run with a checkpoint in its middle."""
    output = tmp_path_factory.mktemp("whole")
    cfg = run_config(
        street_root,
        output,
        *(*SETTING, *LABELS, *RANDOM, "SOLVER.MAX_ITER", NUM_STEPS),
        *("SOLVER.CHECKPOINT_PERIOD", SAVED, "SOLVER.CHECKPOINTS_TO_KEEP", 9),
    )
    return cfg, train_and_record(cfg)


def with_opts(cfg, *opts):
    cfg = cfg.clone()
    cfg.merge_from_list(list(opts))
    return cfg


def test_one_seed_gives_the_same_losses_with_any_number_of_workers(uninterrupted, tmp_path):
    cfg, losses = uninterrupted
    assert len(losses) == NUM_STEPS
    assert all(math.isfinite(value) for step in losses for value in step.values())
    again = with_opts(cfg, "OUTPUT_DIR", str(tmp_path), "DATALOADER.NUM_WORKERS", 1)
    assert train_and_record(again) == losses


def test_another_seed_gives_other_losses(uninterrupted, tmp_path):
    cfg, losses = uninterrupted
    other = with_opts(cfg, "OUTPUT_DIR", str(tmp_path), "SEED", 1, "SOLVER.MAX_ITER", 1)
    assert train_and_record(other)[0]["total_loss"] != losses[0]["total_loss"]


def test_resumed_losses_are_those_of_the_uninterrupted_run(uninterrupted, tmp_path):
    cfg, losses = uninterrupted
    name = f"model_{SAVED - 1:07d}.pth"
    shutil.copy(os.path.join(cfg.OUTPUT_DIR, name), tmp_path)
    (tmp_path / "last_checkpoint").write_text(name)
    resumed = train_and_record(with_opts(cfg, "OUTPUT_DIR", str(tmp_path)), resume=True)
    assert resumed == losses[SAVED:]
    finals = [torch.load(f"{d}/model_final.pth") for d in (cfg.OUTPUT_DIR, tmp_path)]
    assert same_state(finals[0]["model"], finals[1]["model"])


# Checkpoints


def files_of(folder):
    return sorted(name for name in os.listdir(folder) if name.endswith(".pth"))


def fake_evaluation(trainer, values):
    """Let the evaluations of a training give these geometric means."""
    left = iter(values)
    trainer.evaluate = lambda: {"teacher": {"geometric_mean": next(left)}}


@pytest.fixture(scope="module")
def saved(street_root, tmp_path_factory):
    """A run of 7 steps, evaluated after 3, 6 and 7 with .5, .4, .3; saved after 2, 4, 6, 7."""
    output = tmp_path_factory.mktemp("saved")
    cfg = run_config(
        street_root,
        output,
        *("SOLVER.MAX_ITER", 7, "TEST.EVAL_PERIOD", 3),
        *("SOLVER.CHECKPOINT_PERIOD", 2, "TASKS.DETECTION.NORMALIZER", "running"),
    )
    trainer = build_trainer(cfg)
    fake_evaluation(trainer, [0.5, 0.4, 0.3])
    states = {}
    keep = TeacherEvalHook._export

    def export(hook, name):
        states[name] = (hook.trainer.iter, copy_state(hook.trainer.teacher))
        keep(hook, name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TeacherEvalHook, "_export", export)
        trainer.train()
    return cfg, trainer, states


def test_only_the_newest_checkpoints_stay(saved):
    cfg, _, _ = saved
    expected = ["model_0000005.pth", "model_0000006.pth", "model_best.pth", "model_final.pth"]
    assert files_of(cfg.OUTPUT_DIR) == expected
    with open(os.path.join(cfg.OUTPUT_DIR, "last_checkpoint")) as file:
        assert file.read() == "model_0000006.pth"


def test_full_checkpoint_holds_all_that_resuming_needs(saved):
    cfg, trainer, _ = saved
    found = torch.load(os.path.join(cfg.OUTPUT_DIR, "model_0000006.pth"))
    assert found["iteration"] == 6
    assert same_state(found["student"], copy_state(trainer._trainer.student))
    assert same_state(found["model"], copy_state(trainer.teacher))
    assert not same_state(found["model"], found["student"])
    assert found["classes"]["detection"] == trainer.tasks[0].class_names
    state = found["trainer"]
    assert state["iteration"] == 6
    assert state["hooks"]["TeacherEvalHook"] == {"best": 0.5, "best_iteration": 2}
    assert state["hooks"]["LRScheduler"]["last_epoch"] == 7
    means = state["_trainer"]["normalizers"]["detection.means"]
    assert means[0] != 100 and means[1] == 100  # all images have boxes: none has a pseudo-label
    momenta = state["_trainer"]["optimizer"]["state"]
    assert len(momenta) == len(list(trainer._trainer.student.parameters()))
    assert state["hooks"]["BrokenFilesHook"] == {"messages": {}}


@pytest.mark.parametrize("name, step", [("model_best.pth", 2), ("model_final.pth", 6)])
def test_plain_checkpoints_are_the_teacher(saved, monkeypatch, name, step):
    cfg, _, states = saved
    path = os.path.join(cfg.OUTPUT_DIR, name)
    found = torch.load(path)
    assert found.keys() == {"model", "iteration", "classes"}
    assert len(found["classes"]["segmentation"]) == 19
    assert states[name][0] == found["iteration"] == step
    seen = []
    monkeypatch.setattr(
        DetectionCheckpointer, "_log_incompatible_keys", lambda _, x: seen.append(x)
    )
    model = build_model(cfg)
    assert not same_state(copy_state(model), states[name][1])
    DetectionCheckpointer(model).load(path)
    assert not any([seen[0].missing_keys, seen[0].unexpected_keys, seen[0].incorrect_shapes])
    assert same_state(copy_state(model), states[name][1])


def test_best_value_survives_resuming(saved, tmp_path):
    cfg, _, _ = saved
    shutil.copytree(cfg.OUTPUT_DIR, tmp_path / "out")
    cfg = with_opts(cfg, "OUTPUT_DIR", str(tmp_path / "out"), "SOLVER.MAX_ITER", 12)
    best = tmp_path / "out" / "model_best.pth"
    before = best.read_bytes()
    trainer = build_trainer(cfg, resume=True)
    assert trainer.start_iter == 7
    hook = next(h for h in trainer._hooks if isinstance(h, TeacherEvalHook))
    assert (hook.best, hook.best_iteration) == (0.5, 2)
    contents = []
    evaluations = iter([0.45, 0.6])

    def evaluate():
        contents.append(best.read_bytes())
        return {"teacher": {"geometric_mean": next(evaluations)}}

    trainer.evaluate = evaluate
    trainer.train()
    assert contents == [before, before]
    assert torch.load(best)["iteration"] == hook.best_iteration == 11
    assert hook.best == 0.6
    # A longer run goes on with the schedule of its own length.
    assert trainer.scheduler.max_iters == 12


def test_a_start_clears_away_what_a_killed_run_has_left(saved, tmp_path):
    cfg, _, _ = saved
    output = tmp_path / "out"
    shutil.copytree(cfg.OUTPUT_DIR, output)
    before = sorted(os.listdir(output))
    for name in ("model_0000003.pth", "model_0000006.pth.0123abcd.tmp"):
        (output / name).write_bytes(b"half")
    trainer = build_trainer(with_opts(cfg, "OUTPUT_DIR", str(output)), resume=True)
    trainer.train()
    assert sorted(os.listdir(output)) == before


def test_a_start_without_resume_replaces_what_is_there(saved, tmp_path):
    cfg, _, _ = saved
    shutil.copytree(cfg.OUTPUT_DIR, tmp_path / "out")
    opts = ("SOLVER.MAX_ITER", 2, "SOLVER.CHECKPOINT_PERIOD", 1)
    trainer = build_trainer(with_opts(cfg, "OUTPUT_DIR", str(tmp_path / "out"), *opts))
    trainer.evaluate = lambda: {"teacher": {"geometric_mean": 0.2}}
    trainer.train()
    expected = ["model_0000000.pth", "model_0000001.pth", "model_best.pth", "model_final.pth"]
    assert files_of(tmp_path / "out") == expected
    assert torch.load(tmp_path / "out" / "model_best.pth")["iteration"] == 1
    lines = (tmp_path / "out" / "metrics.json").read_text().splitlines()
    assert [json.loads(line)["iteration"] for line in lines] == [1]


def test_a_run_that_is_complete_resumes_to_nothing(saved):
    cfg, _, _ = saved
    trainer = build_trainer(cfg, resume=True)
    recorder = LossRecorder()
    trainer.register_hooks([recorder])
    before = {
        name: os.path.getmtime(f"{cfg.OUTPUT_DIR}/{name}") for name in files_of(cfg.OUTPUT_DIR)
    }
    trainer.train()
    assert recorder.steps == []
    after = {
        name: os.path.getmtime(f"{cfg.OUTPUT_DIR}/{name}") for name in files_of(cfg.OUTPUT_DIR)
    }
    assert before == after


def test_a_run_resumed_without_test_data_has_no_results(saved, tmp_path):
    """Those in its checkpoint are of another step; what the evaluations wrote stays."""
    cfg, _, _ = saved
    shutil.copytree(cfg.OUTPUT_DIR, tmp_path / "out")
    opts = ("OUTPUT_DIR", str(tmp_path / "out"), "DATASETS.TEST", (), "SOLVER.MAX_ITER", 9)
    best = (tmp_path / "out" / "model_best.pth").read_bytes()
    assert build_trainer(with_opts(cfg, *opts), resume=True).train() == {}
    assert torch.load(tmp_path / "out" / "model_final.pth")["iteration"] == 8
    assert (tmp_path / "out" / "model_best.pth").read_bytes() == best
    assert "DATASETS.TEST is empty" in (tmp_path / "out" / "report.md").read_text()


def test_the_best_teacher_is_chosen_by_the_tasks_with_labels(street_root, tmp_path):
    """No test image has boxes: the mIoU alone counts."""
    cfg = run_config(street_root, tmp_path, "SOLVER.MAX_ITER", 3, "TEST.EVAL_PERIOD", 1)
    trainer = build_trainer(cfg)
    for record in (records := [dict(record) for record in trainer.eval_records]):
        del record["annotations"]
    trainer.eval_records = records
    evaluate, figures = trainer.evaluate, []
    trainer.evaluate = lambda: figures.append(evaluate()) or figures[-1]
    trainer.train()
    values = [x["teacher"]["segmentation"]["mIoU"] for x in figures]
    assert [x["teacher"].keys() for x in figures] == [{"segmentation", "geometric_mean"}] * 3
    best = torch.load(tmp_path / "model_best.pth")
    assert best["iteration"] == values.index(max(values))
    assert best["classes"].keys() == {"detection", "segmentation"}
    report = (tmp_path / "report.md").read_text()
    assert "geometric mean of segmentation alone |" in report and "\n## Detection" not in report
    assert "No image of DATASETS.TEST is labeled for detection." in report


def test_weights_that_do_not_fit_or_exist_are_input_errors(saved, street_root, tmp_path):
    cfg, _, _ = saved
    missing = with_opts(cfg, "MODEL.WEIGHTS", str(tmp_path / "none.pth"))
    with pytest.raises(InputError, match=r"none\.pth does not exist"):
        evaluate_checkpoint(missing)
    path = tmp_path / "other.pth"
    found = torch.load(os.path.join(cfg.OUTPUT_DIR, "model_final.pth"))
    key = next(k for k in found["model"] if k.endswith("head.cls_score.weight"))
    found["model"][key] = found["model"][key][:9]
    torch.save(found, path)
    with pytest.raises(InputError, match="cls_score.* other classes"):
        build_trainer(with_opts(cfg, "MODEL.WEIGHTS", str(path)))
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(InputError, match=r"other\.pth cannot be read"):
        build_trainer(with_opts(cfg, "MODEL.WEIGHTS", str(path)))


def test_a_training_starts_from_the_teacher_of_a_full_checkpoint(saved, tmp_path):
    cfg, _, _ = saved
    path = os.path.join(cfg.OUTPUT_DIR, "model_0000006.pth")
    own = with_opts(cfg, "MODEL.WEIGHTS", path, "OUTPUT_DIR", str(tmp_path), "SEED", 5)
    trainer, found = build_trainer(own), torch.load(path)
    assert trainer.start_iter == 0
    for net in (trainer._trainer.student, trainer.teacher):
        assert same_state(copy_state(net), found["model"])


def test_backbones_come_from_detectron2s_address(saved, tmp_path, monkeypatch):
    cfg, _, _ = saved
    stem = torch.rand(64, 3, 7, 7).numpy()
    weights = {"model": {"stem.conv1.weight": stem}, "__author__": "a", "matching_heuristics": True}
    (tmp_path / "R-18.pkl").write_bytes(pickle.dumps(weights))

    def fetch(handler, path, **kwargs):
        if path.endswith("R-18.pkl"):
            return str(tmp_path / "R-18.pkl")
        raise OSError("no route to host")

    monkeypatch.setattr(Detectron2Handler, "_get_local_path", fetch)
    trainer = build_trainer(with_opts(cfg, "MODEL.WEIGHTS", "detectron2://a/R-18.pkl"))
    for net in (trainer._trainer.student, trainer.teacher):
        assert (net.backbone.bottom_up.stem.conv1.weight.detach().numpy() == stem).all()
    with pytest.raises(InputError, match="detectron2://b.pkl cannot be fetched: no route"):
        build_trainer(with_opts(cfg, "MODEL.WEIGHTS", "detectron2://b.pkl"))


@pytest.mark.parametrize("task, key", [("segmentation", "ce"), ("detection", "box")])
def test_a_loss_that_is_not_finite_stops_the_run(street_root, tmp_path, task, key):
    opts = ("SOLVER.MAX_ITER", 6, "SOLVER.CHECKPOINT_PERIOD", 2)
    trainer = build_trainer(run_config(street_root, tmp_path, *opts))
    head, names = trainer._trainer.student.heads[task], []
    right = head.losses

    def losses(*given):
        found = right(*given)
        return found | {key: found[key] * float("nan")} if trainer.iter == 3 else found

    head.losses = losses
    compute_gradients = trainer._trainer.compute_gradients

    def note(batch, images):
        names[:] = [item["file_name"] for item in batch]
        return compute_gradients(batch, images)

    trainer._trainer.compute_gradients = note
    with pytest.raises(FloatingPointError) as caught:
        trainer.train()
    message = str(caught.value)
    assert message.startswith(f"step 3, rank 0: loss_{task}_{key} is nan")
    assert all(name in message for name in names) and len(names) == 4
    assert files_of(tmp_path) == ["bad_step_0000003.pth", "model_0000001.pth"]
    found = torch.load(tmp_path / "model_0000001.pth")
    for part in ("model", "student"):
        assert all(value.isfinite().all() for value in found[part].values())
    resumed = build_trainer(trainer.cfg, resume=True)
    assert resumed.start_iter == 2


# Hooks


def test_diagnostics_appear_at_their_steps(street_root, tmp_path):
    opts = ("SOLVER.MAX_ITER", 5, "FIXMATCH.DIAGNOSTICS_PERIOD", 2, *LABELS)
    trainer = build_trainer(run_config(street_root, tmp_path, *opts))
    trainer.evaluate = lambda: {"teacher": {"geometric_mean": 0.0}}
    trainer.train()
    expected = {
        "detection": ("pseudo_boxes_per_image", "precision", "recall", "agreement"),
        "segmentation": ("valid_pixels", "accuracy", "agreement"),
    }
    weights = trainer.storage.history("lambda/detection").values()
    assert [step for _, step in weights] == [0, 1, 2, 3, 4]
    for task, names in expected.items():
        for name in names:
            values = trainer.storage.history(f"[metric]{task}/{name}").values()
            steps = [step for _, step in values]
            assert set(steps) <= {0, 2, 4} and steps, (task, name)
            assert all(v >= 0 for v, _ in values)
    valid = trainer.storage.history("[metric]segmentation/valid_pixels").values()
    assert [step for _, step in valid] == [0, 2, 4]


def test_diagnostics_compare_with_the_hidden_labels(street_root, tmp_path):
    """Pseudo-labels that are the hidden labels are right; those of another image are not."""
    opts = ("FIXMATCH.DIAGNOSTICS_PERIOD", 2, "INPUT.TRAIN_SIZE", (128, 128), *LABELS)
    cfg = run_config(street_root, tmp_path, *opts)
    tasks = build_tasks(cfg)
    mapper = TrainMapper(cfg, tasks)
    hidden = [r for r in train_records(cfg, tasks) if len(r.get("hidden", {})) == 2][:4]
    items = [mapper(r, Draw(i, 2, i)) for i, r in enumerate(hidden)]
    assert all(set(item["targets"].values()) == {None} for item in items)
    right = measured(tasks, items, [item["hidden_targets"] for item in items])
    assert right["[metric]segmentation/accuracy"] == 1
    assert right["[metric]detection/precision"] == right["[metric]detection/recall"] == 1
    wrong = measured(tasks, items, [item["hidden_targets"] for item in items[1:] + items[:1]])
    assert wrong["[metric]segmentation/accuracy"] < 0.95
    assert wrong["[metric]detection/recall"] < 0.9
    blind = [mapper(r, Draw(i, 3, i)) for i, r in enumerate(hidden)]
    figures = measured(tasks, blind, [item["hidden_targets"] for item in items])
    assert not any(name.endswith(("accuracy", "precision", "recall")) for name in figures)


def measured(tasks, items, pseudo):
    record = SimpleNamespace(batch=items, pseudo_labels=pseudo, agreement={})
    hook = PseudoLabelDiagnostics()
    given = {"step_record": record, "tasks": tasks, "method": Supervised(weak_flip_prob=0.0)}
    with EventStorage() as storage:
        hook.trainer = SimpleNamespace(storage=storage, **given)
        hook.after_step()
    return {key: value for key, (value, _) in storage.latest().items()}


def test_no_measurements_without_a_period(street_root, tmp_path):
    opts = ("SOLVER.MAX_ITER", 1, "FIXMATCH.DIAGNOSTICS_PERIOD", 0)
    trainer = build_trainer(run_config(street_root, tmp_path, *opts))
    run_step(trainer, make_batch(trainer, "bdsn"))
    assert trainer.step_record is None


# Learning


SCENES = (
    # Left edge of a car, of a person, height of the horizon, colour of the sky.
    (8, 96, 40, (90, 150, 220)),
    (56, 20, 48, (200, 200, 210)),
    (40, 8, 36, (120, 180, 230)),
    (20, 92, 52, (160, 170, 200)),
)
ROAD, SKY, PERSON, CAR = 7, 23, 24, 26  # Cityscapes ids


def draw_simple_scene(left, person, horizon, sky):
    """128x128: a sky, a road, a car of 56x36 and a person of 20x56 pixels; image, instance ids."""
    image = np.full((128, 128, 3), (80, 80, 80), np.uint8)
    ids = np.full((128, 128), ROAD, np.uint16)
    image[:horizon], ids[:horizon] = sky, SKY
    for x, y, w, h, color, label in (
        (left, 76, 56, 36, (200, 30, 30), CAR),
        (person, 56, 20, 56, (240, 220, 40), PERSON),
    ):
        image[y : y + h, x : x + w], ids[y : y + h, x : x + w] = color, 1000 * label
    return image, ids


@pytest.fixture(scope="module")
def simple_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("simple")
    for kind in ("leftImg8bit", "gtFine"):
        (root / "street" / kind / "train" / "town").mkdir(parents=True)
    for i, scene in enumerate(SCENES):
        image, ids = draw_simple_scene(*scene)
        labels = np.where(ids >= 1000, ids // 1000, ids).astype(np.uint8)
        for kind, name, pixels in (
            ("leftImg8bit", "leftImg8bit", image),
            ("gtFine", "gtFine_instanceIds", ids),
            ("gtFine", "gtFine_labelIds", labels),
        ):
            folder = root / "street" / kind / "train" / "town"
            Image.fromarray(pixels).save(folder / f"town_{i:06d}_000019_{name}.png")
    return root


def test_four_images_are_learned_by_heart(simple_root, tmp_path):
    cfg = tiny_config(
        simple_root,
        *("DATASETS.TEST", ("street_train",), "FIXMATCH.METHOD", "Supervised"),
        *("DATALOADER.SAMPLING", "uniform", "INPUT.TRAIN_SIZE", (128, 128)),
        *("INPUT.SCALE_RANGE", (1.0, 1.0), "INPUT.FLIP_PROB", 0.0),
        *("MODEL.FPN.OUT_CHANNELS", 64, "SOLVER.BASE_LR", 0.03, "SOLVER.MAX_ITER", 80),
        *("FIXMATCH.EMA_DECAY", 0.9, "TEST.PICTURES", 0, "OUTPUT_DIR", str(tmp_path)),
        *FLOAT32,
    )
    results = build_trainer(cfg).train()["teacher"]
    assert results["detection"]["mAP"] > 0.8, results
    assert results["segmentation"]["mIoU"] > 0.9, results
    expected = geometric_mean([results["detection"]["mAP"], results["segmentation"]["mIoU"]])
    assert results["geometric_mean"] == pytest.approx(expected)
    best = torch.load(tmp_path / "model_best.pth")
    assert best["iteration"] == 79


def coco_opts():
    key = "DATASETS.COCO_STYLE"
    classes = json.loads((COCO_SMALL / "sem_seg_classes.json").read_text())
    opts = [f"{key}.SEM_SEG_CLASSES", classes]
    for split in ("train", "val"):
        opts += [f"{key}.{split.upper()}.IMAGES", str(COCO_SMALL / "images" / split)]
        opts += [f"{key}.{split.upper()}.BOXES", str(COCO_SMALL / f"instances_{split}.json")]
        opts += [f"{key}.{split.upper()}.MAPS", str(COCO_SMALL / "sem_seg" / split)]
    return [*opts, "DATASETS.TRAIN", ("coco_style_train",), "DATASETS.TEST", ("coco_style_val",)]


@pytest.mark.skipif(not COCO_SMALL.is_dir(), reason="the folder shared/data/coco_small is absent")
def test_real_photographs(tmp_path):
    cfg = run_config(
        tmp_path,
        tmp_path / "out",
        *coco_opts(),
        *("DATASETS.LABEL_SUBSETS", "random", "SOLVER.MAX_ITER", 4, "TEST.PICTURES", 2),
        *("TASKS.DETECTION.LABELS", 13, "TASKS.SEGMENTATION.LABELS", 13),
        *("INPUT.TRAIN_SIZE", (128, 128), "MODEL.RETINANET.TOPK_CANDIDATES_TEST", 100),
    )
    trainer = build_trainer(cfg)
    assert len(trainer.records) == 26 and len(trainer.eval_records) == 27
    kinds = {("annotations" in r, "sem_seg_file_name" in r) for r in trainer.records}
    assert len(kinds) > 2
    recorder = LossRecorder()
    trainer.register_hooks([recorder])
    results = copy.deepcopy(trainer.train()["teacher"])
    assert len(recorder.steps) == 4
    assert all(math.isfinite(value) for step in recorder.steps for value in step.values())
    assert 0 <= results["detection"]["mAP"] <= 1 and 0 < results["segmentation"]["mIoU"] <= 1
    assert len(results["detection"]["per_class"]) == 12
    assert len(results["segmentation"]["per_class"]) == 27


def test_evaluation_without_weights_is_refused(street_root):
    with pytest.raises(InputError, match="MODEL.WEIGHTS is empty"):
        evaluate_checkpoint(tiny_config(street_root, "MODEL.WEIGHTS", ""))
    with pytest.raises(InputError, match="DATASETS.TEST is empty"):
        evaluate_checkpoint(tiny_config(street_root, "DATASETS.TEST", ()))
