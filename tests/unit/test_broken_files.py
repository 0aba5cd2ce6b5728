import logging
import shutil
from multiprocessing import active_children
from pathlib import Path

import pytest
from detectron2.utils import comm

from mtfixmatch.data.broken import BrokenFiles
from mtfixmatch.data.loader import build_train_loader, train_records
from mtfixmatch.engine.hooks import BrokenFilesHook
from mtfixmatch.tasks import build_tasks
from mtfixmatch.utils.errors import InputError
from tests.support.engine_helpers import build_trainer, run_config
from tests.support.helpers import tiny_config

SETTING = (
    *("DATALOADER.SAMPLING", "explicit", "DATASETS.LABEL_SUBSETS", "random", "SEED", 3),
    *("TASKS.DETECTION.LABELS", 6, "TASKS.SEGMENTATION.LABELS", 5),
)
SKIP = ("DATALOADER.SKIP_BROKEN", True, "DATALOADER.MAX_BROKEN", 0.3)
KEYS = {"detection": "annotations", "segmentation": "sem_seg_file_name"}


@pytest.fixture
def root(street_root, tmp_path):
    """A copy of the data, of which a file can be spoilt."""
    shutil.copytree(street_root / "street", tmp_path / "street")
    return tmp_path


def cut(path, size=400):
    with open(path, "r+b") as file:
        file.truncate(size)


def labels_of(record):
    return {name for name, key in KEYS.items() if key in record}


def spoil(records):
    """Cut off an image and a map after they were read, each of an image that has one label only.

    Returns:
        The two images, and what is to be said of them.
    """
    image = next(r for r in records if labels_of(r) == {"detection"})
    labeled = next(r for r in records if labels_of(r) == {"segmentation"})
    cut(image["file_name"])
    cut(labeled["sem_seg_file_name"], 80)
    return {
        image["file_name"]: image["file_name"],
        labeled["file_name"]: labeled[KEYS["segmentation"]],
    }


def batches_of(cfg, tasks, records, start=0, count=8):
    loader = build_train_loader(cfg, tasks, records)
    loader.start_step = start
    found = [batch for _, batch in zip(range(count - start), loader, strict=False)]
    return {item["draw"]: item for batch in found for item in batch}, loader.broken


def test_a_broken_image_is_replaced_by_one_of_its_pool_always_the_same(root, monkeypatch):
    cfg = tiny_config(root, *SETTING, *SKIP)
    tasks = build_tasks(cfg)
    records = train_records(cfg, tasks)
    spoilt = spoil(records)
    alone, broken = batches_of(cfg, tasks, records)
    assert set(broken.messages) == set(spoilt)
    assert all(path in broken.messages[image] for image, path in spoilt.items())
    replaced = 0
    for draw, item in alone.items():
        drawn = records[draw.index]
        labeled = {name for name, target in item["targets"].items() if target is not None}
        assert labeled == labels_of(drawn)
        assert bool(labeled) == (draw.position < 2)
        assert item["file_name"] not in spoilt
        assert (item["file_name"] != drawn["file_name"]) == (drawn["file_name"] in spoilt)
        replaced += drawn["file_name"] in spoilt
    assert replaced > 2

    def files(items):
        return {draw: item["file_name"] for draw, item in items.items()}

    with_workers = cfg.clone()
    with_workers.DATALOADER.NUM_WORKERS = 2
    assert files(batches_of(with_workers, tasks, records)[0]) == files(alone)
    resumed = files(batches_of(cfg, tasks, records, start=5)[0])
    assert resumed == {d: name for d, name in files(alone).items() if d.step >= 5}
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    shared = {}
    for rank in (0, 1):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        shared |= files(batches_of(cfg, tasks, records)[0])
    assert shared == files(alone)


@pytest.mark.parametrize("workers", [0, 1])
def test_without_the_key_the_first_broken_image_stops_by_its_name(root, workers):
    cfg = tiny_config(root, *SETTING, "DATALOADER.NUM_WORKERS", workers)
    tasks = build_tasks(cfg)
    records = train_records(cfg, tasks)
    (image, _), _ = spoil(records).items()
    records = [r for r in records if r["file_name"] == image or not labels_of(r)] * 2
    others = active_children()
    with pytest.raises(InputError) as caught:
        batches_of(cfg, tasks, records, count=20)
    assert type(caught.value) is InputError
    assert str(caught.value).startswith(f"cannot read the image {image}: ")
    # The worker ends, though the error refers to its loader.
    for worker in (x for x in active_children() if x not in others):
        worker.join(20)
        assert not worker.is_alive()


def train_images(root):
    return sorted((root / "street" / "leftImg8bit" / "train").glob("*/*.png"))


def section(report):
    """The lines of a report about broken files."""
    text = report.read_text()
    assert text.count("## Broken files") == 1
    part = text.split("## Broken files")[1].split("\n## ")[0]
    return [line for line in part.splitlines() if line.strip()]


def test_a_training_with_broken_files_ends_and_lists_each_once(root, tmp_path, caplog):
    """Also when it goes on from a checkpoint, after which it does not meet all of them again."""
    images = train_images(root)
    missing_header, cut_image, other_cut_image = images[:3]
    missing_header.write_bytes(b"")
    cut(cut_image)
    cut(other_cut_image)
    cut_map = Path(str(images[3]).replace("leftImg8bit", "gtFine")).with_name(
        images[3].name.replace("leftImg8bit", "gtFine_labelIds")
    )
    cut(cut_map, 80)
    output = tmp_path / "out"
    opts = (*SKIP, "SOLVER.MAX_ITER", 6, "SOLVER.CHECKPOINT_PERIOD", 4, "SEED", 3)
    cfg = run_config(root, output, *opts, "SOLVER.CHECKPOINTS_TO_KEEP", 9)
    build_trainer(cfg).train()
    lines = section(output / "report.md")
    assert lines[0] == "Left out of the training, 4 in all:"
    for path in (missing_header, cut_image, other_cut_image, cut_map):
        assert sum(str(path) in line for line in lines) == 1
    places = [x for x in caplog.messages if x.startswith("Another image takes its place: ")]
    assert len(places) == len(set(places)) == 2
    (output / "report.md").unlink()
    (output / "model_0000005.pth").unlink()
    (output / "last_checkpoint").write_text("model_0000003.pth")
    build_trainer(cfg, resume=True).train()
    assert section(output / "report.md") == lines


def test_too_many_stop_the_run_at_its_start(root):
    cut(train_images(root)[2], 20)
    with pytest.raises(
        InputError, match=r"^1 of 16 training images are broken, more than .* 0\.05"
    ):
        cfg = tiny_config(root, "DATALOADER.SKIP_BROKEN", True)
        train_records(cfg, build_tasks(cfg))


def test_too_many_stop_the_run_later(root):
    cfg = tiny_config(root, *SETTING, *SKIP, "DATALOADER.MAX_BROKEN", 0.1)
    tasks = build_tasks(cfg)
    records = train_records(cfg, tasks)
    spoilt = spoil(records)
    with pytest.raises(InputError) as caught:
        batches_of(cfg, tasks, records, count=20)
    message = str(caught.value)
    assert message.startswith("2 of 16 training images are broken, more than DATALOADER.MAX_BROKEN")
    assert all(path in message for path in spoilt.values())


def test_a_broken_validation_image_is_an_error_still(root):
    path = next((root / "street" / "leftImg8bit" / "val").glob("*/*.png"))
    cut(path, 20)
    with pytest.raises(InputError, match=f"^cannot read the image {path}"):
        tiny_config(root, *SKIP)


def test_each_file_is_counted_and_told_once(caplog):
    broken = BrokenFiles({"a": "a is bad"}, num_images=4, limit=0.5)
    with caplog.at_level(logging.WARNING):
        broken.add({"b": "b is bad"})
        broken.add({"a": "a is bad", "b": "b is bad"})
    assert caplog.messages == ["Another image takes its place: b is bad"]
    assert broken.messages == {"a": "a is bad", "b": "b is bad"}
    with pytest.raises(InputError) as caught:
        broken.add({"c": "c is bad"})
    assert str(caught.value) == (
        "3 of 4 training images are broken, more than DATALOADER.MAX_BROKEN 0.5 allows, such as: "
        "a is bad; b is bad; c is bad"
    )


def test_the_ranks_tell_each_other_with_a_checkpoint(monkeypatch):
    broken = BrokenFiles({"a": "a is bad"}, num_images=9, limit=1.0)
    hook = BrokenFilesHook(broken)
    monkeypatch.setattr(comm, "all_gather", lambda mine: [mine, {"b": "b is bad"}])
    saves = iter([False, True])
    monkeypatch.setattr("mtfixmatch.engine.hooks._saves_checkpoint", lambda trainer: next(saves))
    hook.trainer = None
    hook.after_step()
    assert hook.state_dict() == {"messages": {"a": "a is bad"}}
    hook.after_step()
    assert hook.state_dict() == {"messages": {"a": "a is bad", "b": "b is bad"}}
    other = BrokenFilesHook(BrokenFiles({}, num_images=9, limit=1.0))
    other.load_state_dict(hook.state_dict())
    assert other.state_dict() == hook.state_dict()


def test_the_log_has_the_sentence_without_a_traceback(root, tmp_path, caplog):
    cfg = run_config(root, tmp_path / "out", "SOLVER.MAX_ITER", 2)
    for path in train_images(root):
        cut(path)
    trainer = build_trainer(cfg)
    with pytest.raises(InputError, match="cannot read the image"):
        trainer.train()
    assert "The training stops: cannot read the image" in caplog.text
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_a_share_is_between_0_and_1(street_root, share):
    with pytest.raises(InputError, match="MAX_BROKEN is"):
        tiny_config(street_root, "DATALOADER.MAX_BROKEN", share)
