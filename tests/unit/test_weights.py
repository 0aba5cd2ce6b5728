"""Start from weights of one's own: other classes, other tasks, and what MODEL.WEIGHTS may name."""

import hashlib
import json
import logging

import pytest
import torch
from detectron2.modeling import build_model

from mtfixmatch.engine.checkpoint import MultiTaskCheckpointer, export_model
from mtfixmatch.engine.setup import resolve_config
from mtfixmatch.runtime.zoo_files import ROOT_VARIABLE
from mtfixmatch.tasks.dense_head import DenseHead
from mtfixmatch.utils.errors import InputError
from tests.support.helpers import CONFIGS, SMALL

CLS = "heads.detection.detector.head.cls_score"
PREDICTOR = "heads.segmentation.head.predictor"
MAPS = ["road", "sky"]
FCOS = ("TASKS.DETECTION.HEAD", "FCOSHead", "MODEL.FCOS.NUM_CONVS", 1)


@pytest.fixture(autouse=True)
def no_zoo(tmp_path, monkeypatch):
    monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path / "zoo"))


def build(boxes, *opts, maps=MAPS, seed=0):
    """Return a network with these classes; all values of one seed differ from those of another."""
    given = [x for pair in SMALL.items() for x in pair]
    classes = ("TASKS.DETECTION.CLASSES", boxes, "TASKS.SEGMENTATION.CLASSES", maps)
    cfg = resolve_config(str(CONFIGS / "street" / "resnet18.yaml"), [*given, *classes, *opts])
    cfg.MODEL.DEVICE = "cpu"
    net = build_model(cfg)
    generator = torch.Generator().manual_seed(seed)
    for value in net.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.rand(value.shape, generator=generator) + seed)
    return net


def copy_of(net):
    return {key: value.clone() for key, value in net.state_dict().items()}


def save(path, net, classes=None):
    """Write the file of a network; with class names, unless they are None."""
    named = {} if classes is None else {"classes": classes}
    torch.save({"model": net.state_dict(), **named}, path)
    return str(path)


def start(net, path):
    MultiTaskCheckpointer(net).resume_or_load(str(path), resume=False)


def warnings(caplog):
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


def differing(found, expected):
    """Return the names of the tensors that are not the same to the last bit."""
    return {key for key in found if not torch.equal(found[key], expected[key])}


# Other classes

# Classes of the file, those of the network, the file's row of each of these (-1: none).
CLASSES = {
    "fewer": (["a", "b", "c"], ["a", "c"], [0, 2]),
    "more": (["a", "b"], ["x", "b", "y", "a"], [-1, 1, -1, 0]),
    "another order": (["a", "b", "c"], ["c", "a", "b"], [2, 0, 1]),
    "other names": (["a", "b"], ["x", "y"], [-1, -1]),
    "another one": (["a", "b"], ["a", "x"], [0, -1]),
}


@pytest.mark.parametrize("opts, groups", [((), 9), (FCOS, 1)], ids=["RetinaNet", "FCOS"])
@pytest.mark.parametrize("case", CLASSES)
def test_each_class_has_its_own_rows(tmp_path, caplog, case, opts, groups):
    old, new, rows = CLASSES[case]
    source, net = build(old, *opts, seed=1), build(new, *opts, seed=2)
    fresh = copy_of(net)
    path = save(tmp_path / "own.pth", source, {"detection": old, "segmentation": MAPS})
    start(net, path)
    theirs, found = source.state_dict(), net.state_dict()
    assert differing(found, theirs) == {f"{CLS}.weight", f"{CLS}.bias"}
    for key in (f"{CLS}.weight", f"{CLS}.bias"):
        assert len(found[key]) == groups * len(new)
        for group in range(groups):
            for k, row in enumerate(rows):
                place = group * len(new) + k
                own, other = fresh[key][place], theirs[key][group * len(old) + row]
                assert torch.equal(found[key][place], own if row < 0 else other)
    (text,) = warnings(caplog)
    kept = [name for name in new if name in old]
    assert path in text and f"{CLS} (kept: {', '.join(kept) or 'none'}; " in text


def test_the_warning_names_what_is_new_and_what_is_not_used(tmp_path, caplog):
    old = [f"old {i}" for i in range(12)]
    path = save(tmp_path / "own.pth", build(old), {"detection": old, "segmentation": ["sky"] * 2})
    start(build(["x", "y"], maps=["sky", "sea"]), path)
    (text,) = warnings(caplog)
    ten = ", ".join(old[:10])
    assert f"(kept: none; only in the config: x, y; only in the file: {ten}, and 2 more)" in text
    assert f"{PREDICTOR} (kept: sky; only in the config: sea; only in the file: none)" in text


def test_classes_of_a_map_keep_their_rows(tmp_path):
    source, net = build(["a"], maps=["road", "sky"], seed=1), build(["a"], maps=["sky"], seed=2)
    start(net, save(tmp_path / "own.pth", source, source.class_names))
    theirs, found = source.state_dict(), net.state_dict()
    assert differing(found, theirs) == {f"{PREDICTOR}.weight", f"{PREDICTOR}.bias"}
    assert torch.equal(found[f"{PREDICTOR}.weight"], theirs[f"{PREDICTOR}.weight"][1:])
    assert torch.equal(found[f"{PREDICTOR}.bias"], theirs[f"{PREDICTOR}.bias"][1:])


def test_a_file_without_names_and_with_another_number_starts_the_last_layer_anew(tmp_path, caplog):
    source, net = build(["a", "b", "c"], seed=1), build(["a", "b"], seed=2)
    fresh, path = copy_of(net), save(tmp_path / "own.pth", source)
    start(net, path)
    found = net.state_dict()
    last = differing(found, source.state_dict())
    assert last == {f"{CLS}.weight", f"{CLS}.bias"}
    assert all(torch.equal(found[key], fresh[key]) for key in last)
    (text,) = warnings(caplog)
    assert path in text and f"another number of classes in {CLS}, all start anew" in text
    assert "does not name its classes of segmentation" in text


def test_the_same_classes_need_no_warning(tmp_path, caplog):
    source, net = build(["a", "b"], seed=1), build(["a", "b"], seed=2)
    start(net, save(tmp_path / "own.pth", source, source.class_names))
    assert differing(net.state_dict(), source.state_dict()) == set()
    assert warnings(caplog) == []


def test_another_architecture_stays_an_error(tmp_path):
    path = save(tmp_path / "own.pth", build(["a", "b"]), {"detection": ["a", "b"]})
    for opts in (("MODEL.FPN.OUT_CHANNELS", 32), ("MODEL.RESNETS.DEPTH", 50)):
        for boxes in (["a", "b"], ["a"]):
            with pytest.raises(InputError, match=r"own\.pth: its .* another architecture") as error:
                start(build(boxes, *opts), path)
            assert "\n" not in str(error.value)


def test_names_that_do_not_fit_the_rows_are_an_error(tmp_path):
    """4 rows for each anchor, as the network's, but two names."""
    source = build(["a", "b", "c", "d"])
    path = save(tmp_path / "own.pth", source, {"detection": ["a", "b"]})
    with pytest.raises(InputError, match=r"own\.pth: its .*cls_score.* \(36, 64, 3, 3\).*\(18,"):
        start(build(["a", "b", "x", "y"]), path)


def test_a_head_that_names_no_layer_takes_no_other_classes(tmp_path, monkeypatch):
    monkeypatch.setattr(DenseHead, "class_layers", ())
    path = save(tmp_path / "own.pth", build(["a", "b"]), {"detection": ["a", "b"]})
    with pytest.raises(InputError, match=r"own\.pth: it has other classes of detection .*no layer"):
        start(build(["b", "a"]), path)


ONE_LINE = r"other classes of detection \((in another order|only in the config: .*)\): only a new"


@pytest.mark.parametrize("boxes", [["b", "a"], ["a", "x"], ["a"]])
def test_only_a_start_may_have_other_classes(tmp_path, boxes):
    source, folder = build(["a", "b"]), tmp_path / "run"
    folder.mkdir()
    path = save(tmp_path / "own.pth", source, source.class_names)
    with pytest.raises(InputError, match=rf"own\.pth: .*{ONE_LINE}"):
        MultiTaskCheckpointer(build(boxes)).load(path)
    MultiTaskCheckpointer(source, str(folder)).save("model_0000001", classes=source.class_names)
    with pytest.raises(InputError, match=rf"model_0000001\.pth: .*{ONE_LINE}"):
        MultiTaskCheckpointer(build(boxes), str(folder)).resume_or_load("", resume=True)


# Other tasks


def test_a_head_that_the_file_lacks_starts_anew(tmp_path, caplog):
    source = build(["a"], "MODEL.TASKS", ["detection"], seed=1)
    net = build(["a"], seed=2)
    fresh, path = copy_of(net), save(tmp_path / "own.pth", source, {"detection": ["a"]})
    with pytest.raises(InputError, match=r"own\.pth: .*no weights for the heads of segmentation"):
        MultiTaskCheckpointer(build(["a"])).load(path)
    caplog.clear()
    start(net, path)
    for key, value in net.state_dict().items():
        expected = fresh if key.startswith("heads.segmentation.") else source.state_dict()
        assert torch.equal(value, expected[key])
    (text,) = warnings(caplog)
    assert "no weights for the heads of segmentation, which start anew" in text
    assert "heads.segmentation" not in caplog.text


def test_a_task_of_another_name_is_another_task(tmp_path, caplog):
    source, net = build(["a"], seed=1), build(["a"], "MODEL.TASKS", ["detection"], seed=2)
    state = {key.replace("detection", "boxes"): x for key, x in source.state_dict().items()}
    torch.save({"model": state, "classes": {"boxes": ["a"]}}, tmp_path / "own.pth")
    start(net, tmp_path / "own.pth")
    (text,) = warnings(caplog)
    assert "no weights for the heads of detection, which start anew" in text
    assert "its heads of boxes, segmentation are not used" in text
    assert "cls_subnet" not in caplog.text


# What MODEL.WEIGHTS names


def test_a_full_checkpoint_gives_its_teacher(tmp_path):
    teacher, student, net = build(["a"], seed=1), build(["a"], seed=2), build(["a"], seed=3)
    checkpointer = MultiTaskCheckpointer(teacher, str(tmp_path), student=student)
    checkpointer.save("model_0000001", classes=teacher.class_names)
    start(net, tmp_path / "model_0000001.pth")
    assert differing(net.state_dict(), teacher.state_dict()) == set()


def test_a_folder_gives_its_best_weights(tmp_path, caplog):
    """The best, else the last, else the newest full checkpoint; each with another weight."""
    names = ["model_0000001.pth", "model_0000002.pth", "model_final.pth", "model_best.pth"]
    net = torch.nn.Linear(1, 1)
    for value, name in enumerate(names):
        torch.nn.init.constant_(net.weight, value)
        export_model(net, f"{tmp_path}/{name}")
    for value, name in reversed(list(enumerate(names))):
        with caplog.at_level(logging.INFO):
            start(net, tmp_path)
        assert net.weight.item() == value
        assert f"MODEL.WEIGHTS {tmp_path}: taking {tmp_path}/{name}" in caplog.text
        (tmp_path / name).unlink()
    with pytest.raises(InputError, match=r"the folder has no model_best\.pth, model_final\.pth or"):
        start(net, tmp_path)


def write_zoo(root, name, net):
    """Write a model zoo of one model by hand."""
    root.mkdir()
    path = save(root / "own.pth", net, net.class_names)
    content = (root / "own.pth").read_bytes()
    entry = {"weights": "own.pth", "facts": "own.json", "size": len(content)}
    entry["sha256"] = hashlib.sha256(content).hexdigest()
    (root / "zoo.json").write_text(json.dumps({name: entry}))
    return path


def test_a_published_name(tmp_path, caplog):
    source, net = build(["a", "b"], seed=1), build(["b", "a"], seed=2)
    path = write_zoo(tmp_path / "zoo", "street/own", source)
    start(net, "street/own")
    assert differing(net.state_dict(), source.state_dict()) == {f"{CLS}.weight", f"{CLS}.bias"}
    assert f"The checkpoint {path}: it has other classes" in warnings(caplog)[0]
    with open(path, "ab") as file:
        file.write(b"x")
    with pytest.raises(InputError, match=r"own\.pth: expected .* bytes with sha256"):
        start(net, "street/own")


def test_a_name_of_nothing_says_what_was_looked_for(tmp_path):
    net, text = (
        torch.nn.Linear(1, 1),
        "street/x does not exist: it is no file, no folder of a run and",
    )
    with pytest.raises(InputError, match=rf"{text} .*zoo/zoo\.json: .*{ROOT_VARIABLE}"):
        start(net, "street/x")
    write_zoo(tmp_path / "zoo", "street/own", build(["a"]))
    with pytest.raises(
        InputError, match=rf"{text} .*no model 'street/x', only street/own"
    ) as error:
        start(net, "street/x")
    assert "\n" not in str(error.value)
