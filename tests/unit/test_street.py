from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from cityscapesscripts.helpers.labels import id2label, name2label

from mtfixmatch.street import generate as street
from mtfixmatch.street.canvas import Scene
from mtfixmatch.street.scene import draw_scene
from mtfixmatch.utils.errors import InputError

SMALL: dict[str, Any] = {"num_train": 5, "num_val": 2, "size": (128, 64), "seed": 3}


def read(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def image(path: Path) -> np.ndarray:
    return np.asarray(cv2.imread(str(path), cv2.IMREAD_UNCHANGED))


def extent(mask: np.ndarray) -> tuple[int, int, int]:
    """Width, height and lowest row of a mask."""
    rows, cols = np.nonzero(mask)
    return int(np.ptp(cols)) + 1, int(np.ptp(rows)) + 1, int(rows.max())


def names_in(ids: np.ndarray) -> set[str]:
    values = np.unique(ids).astype(int)
    return {id2label[int(v // 1000 if v >= 1000 else v)].name for v in values}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("street") / "data"
    assert street.generate(folder, **SMALL)
    return folder


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [draw_scene(np.random.default_rng([0, 0, i]), 256, 128) for i in range(60)]


def test_bytes_do_not_depend_on_workers(root: Path, tmp_path: Path) -> None:
    street.generate(tmp_path / "again", **SMALL)
    street.generate(tmp_path / "two", **SMALL, workers=2)
    assert read(root) == read(tmp_path / "again") == read(tmp_path / "two")


def test_more_scenes_leave_the_first_ones_as_they_are(root: Path, tmp_path: Path) -> None:
    street.generate(tmp_path, **(SMALL | {"num_train": 7, "num_val": 0}))
    fewer, more = read(root), read(tmp_path)
    train = {name for name in fewer if "/train/" in name}
    assert len(train) == 15 and all(fewer[name] == more[name] for name in train)


def test_scenes_and_seeds_and_splits_differ(root: Path, tmp_path: Path) -> None:
    street.generate(tmp_path, **(SMALL | {"seed": 4}))
    pictures = [p for folder in (root, tmp_path) for p in folder.rglob("*_leftImg8bit.png")]
    assert len({p.read_bytes() for p in pictures}) == len(pictures) == 14


def test_layout_and_dtypes(root: Path) -> None:
    names = set(read(root)) - {street.MARK}
    pictures = sorted(name for name in names if name.startswith("leftImg8bit/"))
    assert [p.split("/")[1] for p in pictures].count("train") == 5 and len(pictures) == 7
    assert len(names) == 3 * len(pictures)
    for picture in pictures:
        _, split, city, file = picture.split("/")
        stem = file.removesuffix("_leftImg8bit.png")
        assert stem.split("_")[0] == city and [len(p) for p in stem.split("_")[1:]] == [6, 6]
        truth = root / "gtFine" / split / city
        kinds = [
            (root / picture, (64, 128, 3), np.uint8),
            (truth / f"{stem}_gtFine_instanceIds.png", (64, 128), np.uint16),
            (truth / f"{stem}_gtFine_labelIds.png", (64, 128), np.uint8),
        ]
        for path, shape, dtype in kinds:
            assert (image(path).shape, image(path).dtype) == (shape, dtype)


def test_picture_is_written_as_rgb(root: Path) -> None:
    scene = draw_scene(np.random.default_rng([3, 0, 0]), 128, 64)
    written = image(next(root.glob("leftImg8bit/train/*/*_000000_*.png")))
    assert np.array_equal(written[..., ::-1], scene.rgb)
    assert not np.array_equal(written, scene.rgb)


def test_instance_ids_agree_with_label_ids(root: Path) -> None:
    for path in root.rglob("*_instanceIds.png"):
        ids = image(path)
        labels = image(path.with_name(path.name.replace("instanceIds", "labelIds")))
        single = ids >= 1000
        assert single.any()
        assert np.array_equal(labels[single], ids[single] // 1000)
        assert np.array_equal(labels[~single], ids[~single])


def test_ids_are_official_and_only_things_are_instances(scenes: list[Scene]) -> None:
    for scene in scenes:
        values = np.unique(scene.ids).astype(int)
        assert all(id2label[v // 1000].hasInstances for v in values[values >= 1000])
        bare = {id2label[v].name for v in values[values < 1000] if id2label[v].hasInstances}
        assert bare <= {"person", "bicycle"}


def test_classes_and_things_occur_often(scenes: list[Scene]) -> None:
    found = [names_in(scene.ids) for scene in scenes]
    evaluated = [label for label in name2label.values() if 0 <= label.trainId < 19]
    often = [v for v in evaluated if sum(v.name in names for names in found) >= len(scenes) / 8]
    assert len(often) >= 16
    assert sum(label.hasInstances for label in often) >= 6


def test_number_and_size_of_instances(scenes: list[Scene]) -> None:
    counts, heights = [], []
    for scene in scenes:
        values = np.unique(scene.ids[scene.ids >= 1000])
        counts.append(len(values))
        for value in values:
            width, height, _ = extent(scene.ids == value)
            assert min(width, height) >= 3 and (scene.ids == value).sum() >= 12
            heights.append(height)
    assert 1 <= min(counts) < 3 and 8 < max(counts) <= 24 and 3 < np.mean(counts) < 8
    assert np.percentile(heights, 20) < 16 and np.percentile(heights, 95) > 40


def test_rider_sits_on_a_bike() -> None:
    found = 0
    for i in range(12):
        ids = draw_scene(np.random.default_rng([1, 0, i]), 256, 128).ids
        for rider in np.unique(ids[ids // 1000 == name2label["rider"].id]):
            around = cv2.dilate((ids == rider).astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
            found += bool(names_in(ids[around]) & {"bicycle", "motorcycle"})
    assert found >= 3


def test_near_things_hide_far_ones(scenes: list[Scene]) -> None:
    shares = []
    for scene in scenes:
        values, counts = np.unique(scene.ids[scene.ids >= 1000], return_counts=True)
        shares += [c / scene.painted[int(v)] for v, c in zip(values, counts, strict=True)]
    assert max(shares) == 1.0
    assert 0.08 < np.mean(np.array(shares) < 0.7) < 0.5


def test_group_regions_and_void_occur(scenes: list[Scene]) -> None:
    groups = [{24, 33} & set(np.unique(scene.ids).tolist()) for scene in scenes]
    assert 0.08 < np.mean([bool(group) for group in groups]) < 0.35
    assert set.union(*groups) == {24, 33}
    void = set.union(*(names_in(scene.ids) for scene in scenes))
    assert {"ego vehicle", "out of roi", "static"} <= void


def test_what_stands_lower_in_the_picture_is_larger(scenes: list[Scene]) -> None:
    depths, heights = [], []
    for scene in scenes:
        for value in np.unique(scene.ids[scene.ids // 1000 == name2label["car"].id]):
            _, height, bottom = extent(scene.ids == value)
            depths.append(bottom - scene.horizon)
            heights.append(height)
    order = np.argsort(depths)
    far, near = np.array_split(np.array(heights)[order], 2)
    assert near.mean() > 1.8 * far.mean()
    assert np.corrcoef(depths, heights)[0, 1] > 0.6


def test_other_sizes_scale_everything() -> None:
    def median_height(width: int, height: int) -> float:
        found = []
        for i in range(16):
            ids = draw_scene(np.random.default_rng([2, 0, i]), width, height).ids
            found += [extent(ids == v)[1] for v in np.unique(ids[ids >= 1000])]
        return float(np.median(found))

    assert 1.4 < median_height(256, 128) / median_height(128, 64) < 2.4


def test_complete_root_is_reused(root: Path) -> None:
    picture = next(root.rglob("*_leftImg8bit.png"))
    before = picture.stat().st_mtime_ns
    assert not street.generate(root, **SMALL, workers=2)
    assert picture.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    "other", [{"num_train": 6}, {"num_val": 1}, {"size": (96, 64)}, {"seed": 5}]
)
def test_other_arguments_are_refused(root: Path, other: dict) -> None:
    before = read(root)
    with pytest.raises(InputError) as caught:
        street.generate(root, **(SMALL | other))
    assert str(root) in str(caught.value) and "\n" not in str(caught.value)
    assert read(root) == before


def test_interrupted_root_is_finished(root: Path, tmp_path: Path, monkeypatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(street, "_write_all", stop)
        street.generate(tmp_path, **SMALL)
    assert not (tmp_path / street.MARK).exists()
    with pytest.raises(InputError, match="other arguments"):
        street.generate(tmp_path, **(SMALL | {"seed": 9}))
    assert street.generate(tmp_path, **SMALL)
    assert read(tmp_path) == read(root)


def test_foreign_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "leftImg8bit").mkdir()
    with pytest.raises(InputError, match="not written by street"):
        street.generate(tmp_path, **SMALL)
    assert [p.name for p in tmp_path.iterdir()] == ["leftImg8bit"]


def test_command_writes_and_marks_the_root(tmp_path: Path, capsys) -> None:
    root = tmp_path / "made" / "here"
    counts = ["--train", "2", "--val", "1", "--seed", "7"]
    arguments = ["--root", str(root), *counts, "--size", "64x32", "--workers", "1"]
    assert street.main(arguments) == 0
    found = json.loads((root / street.MARK).read_text())
    assert (found["train"], found["val"], found["size"], found["seed"]) == (2, 1, [64, 32], 7)
    assert len(list(root.rglob("*.png"))) == 9
    assert street.main(arguments) == 0
    assert "complete already" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--size", "512"], "WIDTHxHEIGHT"),
        (["--size", "8x8"], "32x32"),
        (["--train", "-1"], "train"),
        (["--val", "many"], "many"),
        (["--workers", "0"], "workers"),
        (["--seed", "-3"], "seed"),
        (["--colour"], "--colour"),
    ],
)
def test_bad_arguments_are_one_line(
    tmp_path: Path, capsys, arguments: list[str], said: str
) -> None:
    assert street.main(["--root", str(tmp_path / "none"), *arguments]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: ") and shown.count("\n") == 1 and said in shown
    assert not (tmp_path / "none").exists()
