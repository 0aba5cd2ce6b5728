"""The parts of a prediction of many files: names, threads, journal, videos."""

import threading
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from PIL import Image

from mtfixmatch.inference import video as video_module
from mtfixmatch.inference.journal import Journal, finished, saved_images
from mtfixmatch.inference.shots import Ending, Shot, read_shots
from mtfixmatch.inference.sources import Item, find_paths, make_items
from mtfixmatch.inference.stream import ahead, read_ahead
from mtfixmatch.inference.video import VideoFile, VideoFrames
from mtfixmatch.utils.errors import InputError
from mtfixmatch.utils.notes import Notes

# Sources


@pytest.fixture
def images(tmp_path, monkeypatch):
    """A function that makes small images in a folder, which is the current one."""
    monkeypatch.chdir(tmp_path)

    def make(*names):
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (4, 2)).save(tmp_path / name)

    return make


def items_of(*sources, known=None, output="out"):
    return make_items(find_paths(sources, output, Notes(max_faults=1.0)), known or {})


def test_names_repeat_the_folders(images):
    images("in/a/x.jpg", "in/b/x.jpg", "in/ä 1.png")
    assert [(x.name, x.out) for x in items_of("in")] == [
        ("a/x.jpg", "a/x"),
        ("b/x.jpg", "b/x"),
        ("ä 1.png", "ä 1"),
    ]
    assert [x.name for x in items_of("in/*/x.jpg")] == ["a/x.jpg", "b/x.jpg"]
    assert [x.name for x in items_of("in/a/x.jpg")] == ["x.jpg"]
    assert [x.name for x in items_of("in/a", "in/b")] == ["a/x.jpg", "b/x.jpg"]
    assert [x.name for x in items_of("in/a", "in/a/x.jpg")] == ["x.jpg"]


def test_a_list_of_paths_elsewhere_stays_in_the_output_folder(images, tmp_path):
    images("in/a.jpg", "other/b.jpg", "lists/c.jpg")
    list_file = tmp_path / "lists" / "all.txt"
    list_file.write_text("../in/a.jpg\n../other/b.jpg\nc.jpg\nmissing.jpg\n")
    notes = Notes(max_faults=1.0)
    paths = find_paths([str(list_file)], "out", notes)
    assert list(paths) == ["in/a.jpg", "lists/c.jpg", "other/b.jpg"]
    assert len(notes.messages()) == 1 and "missing.jpg" in notes.messages()[0]


def test_names_of_output_files_are_unique(images):
    images("in/x.jpg", "in/x.png", "in/X.bmp", "in/x.png.jpg")
    outs = {x.name: x.out for x in items_of("in")}
    assert len({x.casefold() for x in outs.values()}) == 4
    assert outs["X.bmp"] == "X" and outs["x.jpg"] == "x.jpg" and outs["x.png"] == "x.png"
    # What is there keeps its name.
    assert {x.name: x.out for x in items_of("in", known={"x.png": "x"})}["x.png"] == "x"
    assert {x.name: x.out for x in items_of("in", known={"x.png": "x"})}["X.bmp"] == "X.bmp"


def test_frames_lie_in_a_folder_of_their_own():
    assert Item("a/clip.mp4", "", "a/clip").frame_out(12) == "a/clip.mp4/000012"
    assert Item("a/x.jpg", "", "a/x").frame_out(0) == "a/x"


def test_the_output_is_no_source(images, tmp_path):
    images("in/x.jpg", "in/out/pictures/x.jpg")
    assert [x.name for x in items_of("in", output="in/out")] == ["x.jpg"]
    with pytest.raises(InputError, match="SOURCE: there is no image outside of the output folder"):
        items_of("in/out", output="in/out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="SOURCE: no file in empty ends in .jpg"):
        items_of("empty")
    with pytest.raises(InputError, match="SOURCE: no file matches 'in/\\*.gif'"):
        items_of("in/*.gif")


# Stream


def test_results_come_in_order_and_little_is_ahead():
    taken, release = [], threading.Event()

    def items():
        for i in range(10):
            taken.append(i)
            yield i

    def wait(i):
        if i == 0:
            release.wait(10)
        return i * i

    with ThreadPoolExecutor(3) as pool:
        results = ahead(pool, wait, items(), depth=2)
        release.set()
        assert next(results) == 0 and taken == [0, 1, 2]
        assert list(results) == [i * i for i in range(1, 10)]


def test_errors_of_a_thread_are_raised_here():
    def items():
        yield 1
        raise InputError("broken")

    with ThreadPoolExecutor(1) as pool:
        results = read_ahead(pool, items(), depth=2)
        assert next(results) == 1
        with pytest.raises(InputError, match="broken"):
            next(results)
    with ThreadPoolExecutor(1) as pool:
        assert list(read_ahead(pool, iter("abc"), depth=5)) == ["a", "b", "c"]


# Journal

X, CLIP = Item("x.jpg", "", "x"), Item("clip.mp4", "", "clip")


def shot(item, frame=0):
    return Shot(item, frame, np.zeros((2, 4, 3), np.uint8))


def names(folder):
    return [x.file_name for x in saved_images(list(finished(str(folder)).values()))]


def test_finished_items_count_alone(tmp_path):
    with Journal(str(tmp_path), 0) as journal:
        journal.add(shot(CLIP, 0), {"t": {"boxes": [[1]]}})
        journal.add(shot(CLIP, 1), {})
    assert not finished(str(tmp_path))
    with Journal(str(tmp_path), 0) as journal:  # again, and with another number of frames
        for frame in range(3):
            journal.add(shot(CLIP, frame), {"t": {"classes": [frame]}})
        journal.end(CLIP)
    with Journal(str(tmp_path), 1) as journal:
        journal.add(shot(X), {})
        journal.end(X)
    found = finished(str(tmp_path))
    assert {name: done.out for name, done in found.items()} == {"clip.mp4": "clip", "x.jpg": "x"}
    images = list(saved_images(list(found.values())))
    assert [x.file_name for x in images] == [*(f"clip.mp4#00000{i}" for i in range(3)), "x.jpg"]
    assert images[2].records == {"t": {"classes": [2]}} and images[2].frame == 2
    assert images[2].size == (2, 4) and images[3].video == ""


@pytest.mark.parametrize("cut", range(1, 140, 9))
def test_a_line_that_was_cut_off(tmp_path, cut):
    with Journal(str(tmp_path), 0) as journal:
        journal.add(shot(X), {"t": {"boxes": []}})
        journal.end(X)
    path = tmp_path / "journal_0.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:cut].replace(b"x.jpg", b"y.jpg"))
    other = Item("z.jpg", "", "z")
    with Journal(str(tmp_path), 0) as journal:
        journal.add(shot(other), {})
        journal.end(other)
    complete = ["y.jpg"] if cut >= len(whole) - 1 else []
    assert names(tmp_path) == ["x.jpg", *complete, "z.jpg"]


def test_a_journal_that_cannot_be_written(tmp_path):
    journal = Journal(str(tmp_path), 0)
    journal._file = open("/dev/full", "wb", buffering=0)  # noqa: SIM115
    with pytest.raises(InputError, match="journal_0.jsonl cannot be written: No space left"):
        journal.end(X)
    journal._file.close()


# Videos

GREYS = [0, 60, 120, 180, 240]


def write_video(path, greys=GREYS, size=(64, 48), fps=10.0, code="mp4v"):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*code), fps, size)
    for grey in greys:
        frame = np.full((size[1], size[0], 3), grey, np.uint8)
        frame[:, : size[0] // 2, 2] = 255 - grey  # red, the last channel of OpenCV
        writer.write(frame)
    writer.release()
    return str(path)


def means(path):
    """Mean red of the left half and grey of the right half of each frame."""
    with VideoFrames(str(path)) as frames:
        listed = list(frames)
    middle = listed[0].shape[1] // 2
    return [(x[:, : middle - 8, 0].mean(), x[:, middle + 8 :].mean()) for x in listed]


def test_frames_are_read_in_rgb(tmp_path):
    path = write_video(tmp_path / "clip.mp4")
    with VideoFrames(path) as frames:
        assert frames.fps == 10 and frames.listed == 5
    for (red, right), grey in zip(means(path), GREYS, strict=True):
        assert red == pytest.approx(255 - grey, abs=6) and right == pytest.approx(grey, abs=6)


@pytest.fixture(params=["OpenCV", "PyAV"])
def writer(request, monkeypatch):
    if request.param == "OpenCV":
        monkeypatch.setattr(video_module, "av", None)
    elif video_module.av is None:
        pytest.skip("PyAV, the extra video, is not installed")


@pytest.mark.parametrize("size", [(64, 48), (63, 47)])
def test_videos_are_written(writer, tmp_path, size):
    path = tmp_path / "out" / "clip.mp4"
    file = VideoFile(str(path), str(tmp_path / "unfinished" / "0.mp4"), 29.97)
    for grey in GREYS:
        frame = np.full((size[1], size[0], 3), grey, np.uint8)
        frame[:, : size[0] // 2, 0] = 255 - grey
        file.write(frame)
        assert not path.exists()
    file.finish()
    assert list((tmp_path / "unfinished").iterdir()) == []
    with VideoFrames(str(path)) as frames:
        assert frames.fps == pytest.approx(29.97, abs=0.01)
        assert next(iter(frames)).shape == (48, 64, 3)
    for (red, right), grey in zip(means(path), GREYS, strict=True):
        assert red == pytest.approx(255 - grey, abs=10) and right == pytest.approx(grey, abs=10)


def test_a_video_that_is_not_complete_is_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(video_module, "av", None)
    temporary = tmp_path / "0.mp4"
    file = VideoFile(str(tmp_path / "clip.mp4"), str(temporary), 10.0)
    file.write(np.zeros((16, 16, 3), np.uint8))
    file._writer.close()
    temporary.write_bytes(temporary.read_bytes()[:40])  # as on a full disk
    with pytest.raises(InputError, match="clip.mp4 cannot be written: it has 0 of 1 frames, is"):
        file.finish()
    assert list(tmp_path.iterdir()) == []


def steps_of(*items):
    return list(read_shots(items, (0, 65535)))


def test_a_video_that_ends_early_is_said(tmp_path):
    path = tmp_path / "clip.avi"
    write_video(path, [*GREYS, *GREYS, *GREYS], size=(320, 240), code="MJPG")
    content = path.read_bytes()
    whole = steps_of(Item("clip.avi", str(path), "clip"))
    assert len(whole) == 16 and whole[-1].remark == "" and whole[-1].error == ""
    path.write_bytes(content[: len(content) // 2])
    *shots, ending = steps_of(Item("clip.avi", str(path), "clip"))
    assert [x.frame for x in shots] == list(range(len(shots))) and 2 < len(shots) < 15
    assert ending.remark == f"{path} ends early, after {len(shots)} of 15 frames"


def test_files_that_cannot_be_read_are_endings(images, tmp_path):
    images("a.png")
    for name in ("b.png", "c.mp4"):
        (tmp_path / name).write_bytes(b"nothing")
    steps = steps_of(*(Item(x, str(tmp_path / x), x) for x in ("a.png", "b.png", "c.mp4", "d.png")))
    assert [isinstance(x, Ending) for x in steps] == [False, True, True, True, True]
    assert [x.error.partition(str(tmp_path))[0] for x in steps[1:]] == [
        "",
        "cannot read the image ",
        "cannot read the video ",
        "cannot read the image ",
    ]
