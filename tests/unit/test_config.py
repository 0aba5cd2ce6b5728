import ast
import logging
import re
from pathlib import Path

import pytest
from detectron2.config import get_cfg
from detectron2.projects.deeplab import add_deeplab_config

from mtfixmatch.config import add_mtfixmatch_config
from mtfixmatch.data.loader import build_train_loader, train_records
from mtfixmatch.engine import load_config
from mtfixmatch.engine.setup import choose_precision, resolve_config
from mtfixmatch.tasks import build_tasks
from mtfixmatch.tasks.base import TASK_REGISTRY
from mtfixmatch.utils.errors import InputError
from tests.support.helpers import CONFIGS, REPOSITORY, tiny_config

YAMLS = sorted(CONFIGS.rglob("*.yaml"))

# Table 10 of the paper, and its text in Sec. 3 and 4.
TABLE_10 = {
    "SOLVER.BASE_LR": 0.001,
    "SOLVER.LR_SCHEDULER_NAME": "WarmupPolyLR",
    "SOLVER.POLY_LR_POWER": 0.9,
    "SOLVER.WARMUP_ITERS": 0,
    "SOLVER.MOMENTUM": 0.9,
    "SOLVER.NESTEROV": True,
    "SOLVER.WEIGHT_DECAY": 0.0005,
    "SOLVER.WEIGHT_DECAY_NORM": 0.0,
    "SOLVER.IMS_PER_BATCH": 16,
    "SOLVER.MAX_ITER": 89250,
    "DATALOADER.SAMPLING": "explicit",
    "DATALOADER.LABELED_PER_BATCH": 8,
    "DATALOADER.LABELED": "any",
    "FIXMATCH.METHOD": "DenseFixMatch",
    "FIXMATCH.EMA_DECAY": 0.99,
    "FIXMATCH.RAMP_UP": 0.05,
    "FIXMATCH.UNSUPERVISED_ON": "unlabeled",
    "FIXMATCH.STRONG.NUM_OPERATIONS": 2,
    "FIXMATCH.STRONG.FLIP_PROB": 0.5,
    "FIXMATCH.STRONG.CUTOUT_AREA": (0.1, 0.3),
    "INPUT.SCALE_RANGE": (0.5, 2.0),
    "INPUT.TRAIN_SIZE": (800, 800),
    "INPUT.FLIP_PROB": 0.5,
    "INPUT.FORMAT": "RGB",
    "TASKS.DETECTION.LOSS_WEIGHT": 1.0,
    "TASKS.DETECTION.UNSUPERVISED_WEIGHT": 1.0,
    "TASKS.DETECTION.THRESHOLD": 0.5,
    "TASKS.DETECTION.BACKGROUND_WEIGHT": 0.0,
    "TASKS.SEGMENTATION.LOSS_WEIGHT": 1.0,
    "TASKS.SEGMENTATION.UNSUPERVISED_WEIGHT": 1.0,
    "TASKS.SEGMENTATION.THRESHOLD": 0.0,
    "MODEL.TASKS": ["detection", "segmentation"],
    "MODEL.RESNETS.DEPTH": 50,
    "MODEL.RETINANET.NUM_CONVS": 4,
    "MODEL.RETINANET.IN_FEATURES": ["p3", "p4", "p5", "p6", "p7"],
    "MODEL.RETINANET.FOCAL_LOSS_ALPHA": 0.25,
    "MODEL.RETINANET.FOCAL_LOSS_GAMMA": 2.0,
    "MODEL.RETINANET.BBOX_REG_LOSS_TYPE": "giou",
    "MODEL.SEM_SEG_HEAD.NAME": "DeepLabV3PlusHead",
    "MODEL.SEM_SEG_HEAD.COMMON_STRIDE": 4,
    "MODEL.SEM_SEG_HEAD.LOSS_TYPE": "cross_entropy",
}


def new_config():
    cfg = get_cfg()
    add_mtfixmatch_config(cfg)
    return cfg


def read(path):
    cfg = new_config()
    cfg.merge_from_file(str(path))
    return cfg


def get(cfg, key):
    for name in key.split("."):
        cfg = cfg[name]
    return cfg


def leaves(node, prefix=""):
    for name, value in node.items():
        if isinstance(value, type(node)):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name


@pytest.mark.parametrize("key", TABLE_10)
def test_base_config_has_the_values_of_the_paper(key):
    found = get(read(CONFIGS / "Base-FixMatch.yaml"), key)
    expected = TABLE_10[key]
    assert (tuple(found) if isinstance(expected, tuple) else found) == expected


def test_base_config_normalizes_as_the_paper():
    cfg = read(CONFIGS / "Base-FixMatch.yaml")
    assert [x / 255 for x in cfg.MODEL.PIXEL_MEAN] == pytest.approx([0.485, 0.456, 0.406])
    assert [x / 255 for x in cfg.MODEL.PIXEL_STD] == pytest.approx([0.229, 0.224, 0.225])
    assert cfg.MODEL.WEIGHTS.startswith("detectron2://ImageNetPretrained/torchvision/")
    sizes, ratios = cfg.MODEL.ANCHOR_GENERATOR.SIZES, cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS
    assert len(sizes) == 5 and {len(level) for level in sizes} == {3} and len(ratios[0]) == 3


def test_the_supervised_baseline_draws_batches_of_8():
    cfg = read(CONFIGS / "Base-MultiTask.yaml")
    found = (cfg.FIXMATCH.METHOD, cfg.DATALOADER.SAMPLING, cfg.SOLVER.IMS_PER_BATCH)
    assert found == ("Supervised", "uniform", 8)


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_every_yaml_resolves_and_is_short(path):
    cfg = read(path)
    assert cfg.MODEL.META_ARCHITECTURE == "MultiTaskNet"
    if not path.name.startswith("Base-"):
        assert cfg.DATASETS.TRAIN and cfg.DATASETS.TEST
        assert cfg.OUTPUT_DIR != "./output"
        assert len(path.read_text().splitlines()) <= 15


def test_output_folders_differ():
    folders = [read(path).OUTPUT_DIR for path in YAMLS if not path.name.startswith("Base-")]
    assert len(set(folders)) == len(folders) >= 2


def own_keys():
    """Those that are neither Detectron2's nor DeepLab's."""
    others = get_cfg()
    add_deeplab_config(others)
    return sorted(set(leaves(new_config())) - set(leaves(others)))


def read_names():
    """Names that the package reads, as attributes or as x["NAME"]; an assignment is no reading."""
    paths = (REPOSITORY / "mtfixmatch").rglob("*.py")
    trees = [ast.parse(path.read_text()) for path in paths if path.name != "config.py"]
    nodes = [n for tree in trees for n in ast.walk(tree)]
    attributes = [n for n in nodes if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Load)]
    indexed = [n.slice for n in nodes if isinstance(n, ast.Subscript)]
    names = {n.value for n in indexed if isinstance(n, ast.Constant)}
    return names | {n.attr for n in attributes} | {kind.own_key for _, kind in TASK_REGISTRY}


def test_every_key_is_read_by_the_package():
    names = read_names()
    assert [key for key in own_keys() if key.rsplit(".", 1)[-1] not in names] == []


def test_there_are_keys_to_look_for():
    assert {"FIXMATCH.METHOD", "TASKS.DETECTION.LABELS", "INPUT.TRAIN_SIZE"} <= set(own_keys())
    assert 30 < len(own_keys()) < 120


def test_images_are_rgb_whatever_the_format(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("mtfixmatch"), "propagate", True)
    cfg = resolve_config(str(CONFIGS / "street" / "resnet18.yaml"), ["INPUT.FORMAT", "BGR"])
    assert cfg.INPUT.FORMAT == "RGB"
    assert any("INPUT.FORMAT BGR has no effect" in text for text in caplog.messages)


def test_a_config_that_was_written_gives_no_warning(tmp_path, caplog, monkeypatch):
    """YAML has lists where Detectron2's defaults have tuples in tuples."""
    monkeypatch.setattr(logging.getLogger("mtfixmatch"), "propagate", True)
    cfg = resolve_config(str(CONFIGS / "street" / "resnet18.yaml"), [])
    path = tmp_path / "config.yaml"
    path.write_text(cfg.dump())
    caplog.clear()
    resolve_config(str(path), [])
    assert not any("no effect" in text for text in caplog.messages)


BAD = [
    ("MODEL.TASKS", ["detection", "depth"], "MODEL.TASKS is ['detection', 'depth']"),
    ("MODEL.TASKS", [], "MODEL.TASKS is []"),
    ("MODEL.TASKS", ["detection", "detection"], "each of them once"),
    ("FIXMATCH.METHOD", "mean_teacher", "FIXMATCH.METHOD is 'mean_teacher'"),
    ("FIXMATCH.UNSUPERVISED_ON", "labeled", "FIXMATCH.UNSUPERVISED_ON is 'labeled'"),
    ("SOLVER.AMP.PRECISION", "float8", "SOLVER.AMP.PRECISION is 'float8'"),
    ("INPUT.TRAIN_SIZE", (64, 100), "INPUT.TRAIN_SIZE is (64, 100)"),
    ("INPUT.TRAIN_SIZE", (0, 64), "INPUT.TRAIN_SIZE is (0, 64)"),
    ("INPUT.SCALE_RANGE", (2.0, 0.5), "INPUT.SCALE_RANGE is (2.0, 0.5)"),
    ("INPUT.RANGE_16BIT", (9, 9), "INPUT.RANGE_16BIT is (9, 9): it must be two whole numbers"),
    ("INPUT.RANGE_16BIT", (0, 65536), "INPUT.RANGE_16BIT is (0, 65536): it must be two whole"),
    ("INPUT.RANGE_16BIT", (0, "9"), "INPUT.RANGE_16BIT is (0, '9'): it must be two whole"),
    ("INPUT.RANGE_16BIT", (0, 9, 90), "INPUT.RANGE_16BIT is (0, 9, 90): it must be two whole"),
    ("INPUT.SCALE_RANGE", (0.0, 0.5), "INPUT.SCALE_RANGE is (0.0, 0.5)"),
    ("SOLVER.MAX_ITER", 0, "SOLVER.MAX_ITER is 0"),
    ("SOLVER.IMS_PER_BATCH", 0, "SOLVER.IMS_PER_BATCH is 0"),
    ("SOLVER.ACCUMULATION_STEPS", 0, "SOLVER.ACCUMULATION_STEPS is 0"),
    ("FIXMATCH.BURN_IN", 450, "FIXMATCH.BURN_IN is 450: with SOLVER.MAX_ITER 450 no step"),
    ("FIXMATCH.BURN_IN", -1, "FIXMATCH.BURN_IN is -1"),
    ("TASKS.DETECTION.MOVED_BOX", "circle", "TASKS.DETECTION.MOVED_BOX is 'circle'"),
    ("TASKS.DETECTION.NORMALIZER", "pixel", "it must be one of image, batch, running"),
    ("TASKS.SEGMENTATION.NORMALIZER", "running", "TASKS.SEGMENTATION.NORMALIZER is 'running'"),
    ("TASKS.DETECTION.GROUP_REGIONS", "boxes", "TASKS.DETECTION.GROUP_REGIONS is 'boxes'"),
    ("FIXMATCH.UNLABELED_WEAK", "teacher", "FIXMATCH.UNLABELED_WEAK is 'teacher'"),
    ("FIXMATCH.STRONG.ORDER", "random", "it must be one of drawn, photometric_first"),
    ("FIXMATCH.STRONG.FILL", "grey", "FIXMATCH.STRONG.FILL is 'grey'"),
    ("FIXMATCH.STRONG.IGNORE_ERASED", True, "FIXMATCH.STRONG.IGNORE_ERASED"),
    ("INPUT.SCALE_MODE", "both", "INPUT.SCALE_MODE is 'both'"),
    ("TASKS.DETECTION.HEAD", "YoloHead", "TASKS.DETECTION.HEAD is 'YoloHead'"),
    ("TASKS.DETECTION.KIND", "Boxes", "TASKS.DETECTION.KIND is 'Boxes'"),
    ("MODEL.SEM_SEG_HEAD.LOSS_TYPE", "hard_pixel_mining", "MODEL.SEM_SEG_HEAD.LOSS_TYPE is"),
    ("MODEL.RETINANET.BBOX_REG_LOSS_TYPE", "smooth_l1", "it must be one of giou"),
    ("DATALOADER.MAX_BROKEN", 1.5, "DATALOADER.MAX_BROKEN is 1.5"),
    ("DATASETS.MAX_FAULTS", -0.1, "DATASETS.MAX_FAULTS is -0.1"),
    ("DATASETS.TRAIN", ("town_train",), "there is no dataset 'town_train'"),
    ("DATASETS.TRAIN", (), "DATASETS.TRAIN is empty"),
    ("DATASETS.ROOT", "nowhere", "nowhere"),
    ("FIXMATCH.METHODS", "FixMatch", "FIXMATCH.METHODS"),
    ("TASKS.DEPTH.LABELS", 3, "TASKS.DEPTH.LABELS"),
    ("SOLVER.MAX_ITER", "many", "SOLVER.MAX_ITER"),
    ("MODEL.RETINANET.NUM_CLASSES", 5, "MODEL.RETINANET.NUM_CLASSES is 5"),
    ("MODEL.SEM_SEG_HEAD.NUM_CLASSES", 5, "MODEL.SEM_SEG_HEAD.NUM_CLASSES is 5"),
]


@pytest.mark.parametrize(("key", "value", "said"), BAD, ids=lambda x: str(x)[:30])
def test_bad_values_are_named(street_root, key, value, said):
    with pytest.raises(InputError) as error:
        tiny_config(street_root, key, value)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_training_needs_no_test_data_and_an_evaluation_no_training_data(street_root):
    assert tiny_config(street_root, "DATASETS.TEST", ()).DATASETS.TEST == ()
    cfg = tiny_config(street_root, "DATASETS.TRAIN", (), eval_only=True)
    assert [len(cfg.TASKS[x].CLASSES) for x in ("DETECTION", "SEGMENTATION")] == [8, 19]
    with pytest.raises(InputError, match=r"DATASETS\.TEST is empty: it must name"):
        tiny_config(street_root, "DATASETS.TEST", (), eval_only=True)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("DATALOADER.SAMPLING", "random", "DATALOADER.SAMPLING is 'random'"),
        ("DATALOADER.LABELED", "boxes", "DATALOADER.LABELED is 'boxes'"),
        ("DATALOADER.LABELED_PER_BATCH", 4, "DATALOADER.LABELED_PER_BATCH is 4"),
        ("TASKS.DETECTION.LABELS", 17, "17"),
        ("TASKS.SEGMENTATION.LABELS", 0, "TASKS.SEGMENTATION.LABELS"),
        ("DATASETS.LABEL_SUBSETS", "same", "same"),
    ],
)
def test_bad_values_of_the_data_are_named(street_root, key, value, said):
    labels = ["TASKS.DETECTION.LABELS", 8, "TASKS.SEGMENTATION.LABELS", 8]
    cfg = tiny_config(street_root, *labels, key, value)
    with pytest.raises(InputError) as error:
        tasks = build_tasks(cfg)
        build_train_loader(cfg, tasks, train_records(cfg, tasks))
    assert said in str(error.value)


@pytest.mark.parametrize("sampling, warned", [("implicit", ["detection"]), ("explicit", [])])
def test_labels_that_most_batches_will_not_have_are_warned_of(
    street_root, caplog, monkeypatch, sampling, warned
):
    """Of 16 images and 4 in a batch: 2 with boxes, 4 with maps."""
    labels = ("TASKS.DETECTION.LABELS", 2, "TASKS.SEGMENTATION.LABELS", 4)
    cfg = tiny_config(street_root, *labels, "DATALOADER.SAMPLING", sampling)
    tasks = build_tasks(cfg)
    monkeypatch.setattr(logging.getLogger("mtfixmatch"), "propagate", True)
    train_records(cfg, tasks)
    messages = {r.getMessage() for r in caplog.records if r.levelno == logging.WARNING}
    assert len(messages) == len(warned)
    for message, task in zip(messages, warned, strict=True):
        assert message.startswith(f"One batch of 2 has an image labeled for {task}")


def test_keys_of_detectron2_without_effect_are_named_in_one_warning(
    street_root, caplog, monkeypatch
):
    tiny_config(street_root)  # the first call sets up the logger, without propagation
    monkeypatch.setattr(logging.getLogger("mtfixmatch"), "propagate", True)
    caplog.clear()
    tiny_config(street_root)
    assert "no effect" not in caplog.text
    given = ("INPUT.MIN_SIZE_TRAIN", (640,), "TEST.AUG.ENABLED", True, "SEED", 5)
    tiny_config(street_root, *given)
    (warning,) = {r.getMessage() for r in caplog.records if "no effect" in r.getMessage()}
    names = "INPUT.MIN_SIZE_TRAIN, TEST.AUG.ENABLED"
    assert warning == f"These keys of Detectron2 have no effect: {names}"


@pytest.mark.parametrize(
    ("opts", "named"),
    [
        (
            ["INPUT.MIN_SIZE_TEST", 640, "INPUT.MAX_SIZE_TEST", 800],
            "INPUT.MIN_SIZE_TEST, INPUT.MAX_SIZE_TEST",
        ),
        (["MODEL.ROI_HEADS.NUM_CLASSES", 3], "MODEL.ROI_HEADS.NUM_CLASSES"),
        (["SOLVER.STEPS", (5, 7), "SOLVER.GAMMA", 0.5], "SOLVER.STEPS, SOLVER.GAMMA"),
        (["SOLVER.STEPS", (5, 7), "SOLVER.LR_SCHEDULER_NAME", "WarmupMultiStepLR"], ""),
        (["MODEL.RETINANET.NUM_CLASSES", 8], ""),
        (
            ["MODEL.RETINANET.NUM_CLASSES", 3, "TASKS.DETECTION.HEAD", "FCOSHead"],
            "MODEL.RETINANET.NUM_CLASSES",
        ),
        (["VIS_PERIOD", 100, "INPUT.CROP.SIZE", [0.5, 0.5]], "INPUT.CROP.SIZE, VIS_PERIOD"),
    ],
)
def test_keys_that_only_other_parts_of_detectron2_read(caplog, monkeypatch, opts, named):
    monkeypatch.setattr(logging.getLogger("mtfixmatch"), "propagate", True)
    resolve_config(str(CONFIGS / "street" / "resnet18.yaml"), opts)
    warnings = {x.split("effect: ")[1] for x in caplog.messages if "no effect" in x}
    assert warnings == ({named} if named else set())


def test_a_missing_config_file_is_named():
    with pytest.raises(InputError, match=r"--config-file nowhere\.yaml"):
        load_config("nowhere.yaml", [])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("FIXMATCH: {METHODS: fixmatch}", "METHODS"),
        ("SOLVER: {MAX_ITER: [1, 2]}", "MAX_ITER"),
        ("SOLVER: {MAX_ITER: 5", "own.yaml"),
        ("just words", "own.yaml"),
        ("_BASE_: nothing.yaml", "nothing.yaml"),
    ],
)
def test_a_bad_config_file_is_named(tmp_path, content, said):
    path = tmp_path / "own.yaml"
    path.write_text(content + "\n")
    with pytest.raises(InputError) as error:
        load_config(str(path), [])
    message = str(error.value)
    assert str(path) in message and said in message and "\n" not in message


def test_half_a_pair_is_refused(street_root):
    with pytest.raises(InputError, match="the command line"):
        tiny_config(street_root, "SEED")


def test_classes_and_options_are_filled_in(street_root):
    cfg = tiny_config(street_root, "FIXMATCH.METHOD", "FixMatch")
    assert cfg.FIXMATCH.METHOD == "FixMatch"
    assert [len(cfg.TASKS[x].CLASSES) for x in ("DETECTION", "SEGMENTATION")] == [8, 19]
    assert cfg.TASKS.SEGMENTATION.COLORS[0] == [128, 64, 128]  # Cityscapes' road
    assert tiny_config(street_root, "SEED", -1).SEED >= 0
    assert tiny_config(street_root, "SEED", 11).SEED == 11


def test_a_resumed_run_keeps_the_seed_that_it_has_drawn(street_root, tmp_path):
    opts = ("SEED", -1, "OUTPUT_DIR", str(tmp_path))
    first = tiny_config(street_root, *opts, resume=True)
    (tmp_path / "config.yaml").write_text(first.dump())
    assert tiny_config(street_root, *opts, resume=True).SEED == first.SEED
    assert tiny_config(street_root, *opts).SEED != first.SEED
    assert tiny_config(street_root, *opts, "SEED", 3, resume=True).SEED == 3
    (tmp_path / "config.yaml").write_text("VERSION: 2")
    with pytest.raises(InputError, match=r"config.yaml has no SEED"):
        tiny_config(street_root, *opts, resume=True)


def test_a_task_left_out_needs_no_classes(street_root):
    cfg = tiny_config(street_root, "MODEL.TASKS", ["segmentation"])
    assert [len(cfg.TASKS[x].CLASSES) for x in ("DETECTION", "SEGMENTATION")] == [0, 19]
    assert [task.name for task in build_tasks(cfg)] == ["segmentation"]


def test_without_a_gpu_the_device_is_the_cpu(street_root, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert tiny_config(street_root, "MODEL.DEVICE", "cuda").MODEL.DEVICE == "cpu"


@pytest.mark.parametrize(
    ("device", "enabled", "precision", "expected"),
    [
        ("cpu", False, "bfloat16", "float32"),
        ("cpu", True, "bfloat16", "bfloat16"),
        ("cuda", True, "bfloat16", "bfloat16"),
        ("cuda", True, "float16", "float16"),
        ("cuda", False, "float16", "float32"),
    ],
)
def test_precision(device, enabled, precision, expected):
    cfg = new_config()
    cfg.MODEL.DEVICE, cfg.SOLVER.AMP.ENABLED, cfg.SOLVER.AMP.PRECISION = device, enabled, precision
    assert str(choose_precision(cfg)) == f"torch.{expected}"


@pytest.mark.parametrize(
    ("amx", "avx", "expected"),
    [(1, 0, "bfloat16"), (0, 1, "bfloat16"), (0, 0, "float32")],
)
def test_automatic_precision_of_a_cpu(monkeypatch, amx, avx, expected):
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: bool(amx))
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: bool(avx))
    cfg = new_config()
    cfg.MODEL.DEVICE, cfg.SOLVER.AMP.ENABLED = "cpu", True
    assert str(choose_precision(cfg)) == f"torch.{expected}"


@pytest.mark.parametrize(("has_bfloat16", "expected"), [(True, "bfloat16"), (False, "float16")])
def test_automatic_precision_of_a_gpu(monkeypatch, has_bfloat16, expected):
    def supported(including_emulation=True):
        return has_bfloat16 or including_emulation

    monkeypatch.setattr("torch.cuda.is_bf16_supported", supported)
    cfg = new_config()
    cfg.MODEL.DEVICE, cfg.SOLVER.AMP.ENABLED = "cuda", True
    assert str(choose_precision(cfg)) == f"torch.{expected}"


def test_float16_needs_a_gpu():
    cfg = new_config()
    cfg.MODEL.DEVICE, cfg.SOLVER.AMP.ENABLED, cfg.SOLVER.AMP.PRECISION = "cpu", True, "float16"
    with pytest.raises(InputError, match=r"SOLVER\.AMP\.PRECISION is float16, which needs a GPU"):
        choose_precision(cfg)


def test_no_yaml_holds_a_path_of_a_machine():
    for path in YAMLS:
        assert not re.search(r"(^|[\s\"'])(/|~|[A-Z]:\\)", path.read_text()), Path(path).name
