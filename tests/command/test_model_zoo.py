"""Publish a tiny training, and load it from a folder and from an address."""

import copy
import hashlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model

from mtfixmatch import model_zoo
from mtfixmatch.data.datasets.cityscapes import cityscapes_metadata
from mtfixmatch.engine.report import training_seconds
from mtfixmatch.engine.setup import resolve_config
from mtfixmatch.model_zoo.publish import (
    DATA_KEYS,
    RUN_FILES,
    portable_config,
    publish,
    training_command,
    zoo_table,
)
from mtfixmatch.runtime.zoo_files import ROOT_VARIABLE
from mtfixmatch.utils.errors import InputError
from tests.support.engine_helpers import build_trainer, copy_state, run_config, same_state
from tests.support.helpers import CONFIGS, REPOSITORY

NAME = "street/quickstart"
LABELS = {"detection": 6, "segmentation": 4}


@pytest.fixture(scope="module")
def trained(street_root, tmp_path_factory):
    """Return the folder of a finished training of two steps, and its config."""
    output = tmp_path_factory.mktemp("trained")
    labels = [x for task, n in LABELS.items() for x in (f"TASKS.{task.upper()}.LABELS", n)]
    shown = ("MODEL.RETINANET.SCORE_THRESH_TEST", 0.0)
    cfg = run_config(street_root, output, "SOLVER.MAX_ITER", 2, *labels, *shown)
    (output / "config.yaml").write_text(cfg.dump())
    build_trainer(cfg).train()
    return output, cfg


@pytest.fixture(scope="module")
def zoo(trained, tmp_path_factory):
    """Return a zoo with that training, and the facts."""
    root = tmp_path_factory.mktemp("zoo")
    return root, publish(trained[0], NAME, str(root))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(ROOT_VARIABLE, raising=False)
    return tmp_path / "cache" / "mtfixmatch"


@pytest.fixture
def copied(zoo, tmp_path):
    """Return a copy of the zoo that a test may change, and the facts."""
    return shutil.copytree(zoo[0], tmp_path / "copied"), zoo[1]


@pytest.fixture
def served(copied):
    """Return the copy, its address, and the list of requested file names."""
    root, _ = copied
    requests = []

    class Handler(SimpleHTTPRequestHandler):
        def log_request(self, *args):
            requests.append(self.path.split("/")[-1])

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=root))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield root, f"http://127.0.0.1:{server.server_port}", requests
    server.shutdown()
    thread.join()
    server.server_close()


def read_json(path):
    return json.loads(path.read_text())


def image():
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (3, 70, 100), generator=generator, dtype=torch.uint8)
    return {"image": pixels, "height": 35, "width": 50}


def tensors_of(model):
    """Return the outputs of a model for the image."""
    (result,) = model([image()])
    boxes = result["instances"]
    assert len(boxes) > 0
    return [result["sem_seg"], boxes.pred_boxes.tensor, boxes.scores, boxes.pred_classes]


@pytest.fixture(scope="module")
def expected(trained):
    """Return the outputs of the training's own checkpoint, loaded by Detectron2."""
    output, cfg = trained
    model = build_model(cfg)
    DetectionCheckpointer(model).load(str(output / "model_best.pth"))
    return tensors_of(model.eval())


def same(outputs, expected):
    return all(torch.equal(a, b) for a, b in zip(outputs, expected, strict=True))


def test_the_file_has_its_hash_in_its_name_and_the_weights_inside(trained, zoo):
    root, facts = zoo
    content = (root / facts["weights"]).read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    assert facts["weights"] == f"model_street_quickstart_{digest[:8]}.pth"
    assert (facts["sha256"], facts["size"]) == (digest, len(content))
    found = torch.load(root / facts["weights"], weights_only=True)
    wanted = torch.load(trained[0] / "model_best.pth", weights_only=True)
    assert found.keys() == {"model", "classes"} and type(found["model"]) is dict
    assert same_state(found["model"], wanted["model"])
    assert found["classes"] == wanted["classes"] == facts["classes"]


def test_the_facts_are_those_of_the_training(trained, zoo):
    root, facts = zoo
    (path,) = root.glob("model_*.json")
    assert path.stem + ".pth" == facts["weights"]
    assert read_json(path) == facts == model_zoo.get_facts(NAME, root=root)
    results = read_json(trained[0] / "results_best.json")
    assert (facts["metrics"], facts["iteration"]) == (results["teacher"], 1)
    assert facts["primary_metrics"] == {"detection": "mAP", "segmentation": "mIoU"}
    assert {task: labels["count"] for task, labels in facts["labels"].items()} == LABELS
    names = cityscapes_metadata()
    assert facts["classes"]["detection"] == names["thing_classes"]
    assert facts["classes"]["segmentation"] == names["stuff_classes"]


def test_no_file_contains_a_path_of_this_machine(trained, street_root, zoo):
    for path in zoo[0].glob("*.json"):
        for folder in (trained[0], street_root, REPOSITORY):
            assert str(folder) not in path.read_text()


def test_the_index_names_the_files(zoo):
    root, facts = zoo
    (entry,) = read_json(root / "zoo.json").values()
    assert {root / entry["weights"], root / entry["facts"], root / "zoo.json"} == {*root.iterdir()}
    assert entry["sha256"] == facts["sha256"]
    assert model_zoo.get_checkpoint_url(NAME, root=root) == str(root / facts["weights"])


def test_more_models_share_an_index(trained, copied):
    root, first = copied
    second = publish(trained[0], "other", str(root))
    again = publish(trained[0], f"{NAME}.yaml", str(root))
    assert [*read_json(root / "zoo.json")] == ["other", NAME]
    # The hash depends on the weights alone, not on the name.
    assert first["sha256"] == second["sha256"] == again["sha256"]
    assert first == again


def test_get_from_a_folder(zoo, expected):
    model = model_zoo.get(NAME, trained=True, device="cpu", root=zoo[0])
    assert not model.training and model.device.type == "cpu"
    assert same(tensors_of(model), expected)


def test_get_from_an_address_downloads_once(served, cache, expected):
    _, address, requests = served
    for _ in range(2):
        model = model_zoo.get(f"{NAME}.yaml", trained=True, root=address)
        assert same(tensors_of(model), expected)
    (cached,) = cache.glob("*.pth")
    assert requests.count(cached.name) == 1
    cached.write_bytes(b"damaged")
    assert same(tensors_of(model_zoo.get(NAME, trained=True, root=f"{address}/")), expected)
    assert requests.count(cached.name) == 2


@pytest.mark.parametrize("where", ["folder", "address"])
def test_a_training_starts_from_a_name(trained, served, tmp_path, monkeypatch, where):
    root, address, _ = served
    monkeypatch.setenv(ROOT_VARIABLE, str(root) if where == "folder" else address)
    cfg = trained[1].clone()
    cfg.merge_from_list(["MODEL.WEIGHTS", NAME, "OUTPUT_DIR", str(tmp_path / "out"), "SEED", 7])
    trainer = build_trainer(cfg)
    wanted = torch.load(trained[0] / "model_best.pth")["model"]
    for net in (trainer._trainer.student, trainer.teacher):
        assert same_state(copy_state(net), wanted)


def damage(path, kind):
    content = bytearray(path.read_bytes())
    if kind == "truncated":
        del content[-1000:]
    else:
        content[len(content) // 2] ^= 1
    path.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("kind", ["changed", "truncated"])
@pytest.mark.parametrize("where", ["folder", "address"])
def test_weights_that_differ_from_the_index_are_refused(served, zoo, cache, kind, where):
    root, address, _ = served
    facts = zoo[1]
    digest = damage(root / facts["weights"], kind)
    with pytest.raises(InputError) as raised:
        model_zoo.get(NAME, trained=True, root=root if where == "folder" else address)
    for part in (facts["weights"], facts["sha256"], str(facts["size"]), digest):
        assert part in str(raised.value)
    assert not [path for path in cache.glob("*") if path.suffix != ".yaml"]


def test_missing_models_and_files_are_named(zoo, served, tmp_path):
    with pytest.raises(InputError, match=f"no model 'street', only {NAME}"):
        model_zoo.get("street", trained=True, root=zoo[0])
    with pytest.raises(InputError, match="no config street/nothing.yaml .*street/quickstart.yaml"):
        model_zoo.get("street/nothing.yaml")
    with pytest.raises(InputError, match=f"'some': .*zoo.json.*No such file.*{ROOT_VARIABLE}"):
        model_zoo.get_config("some", root=tmp_path)
    root, address, _ = served
    next(root.glob("*.pth")).unlink()
    for place in (root, address):
        with pytest.raises(InputError, match=r"\.pth: cannot be read"):
            model_zoo.get(NAME, trained=True, root=place)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "zoo.json: is not valid JSON"),
        ("[]", "zoo.json: a JSON object is expected"),
        ('{"x": {"weights": "a.pth"}}', "weights, facts, size and sha256 are expected"),
        (
            '{"x": {"weights": "../a.pth", "facts": "a.json", "size": 1, "sha256": ""}}',
            "../a.pth of x is not the name of a file",
        ),
        (
            '{"x": {"weights": "a.pth", "facts": "zoo.json", "size": 1, "sha256": ""}}',
            "zoo.json: the config of a model is expected",
        ),
    ],
)
def test_an_index_that_is_not_valid(tmp_path, content, message):
    (tmp_path / "zoo.json").write_text(content)
    with pytest.raises(InputError, match=re.escape(message)):
        model_zoo.get("x", trained=True, root=tmp_path)


@pytest.mark.parametrize("name", RUN_FILES)
def test_an_unfinished_training_is_refused(trained, tmp_path, name):
    run = shutil.copytree(trained[0], tmp_path / "run")
    (run / name).unlink()
    with pytest.raises(InputError, match=f"{name} is missing"):
        publish(run, "", str(tmp_path / "zoo"))
    assert not (tmp_path / "zoo").exists()


def test_files_of_different_trainings_are_refused(trained, tmp_path):
    run = shutil.copytree(trained[0], tmp_path / "run")
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("OUT_CHANNELS: 64\n", "OUT_CHANNELS: 32\n"))
    with pytest.raises(InputError, match="do not fit the config"):
        publish(run, "", str(tmp_path / "zoo"))
    shutil.copy(trained[0] / "config.yaml", run)
    labels = read_json(run / "label_subsets.json")
    del labels["labels"]["detection"]
    (run / "label_subsets.json").write_text(json.dumps(labels))
    with pytest.raises(InputError, match="different trainings, 'detection' is missing"):
        publish(run, "", str(tmp_path / "zoo"))
    (run / "label_subsets.json").write_text("{}")
    with pytest.raises(InputError, match="different trainings, 'labels' is missing"):
        publish(run, "", str(tmp_path / "zoo"))


@pytest.mark.parametrize("index", [True, False])
def test_a_damaged_checkpoint_is_refused(trained, tmp_path, index):
    run = shutil.copytree(trained[0], tmp_path / "run")
    (run / "model_best.pth").write_bytes(b"no checkpoint")
    if not index:
        (run / "checkpoints.json").unlink()
    with pytest.raises(InputError, match=r"model_best\.pth(: .* cannot be read| is damaged)"):
        publish(run, "", str(tmp_path / "zoo"))


@pytest.mark.parametrize("name", ["../up", "a b", "/a", "a/", ".a"])
def test_names_that_cannot_be_a_file_are_refused(trained, tmp_path, name):
    with pytest.raises(InputError, match=re.escape(repr(name))):
        publish(trained[0], name, str(tmp_path))


def test_an_output_that_cannot_be_written_is_named(trained, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file cannot be made"):
        publish(trained[0], "", str(tmp_path / "file"))
    with pytest.raises(InputError, match="--output https://127.0.0.1/zoo: .* local folder"):
        publish(trained[0], "", "https://127.0.0.1/zoo")


def test_no_dataset_is_needed(zoo, tmp_path, expected):
    """A fresh process in an empty folder gets the zoo from the environment variable."""
    torch.save({"image": image(), "expected": expected}, tmp_path / "expected.pt")
    code = f"""
import torch
from mtfixmatch import model_zoo
saved = torch.load("expected.pt")
(result,) = model_zoo.get({NAME!r}, trained=True, device="cpu")([saved["image"]])
boxes = result["instances"]
outputs = [result["sem_seg"], boxes.pred_boxes.tensor, boxes.scores, boxes.pred_classes]
assert all(map(torch.equal, outputs, saved["expected"]))
"""
    env = {**os.environ, ROOT_VARIABLE: str(zoo[0]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_classes_are_the_published_ones(copied):
    """The classes of a dataset that defines them in its files, which are not here."""
    root, facts = copied
    config = copy.deepcopy(facts["config"])
    config["DATASETS"]["TRAIN"] = ["coco_style_train"]
    names = config["TASKS"]["DETECTION"]["CLASSES"] = [f"thing {i}" for i in range(8)]
    (path,) = root.glob("model_*.json")
    path.write_text(json.dumps({**facts, "config": config}))
    model = model_zoo.get(NAME, trained=True, root=root)
    assert model.head("detection").num_classes == 8
    cfg = model_zoo.get_config(NAME, trained=True, root=root)
    assert list(cfg.TASKS.DETECTION.CLASSES) == names
    config["TASKS"]["DETECTION"]["CLASSES"] = ["one"]
    path.write_text(json.dumps({**facts, "config": config}))
    with pytest.raises(InputError, match=r"\.pth: its weights do not fit the config"):
        model_zoo.get(NAME, trained=True, root=root)


def test_the_catalogs_are_left_alone(zoo):
    before = dict(DatasetCatalog), dict(MetadataCatalog)
    model_zoo.get(NAME, trained=True, root=zoo[0])
    assert (dict(DatasetCatalog), dict(MetadataCatalog)) == before


def test_the_config_of_the_training(trained, zoo):
    root, facts = zoo
    cfg = model_zoo.get_config(NAME, root=root)
    assert portable_config(cfg) == portable_config(trained[1]) == facts["config"]
    assert cfg.MODEL.WEIGHTS == ""
    trained_cfg = model_zoo.get_config(NAME, trained=True, root=root)
    assert str(root / facts["weights"]) == trained_cfg.MODEL.WEIGHTS
    file = model_zoo.get_config_file(NAME, root=root)
    assert portable_config(resolve_config(file, [])) == facts["config"]
    model = model_zoo.get(NAME, root=root)
    assert model.training


def test_a_zoo_cannot_set_a_base_config_or_trust_pickles(copied):
    root, facts = copied
    (path,) = root.glob("model_*.json")
    model = {**facts["config"]["MODEL"], "TRUST_PICKLE": True}
    config = {**facts["config"], "_BASE_": "nowhere.yaml", "MODEL": model}
    path.write_text(json.dumps({**facts, "config": config}))
    cfg = model_zoo.get_config(NAME, root=root)
    assert not cfg.MODEL.TRUST_PICKLE
    assert portable_config(cfg) == facts["config"]


def test_settings_of_one_machine_are_left_out():
    places = {
        "OUTPUT_DIR": "my/out",
        "DATASETS.ROOT": "my/data",
        "DATASETS.CACHE_DIR": "/machine/cache",
        "DATASETS.LABEL_MANIFEST": "my/labels.json",
        "DATALOADER.DECODED_STORE": "my/store",
        "DATASETS.COCO_STYLE.TRAIN.IMAGES": "my/images",
        "DATASETS.PROPOSAL_FILES_TEST": ("/machine/file",),
        "MODEL.WEIGHTS": "/machine/resnet.pth",
        "MODEL.DEVICE": "cuda",
    }
    opts = [x for pair in places.items() for x in pair]
    config = portable_config(resolve_config(str(CONFIGS / "street" / "resnet18.yaml"), opts))
    text = json.dumps(config)
    assert not re.search("my/|machine|cuda", text)
    assert config["MODEL"]["WEIGHTS"] == "" and config["FIXMATCH"]["METHOD"] == "DenseFixMatch"


def test_the_command_makes_the_same_config(trained, zoo):
    _, facts = zoo
    *start, file = shlex.split(facts["command"])[:4]
    assert start == ["python", "projects/train_net.py", "--config-file"]
    assert file == f"configs/{facts['config_file']}" == "configs/street/resnet18.yaml"
    cfg = resolve_config(str(REPOSITORY / file), shlex.split(facts["command"])[4:])
    for task in LABELS:  # the classes come from the data again
        for key in DATA_KEYS:
            cfg.TASKS[task.upper()][key] = trained[1].TASKS[task.upper()][key]
    assert portable_config(cfg) == facts["config"]


def test_a_config_with_an_own_task_has_no_command(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text(
        f'_BASE_: "{CONFIGS / "street" / "resnet18.yaml"}"\n'
        "MODEL: {TASKS: [detection, drivable]}\n"
        "TASKS: {DRIVABLE: {KIND: Segmentation, CLASSES: [road, other]}}\n"
    )
    facts = training_command(resolve_config(str(path), []))
    assert facts == {
        "config_file": "street/resnet18.yaml",
        "command": None,
        "not_in_package": ["task drivable"],
    }
    # A task that is defined but not trained does not matter.
    cfg = resolve_config(str(path), ["MODEL.TASKS", ["detection"], "SEED", 3])
    command = training_command(cfg)["command"]
    assert shlex.split(command)[4:] == ["MODEL.TASKS", "['detection']", "SEED", "3"]
    cfg.DATASETS.TEST = ("own_val",)
    facts = training_command(cfg)
    assert (facts["command"], facts["not_in_package"]) == (None, ["dataset own_val"])


def test_training_seconds():
    """20 steps of .5 s, then 20 of .25 s, the first of which a resumed run repeated."""
    lines = [(19, 0.5), (29, 9.0), (39, 9.0), (29, 0.25), (39, 0.25)]
    history = [{"iteration": i, "time": t} for i, t in lines]
    assert training_seconds([*history, {"iteration": 39, "lr": 1.0}]) == 20 * 0.5 + 20 * 0.25
    assert training_seconds([]) is None


def test_the_table_has_the_figures(copied):
    root, facts = copied
    (path,) = root.glob("model_*.json")
    boxes = {"mAP": 0.25, "per_class": {"car": 0.25, "bus": None}}
    metrics = {"detection": boxes, "segmentation": {"mIoU": None}, "geometric_mean": 0.5}
    path.write_text(json.dumps({**facts, "metrics": metrics, "training_seconds": 3725.2}))
    header, _, row, _, note = zoo_table(str(root)).splitlines()
    assert note == (
        "street/quickstart: mAP is a mean over 1 of 2 classes: bus never occurs in DATASETS.TEST"
    )
    titles, cells = ([c.strip() for c in x.split("|")[1:-1]] for x in (header, row))
    assert dict(zip(titles, cells, strict=True)) == {
        "model (config)": "[street/quickstart](configs/street/resnet18.yaml)",
        "detection labels": "6",
        "segmentation labels": "4",
        "mAP": "0.250",
        "mIoU": "",
        "geometric mean": "0.500",
        "training": "1:02:05",
        "command": f"`{facts['command']}`",
        "file": facts["weights"],
    }


def command():
    spec = importlib.util.spec_from_file_location("publish", REPOSITORY / "projects" / "publish.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_command(trained, tmp_path, capsys):
    module = command()
    args = [str(trained[0]), "--table", "--output", str(tmp_path / "zoo")]
    module.main(module.parse_args(args))
    line, table = capsys.readouterr().out.split("\n", 1)
    # Without --name the model has the name of its folder.
    name = trained[0].name
    (file,) = (tmp_path / "zoo").glob(f"model_{name}_*.pth")
    assert line == f"{name}: {file}"
    assert file.name in table
    with pytest.raises(SystemExit):
        module.parse_args([])


def test_configs_by_name():
    names = model_zoo.config_names()
    assert "cityscapes/dense_fixmatch.yaml" in names and "Base-FixMatch.yaml" not in names
    for name in names:
        assert model_zoo.get_config_file(name) == str(CONFIGS / name)
    assert model_zoo.get_config("cityscapes/dense_fixmatch.yaml").MODEL.RESNETS.DEPTH == 50


def test_an_untrained_model_of_a_config():
    model = model_zoo.get("street/resnet18.yaml", device="cpu")
    assert model.training and model.head("detection").num_classes == 8
    with pytest.raises(InputError, match="coco_small.yaml: .* without the data .*coco_style_train"):
        model_zoo.get("coco_style/coco_small.yaml")
