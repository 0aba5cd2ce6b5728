"""The command writes .onnx files whose results are those of PyTorch, and refuses other ones."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from PIL import Image

import mtfixmatch
from mtfixmatch.commands.export import main, parse_args
from mtfixmatch.inference.export import Source, export_onnx
from mtfixmatch.inference.exported import ExportedNet
from mtfixmatch.inference.verify import compare, generated_images
from mtfixmatch.tasks import TASK_REGISTRY
from mtfixmatch.utils.errors import InputError
from mtfixmatch.utils.images import read_rgb_pixels
from mtfixmatch_runtime import KEY, ExportedModelError, Network
from tests.support.brightness import Brightness
from tests.support.exporting import small_predictor
from tests.support.helpers import CONFIGS, REPOSITORY

FOUR_TASKS = (
    f'_BASE_: "{CONFIGS / "street" / "resnet18.yaml"}"\n'
    "MODEL: {TASKS: [detection, segmentation, drivable, brightness]}\n"
    "TASKS: {DRIVABLE: {KIND: Segmentation}, BRIGHTNESS: {KIND: Brightness}}\n"
)
# Fewer levels make an export much faster; tests/unit/test_export.py has all of them.
LEVELS = (
    *("MODEL.RETINANET.IN_FEATURES", ["p3", "p5", "p7"]),
    *("MODEL.ANCHOR_GENERATOR.SIZES", [[16, 24], [64, 96], [256, 384]]),
)
TIMM = (
    *("MODEL.FCOS.IN_FEATURES", ["p4", "p6"]),
    *("MODEL.BACKBONE.NAME", "build_timm_fpn_backbone", "MODEL.TIMM.NAME", "resnet10t"),
    *("MODEL.TIMM.WEIGHTS", "", "TASKS.DETECTION.HEAD", "FCOSHead"),
)


@pytest.fixture(scope="module", autouse=True)
def brightness():
    TASK_REGISTRY.register(Brightness)
    yield
    del TASK_REGISTRY._obj_map["Brightness"]


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(1).integers(0, 256, (61, 93, 3), np.uint8)


def run_folder(folder, predictor):
    """The folder of a run with the files that a predictor needs."""
    folder.mkdir()
    (folder / "config.yaml").write_text(predictor.cfg.dump())
    torch.save({"model": predictor.model.state_dict()}, folder / "model_best.pth")
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("four")
    (folder / "four.yaml").write_text(FOUR_TASKS)
    return run_folder(folder / "run", small_predictor(*LEVELS, config=folder / "four.yaml"))


@pytest.fixture(scope="module")
def exported(run):
    """The file of a ResNet-18 with four tasks."""
    path = run.parent / "model.onnx"
    main(parse_args([str(run), "--output", str(path)]))
    return path


def test_results_are_those_of_pytorch(run, exported, image):
    """At three sizes of three images, alone and in a batch; some scores are high, some low."""
    predictor, other = mtfixmatch.load(run, device="cpu"), mtfixmatch.load(exported)
    assert other.classes == predictor.classes and other.name == predictor.name
    source = Source.of(predictor)
    found = compare(other.tasks, source.net.run, other.model.run, generated_images())
    assert list(found) == ["detection", "segmentation", "drivable", "brightness"]
    assert all(x.is_rounding for own in found.values() for x in own)
    assert all(own[0].total > 500 for own in found.values())
    ours, theirs = predictor(image, color="RGB"), other(image, color="RGB")
    assert theirs.results.keys() == ours.results.keys()
    assert len(theirs.instances) == len(ours.instances) > 20
    assert torch.allclose(theirs.instances.scores, ours.instances.scores, atol=1e-4)
    for task, classes in ours.maps.items():
        assert (theirs.maps[task] == classes).float().mean() > 0.999
    assert torch.allclose(theirs.results["grid"], ours.results["grid"], atol=1e-4)
    assert theirs.draw(0.5).shape == image.shape


def test_any_size_and_batch(exported, image):
    network = Network(exported, threads=1)
    images = np.ascontiguousarray(np.stack([image, image[::-1]]).transpose(0, 3, 1, 2))
    both = network.run(images)
    for i, alone in enumerate((image, image[::-1])):
        for task, outputs in network(np.ascontiguousarray(alone)).items():
            for name, x in outputs.items():
                assert np.allclose(both[task][name][i], x, atol=1e-2), (task, name)
    assert both["detection"]["boxes"].shape == (2, 100, 4)
    assert both["drivable"]["map"].shape == (2, 61, 93)
    assert network(np.zeros((1, 1, 3), np.uint8))["segmentation"]["map"].shape == (1, 1)


def test_the_file_says_what_it_is(run, exported):
    network = Network(exported)
    assert network.weights_sha256 == mtfixmatch.load(run, device="cpu").sha256
    detection = network.tasks["detection"]
    assert detection["kind"] == "Detection" and detection["classes"][2] == "class 2"
    assert detection["least_score"] == 0.05 and detection["most_boxes"] == 100
    assert network.tasks["brightness"]["classes"] == []
    assert onnx.load(exported).opset_import[0].version >= 20
    assert str(run.parent) not in json.dumps(network.metadata)


ALONE = """
import sys
for name in ("torch", "torchvision", "detectron2", "mtfixmatch", "cv2"):
    sys.modules[name] = None  # an import of it fails
from mtfixmatch_runtime import Network
result = Network(sys.argv[1], threads=1)(sys.argv[2])
print(result["detection"]["scores"].tolist())
"""


def test_the_runtime_is_alone(exported, image, tmp_path):
    Image.fromarray(image).save(tmp_path / "image.png")
    command = [sys.executable, "-c", ALONE, str(exported), str(tmp_path / "image.png")]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    expected = Network(exported, threads=1)(image)["detection"]["scores"]
    assert np.allclose(json.loads(done.stdout), expected, atol=1e-6) and expected[0] > 0.1


def test_the_runtime_reads_images_as_the_package_does(exported, image, tmp_path):
    network = Network(exported)
    network.range_16bit = (100, 40000)
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(image).save(tmp_path / "turned.jpg", exif=exif)
    values = np.arange(61 * 93, dtype=np.uint16).reshape(61, 93) * 11
    Image.fromarray(values).save(tmp_path / "16.png")
    Image.fromarray(image).convert("P").save(tmp_path / "palette.png")
    for name, size in (("turned.jpg", [93, 61]), ("16.png", [61, 93]), ("palette.png", [61, 93])):
        expected = read_rgb_pixels(str(tmp_path / name), size, (100, 40000))
        assert np.array_equal(network.read(tmp_path / name), expected)
    with pytest.raises(ExportedModelError, match="cannot read the image"):
        network(tmp_path / "none.png")
    for wrong in (image[..., 0], image.astype(float), 3):
        with pytest.raises(ExportedModelError, match=r"uint8 RGB, not"):
            network(wrong)


def message(path):
    with pytest.raises(InputError) as error:
        mtfixmatch.load(path)
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)
    return str(error.value)


def test_files_that_are_no_network(exported, tmp_path):
    path = tmp_path / "model.onnx"
    assert "there is no such file" in message(path)
    path.write_bytes(Path(exported).read_bytes()[:100_000])
    assert "ONNX Runtime cannot load it" in message(path)
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [1]) for n in "xy")
    graph = helper.make_graph([helper.make_node("Abs", ["x"], ["y"])], "g", [x], [y])
    other = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.save(other, path)
    assert "it is of another program" in message(path)
    helper.set_model_props(other, {KEY: json.dumps({"format": 99})})
    onnx.save(other, path)
    assert "it has format 99, expected 1: export the network again" in message(path)
    helper.set_model_props(other, {KEY: "{"})
    onnx.save(other, path)
    assert "its metadata 'mtfixmatch' is damaged" in message(path)


def test_an_exported_network_is_not_exported_again(exported, tmp_path):
    with pytest.raises(InputError, match="run is exported already"):
        main(parse_args([str(exported), "--output", str(tmp_path / "again.onnx")]))


@pytest.fixture
def ready(exported, monkeypatch):
    """A source whose export is that of the command, without its time."""
    monkeypatch.setattr("mtfixmatch.inference.export.to_onnx", lambda source: None)
    copy = lambda program, metadata, path: shutil.copy(exported, path)  # noqa: E731
    monkeypatch.setattr("mtfixmatch.inference.export.save_onnx", copy)


def test_a_file_with_other_results_is_not_written(ready, run, tmp_path, monkeypatch):
    source, path = Source.of(mtfixmatch.load(run, device="cpu")), tmp_path / "model.onnx"
    right = ExportedNet.run

    def wrong(self, images):
        exports = right(self, images)
        exports["drivable"]["map"][:, :1] += 1
        return exports

    monkeypatch.setattr(ExportedNet, "run", wrong)
    with pytest.raises(InputError) as error:
        export_onnx(source, str(path), generated_images()[:1])
    assert str(error.value).startswith(f"{path} is not written: drivable differs")
    assert "map: share that differs" in str(error.value) and not list(tmp_path.iterdir())
    path.write_bytes(b"older")
    with pytest.raises(InputError):
        export_onnx(source, str(path), generated_images()[:1])
    assert path.read_bytes() == b"older" and len(list(tmp_path.iterdir())) == 1


def test_a_folder_that_is_missing(ready, run, tmp_path):
    source, path = Source.of(mtfixmatch.load(run, device="cpu")), tmp_path / "no" / "model.onnx"
    with pytest.raises(InputError, match="cannot be written: No such file or directory"):
        export_onnx(source, str(path), generated_images()[:1])


def test_one_task_of_a_timm_network_in_8_bits(tmp_path, capsys):
    run = run_folder(tmp_path / "run", small_predictor(*TIMM))
    (tmp_path / "images").mkdir()
    for i, scene in enumerate(generated_images()):
        Image.fromarray(scene[:128, :160]).save(tmp_path / "images" / f"{i}.png")
    path = tmp_path / "small.onnx"
    arguments = [str(run), "--output", str(path), "--tasks", "detection"]
    main(parse_args([*arguments, "--int8", str(tmp_path / "images"), "--limit", "2"]))
    text = capsys.readouterr().out
    assert "8-bit integers against full precision:" in text
    assert "| detection | boxes: share without a counterpart |" in text
    network = Network(path)
    assert list(network.tasks) == ["detection"] and network.metadata["calibration_images"] == 2
    assert path.stat().st_size < 0.45 * (run / "model_best.pth").stat().st_size
    types = {node.op_type for node in onnx.load(path).graph.node}
    assert "QuantizeLinear" in types
    assert len(mtfixmatch.load(path)(tmp_path / "images" / "0.png").instances) > 0


@pytest.mark.parametrize(
    "arguments, text",
    [
        (["--output", "model.pth"], "--output model.pth must end in .onnx"),
        (["--output", "model.onnx", "--aot"], "--output model.onnx must end in .pt2"),
        (["--output", "m.pt2", "--aot", "--int8", "x"], "--int8 writes an .onnx file"),
        (["--output", "m.onnx", "--config-file", "x"], "--config-file is read with --int8 only"),
    ],
)
def test_arguments(arguments, text, capsys):
    with pytest.raises(SystemExit):
        parse_args(["run", *arguments])
    assert text in capsys.readouterr().err
