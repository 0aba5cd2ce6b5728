"""The command predict: its files are what `mtfixmatch.load` computes, whatever stops it."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

import mtfixmatch
from mtfixmatch.formats.coco import read_coco
from mtfixmatch.inference import work
from mtfixmatch.inference.journal import Journal
from mtfixmatch.inference.predict import predict
from mtfixmatch.inference.video import VideoFrames
from mtfixmatch.utils.errors import InputError
from mtfixmatch.utils.images import read_label_map
from tests.command.test_docs import load_script
from tests.support.disk_faults import at_byte, raising
from tests.support.engine_helpers import trained_run
from tests.support.helpers import REPOSITORY

THRESHOLD = 0.015
SAVE = ["boxes", "maps", "confidence", "pictures"]
FRAMES = 7


@pytest.fixture(scope="module")
def run(street_root, tmp_path_factory):
    """The folder of a training."""
    output = tmp_path_factory.mktemp("run")
    trained_run(street_root, output)
    return str(output)


@pytest.fixture(scope="module")
def sources(street_root, tmp_path_factory):
    """Images of the same names in two folders, a video, and two broken files."""
    folder = tmp_path_factory.mktemp("sources")
    images = sorted((street_root / "street").rglob("val/**/*_leftImg8bit.png"))
    for name, image in zip(("day one/a#1.png", "nächte/a#1.png", "b.png"), images, strict=False):
        (folder / name).parent.mkdir(exist_ok=True)
        with Image.open(image) as opened:
            opened.crop((0, 0, 96, 64)).save(folder / name)
    (folder / "broken.jpg").write_bytes(b"no image")
    (folder / "day one" / "broken.mp4").write_bytes(b"no video")
    code = cv2.VideoWriter.fourcc(*"MJPG")
    writer = cv2.VideoWriter(str(folder / "clip.avi"), code, 5.0, (96, 64))
    frame = cv2.imread(str(images[3]))[:64, :96]
    for shift in range(FRAMES):
        writer.write(np.roll(frame, 8 * shift, axis=1))
    writer.release()
    return folder


def run_predict(run, sources, output, devices=("cpu",), save=SAVE, threshold=THRESHOLD):
    options = {"threshold": threshold, "save": save, "devices": devices}
    return predict(run, [str(sources)], str(output), **options)


@pytest.fixture(scope="module")
def whole(run, sources, tmp_path_factory):
    """The output folder of a command that nothing disturbed, and its summary."""
    output = tmp_path_factory.mktemp("whole") / "out"
    return output, run_predict(run, sources, output)


def contents(output):
    """All files but those that serve the command itself."""
    files = [x for x in output.rglob("*") if x.is_file() and "journal" not in x.name]
    return {str(x.relative_to(output)): x.read_bytes() for x in files if x.name != "run.lock"}


def is_same(output, whole):
    """Whether two folders have the same files, see `changed_files`."""
    assert contents(output).keys() == contents(whole[0]).keys()
    return not changed_files(output, whole)


def changed_files(output, whole):
    """Names of the files unlike those of a whole run, byte by byte but for H.264."""
    names = [name for name, x in contents(output).items() if x != (whole[0] / name).read_bytes()]
    return [x for x in names if not (x.endswith(".mp4") and same_video(output / x, whole[0] / x))]


def same_video(path, other):
    """Whether two videos show the same: x264's vector code may code a frame a little differently.

    It did so once in some hundred tries, and never in 600 without that code (asm=0).
    """
    with VideoFrames(str(path)) as one, VideoFrames(str(other)) as two:
        assert (one.fps, one.listed) == (two.fps, two.listed)
        pairs = list(zip(one, two, strict=True))
    return max(np.abs(a.astype(int) - b).mean() for a, b in pairs) < 2


def check_boxes(prediction, annotations):
    """Whether annotations are the boxes of a prediction, bit by bit."""
    boxes = prediction.instances
    boxes = boxes[boxes.scores > THRESHOLD]
    tensor = boxes.pred_boxes.tensor
    found = torch.tensor([x["bbox"] for x in annotations]).view(-1, 4)
    assert torch.equal(found[:, :2], tensor[:, :2])
    ends = [[x["bbox"][0] + x["bbox"][2], x["bbox"][1] + x["bbox"][3]] for x in annotations]
    assert torch.equal(torch.tensor(ends).view(-1, 2), tensor[:, 2:])
    assert [x["score"] for x in annotations] == boxes.scores.tolist()
    assert [x["category_id"] for x in annotations] == (boxes.pred_classes + 1).tolist()
    return len(annotations)


def test_files_are_what_the_predictor_computes(run, sources, whole):
    output, summary = whole
    predictor = mtfixmatch.load(run, device="cpu")
    coco = COCO(str(output / "boxes" / "detection.json"))
    assert [x["name"] for x in coco.loadCats([1, 8])] == ["person", "bicycle"]
    assert coco.dataset["info"] == {"model": predictor.identity, "threshold": THRESHOLD}
    ids = {x["file_name"]: x["id"] for x in coco.dataset["images"]}
    count = 0
    for name in ("b.png", "day one/a#1.png", "nächte/a#1.png"):
        prediction = predictor(sources / name)
        image = coco.imgs[ids[name]]
        assert (image["height"], image["width"]) == (64, 96)
        count += check_boxes(prediction, coco.imgToAnns[ids[name]])
        stem = name.removesuffix(".png")
        classes = prediction.maps["segmentation"].numpy()
        path = output / "maps" / "segmentation" / f"{stem}.png"
        assert np.array_equal(read_label_map(str(path)), classes)
        with Image.open(path) as png:
            colors = np.array(predictor.tasks[1].colors, np.uint8)
            assert np.array_equal(np.asarray(png.convert("RGB")), colors[classes])
        share = prediction.results["sem_seg"].softmax(dim=0).amax(dim=0)
        with Image.open(output / "confidence" / "segmentation" / f"{stem}.png") as png:
            assert png.mode == "L"
            assert np.array_equal(np.asarray(png), (share * 255).round().numpy())
        for folder, pixels in (("pictures", prediction.draw(THRESHOLD)), ("images", None)):
            expected = prediction.image if pixels is None else pixels
            jpeg = cv2.imencode(".jpg", expected[..., ::-1], (cv2.IMWRITE_JPEG_QUALITY, 90))[1]
            assert (output / folder / f"{stem}.jpg").read_bytes() == jpeg.tobytes()
    assert 0 < count < 300
    own = read_coco(str(output / "boxes" / "detection.json"))
    assert not own["faults"] and own["classes"] == predictor.classes["detection"]
    table = json.loads((output / "maps" / "segmentation" / "classes.json").read_text())
    assert [x["name"] for x in table] == predictor.classes["segmentation"]
    assert (summary.new, summary.before, summary.broken) == (4, 0, 2)


def test_each_frame_of_a_video_is_an_image(run, sources, whole):
    output, _ = whole
    predictor = mtfixmatch.load(run, device="cpu")
    coco = COCO(str(output / "boxes" / "detection.json"))
    frames = [x for x in coco.dataset["images"] if x.get("video") == "clip.avi"]
    assert [x["frame"] for x in frames] == list(range(FRAMES))
    assert frames[3]["file_name"] == "clip.avi#000003"
    with VideoFrames(str(sources / "clip.avi")) as video:
        predictions = [predictor(pixels, color="RGB") for pixels in video]
    for image, prediction in zip(frames, predictions, strict=True):
        check_boxes(prediction, coco.imgToAnns[image["id"]])
        path = output / "maps" / "segmentation" / "clip.avi" / f"{image['frame']:06d}.png"
        classes = prediction.maps["segmentation"].numpy()
        assert np.array_equal(read_label_map(str(path)), classes)
    with VideoFrames(str(output / "pictures" / "clip.mp4")) as video:
        assert (video.fps, video.listed) == (5, FRAMES)
        for pixels, prediction in zip(video, predictions, strict=True):
            difference = np.abs(pixels.astype(int) - prediction.draw(THRESHOLD))
            assert difference.mean() < 20
    assert not (output / "pictures" / "clip.avi").exists() and not (output / "unfinished").exists()


# Interruptions


class Interrupted:
    """Raises KeyboardInterrupt instead of one of the journal's calls."""

    def __init__(self, name, number):
        self.name, self.left = name, number

    def __enter__(self):
        self.patch = pytest.MonkeyPatch()
        original = getattr(Journal, self.name)

        def call(journal, *args):
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
            original(journal, *args)

        self.patch.setattr(Journal, self.name, call)

    def __exit__(self, *args):
        self.patch.undo()


@pytest.mark.parametrize("name, number, before", [("add", 1, 1), ("add", 5, 1), ("end", 3, 3)])
def test_an_interrupted_command_goes_on(run, sources, whole, tmp_path, name, number, before):
    """In the second item, the fifth frame of the video; and before the last item counts."""
    output = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt), Interrupted(name, number):
        run_predict(run, sources, output)
    summary = run_predict(run, sources, output)
    assert (summary.new, summary.before, summary.broken) == (4 - before, before, 2)
    assert is_same(output, whole)


@pytest.mark.parametrize("offset", [0, 9_000, 60_000])
def test_a_full_disk(run, sources, whole, tmp_path, offset):
    """At the first byte, in the middle of a picture, and later."""
    output = tmp_path / "out"
    with (
        at_byte(offset, raising(errno.ENOSPC)),
        pytest.raises(InputError, match=r"^[^\n]* cannot be written: No space left on device$"),
    ):
        run_predict(run, sources, output)
    assert not output.exists() or not changed_files(output, whole)
    run_predict(run, sources, output)
    assert is_same(output, whole)


def test_again_with_nothing_to_do(run, sources, whole, tmp_path, monkeypatch):
    output = shutil.copytree(whole[0], tmp_path / "out")
    (output / "maps" / "x.png.0123abcd.tmp").touch()  # of a killed process
    monkeypatch.setattr(work, "_predictions", lambda predictor, steps: (x for x in steps))
    summary = run_predict(run, sources, output)  # broken files are tried again
    assert (summary.new, summary.before, summary.broken) == (0, 4, 2)
    assert is_same(output, whole)


def test_other_options_in_the_same_folder(run, sources, whole, tmp_path):
    output = shutil.copytree(whole[0], tmp_path / "out")

    def message(**changes):
        options = {"run": run, "sources": sources, "output": output} | changes
        with pytest.raises(InputError) as error:
            run_predict(**options)
        assert "\n" not in str(error.value)
        return str(error.value)

    start, end = f"--output {output} has results of another", ": choose another folder"
    assert message(threshold=0.5) == f"{start} threshold {THRESHOLD}, not of 0.5{end}"
    assert message(sources=sources / "b.png") == f"{start} sources{end}"
    assert message(save=["maps"]).startswith(f"{start} save ")
    other = shutil.copytree(run, tmp_path / "other")
    content = torch.load(other / "model_best.pth", weights_only=True)
    torch.save({"model": content["model"]}, other / "model_best.pth")
    assert message(run=str(other)).startswith(f"{start} model '{os.path.basename(run)}@")
    assert is_same(output, whole)


def test_two_processes(run, sources, whole, tmp_path, capfd):
    output = tmp_path / "out"
    summary = run_predict(run, sources, output, devices=("cpu", "cpu"))
    assert (summary.new, summary.broken) == (4, 2)
    assert is_same(output, whole)
    assert {x.name for x in output.glob("journal_*")} == {"journal_0.jsonl", "journal_1.jsonl"}
    lines = capfd.readouterr().err.splitlines()
    assert sum(line.startswith("cannot read the ") for line in lines) == 2


def test_an_error_in_another_process(run, sources, tmp_path):
    output = tmp_path / "out"
    output.mkdir()
    (output / "journal_1.jsonl").mkdir()
    with pytest.raises(InputError, match="journal_1.jsonl"):
        run_predict(run, sources, output, devices=("cpu", "cpu"))


# The command


@pytest.fixture
def main(monkeypatch, run):
    module = load_script("predict")

    def call(*words):
        module.main(module.parse_args([run, *map(str, words)]))

    return call


def command(*words):
    return [sys.executable, "-W", "ignore", "projects/predict.py", *map(str, words)]


def test_the_command(run, main, sources, whole, tmp_path, capsys):
    """SIGINT while it works: one line; then it goes on, and says what it left out."""
    output = tmp_path / "out"
    options = ("--threshold", THRESHOLD, "--save", ",".join(SAVE), "--device", "cpu")
    words = command(run, sources, "--output", output, *options)
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(words, cwd=REPOSITORY, **streams) as process:
        journal = output / "journal_0.jsonl"
        while process.poll() is None and not (journal.exists() and journal.stat().st_size):
            time.sleep(0.005)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=300)
    if process.returncode:  # it may have been faster
        assert process.returncode == 130
        assert errors.splitlines()[-1] == "interrupted: the same command goes on"
        assert "Traceback" not in errors
    main(sources, "--output", output, *options)
    assert is_same(output, whole)
    printed = capsys.readouterr()
    first, *files = printed.out.splitlines()
    assert first.endswith(", 2 could not be read") and "files predicted" in first
    assert [x for x in files if not os.path.isfile(x)] == [] and f"{output}/index.html" in files
    lines = printed.err.splitlines()
    assert len(lines) == 2 and str(sources / "broken.jpg") in lines[0]


def test_what_is_saved_by_default(main, sources, tmp_path, capsys):
    main(sources / "b.png", "--output", tmp_path / "out", "--num-gpus", 0)
    assert capsys.readouterr().out.startswith("1 files predicted, 0 could not be read\n")
    names = {x.name for x in (tmp_path / "out").iterdir() if x.is_dir()}
    assert names == {"boxes", "maps", "pictures", "images"}
    main(sources / "b.png", "--output", tmp_path / "boxes", "--save", "boxes", "--device", "cpu")
    files = {x.name for x in (tmp_path / "boxes").rglob("*") if x.is_file()}
    assert files == {"detection.json", "predict.json", "journal_0.jsonl", "run.lock"}


@pytest.mark.parametrize(
    "words, text",
    [
        (["missing", "--output", "out"], "SOURCE: there is no folder 'missing'"),
        (["b.png", "--output", "out", "--threshold", 2], "--threshold is 2.0, expected"),
        (["b.png", "--output", "out", "--save", "mask"], "--save is 'mask': it must be one of bo"),
        (["b.png", "--output", "out", "--num-gpus", 99], "--num-gpus is 99, but this machine has"),
        (["broken.jpg", "--output", "out"], "SOURCE: none of 1 images can be read"),
        (["b.png", "--output", "b.png"], "--output b.png cannot be written: File exists"),
    ],
)
def test_bad_input_is_one_line(main, sources, tmp_path, monkeypatch, words, text):
    shutil.copytree(sources, tmp_path / "in")
    monkeypatch.chdir(tmp_path / "in")
    with pytest.raises(InputError) as error:
        main(*words)
    assert str(error.value).startswith(text) and "\n" not in str(error.value)
    assert not (tmp_path / "in" / "out" / "index.html").exists()
