"""What docs/scale.md says follows from the counts."""

import json

import pytest

from mtfixmatch.data.datasets import get_records, record_cache, register_datasets
from mtfixmatch.engine.setup import resolve_config
from tools import scale, scale_records

MILLION = 10**6


def start(seconds):
    stages = dict.fromkeys(scale_records.STAGES, seconds)
    memory = {"rank_mib": 100.0, "mapped_mib": 7.0, "worker_mib": 20.0}
    return {"later": {"seconds": stages, "cpu_seconds": stages, **memory}}


def counted(processes):
    calls = {"gradients": 8, "allreduce": 2, "allgather": 3}
    sizes = {"gradients": 79 * MILLION, "allreduce": MILLION, "allgather": processes * MILLION}
    return {"processes": processes, "collectives": calls, "bytes": sizes}


COSTS = {"GFLOP": 3.0, "activations_mib": 4.0, "parameters": 5 * MILLION}
FOUND = {
    "images": [{"images": n, "labeled": n // 10, **start(n)} for n in (1000, 10_000)],
    "labels": [{"images": 1000, "labeled": n, **start(n)} for n in (10, 100)],
    "tasks": [{"tasks": ["detection"] * n, **COSTS} for n in (1, 1, 2, 3)],
    "sizes": [{"size": n, **COSTS} for n in (256, 512)],
    "processes": [{"processes": 1, "collectives": {}, "bytes": {}}, counted(2), counted(4)],
    "per_core": 32.0,
}


def test_needs_by_hand():
    """16 images and 5 steps a second of each GPU, 8 GPUs a node."""
    values = list(scale.needs(64, FOUND, 32.0).values())
    cores, disk = 16 * 5 * 8 / 32, 16 * 5 * 8 * scale.IMAGE_MB
    ring, gathered = 2 * 63 / 64 * 80, 64  # MB
    network = (ring + gathered) * 5 * 8 / 1000
    assert values == pytest.approx(
        [1024, 5120, cores, disk, 13, ring, gathered, network, 100.0], rel=1e-9
    )
    few, many = (list(scale.needs(gpus, FOUND, 32.0).values()) for gpus in (8, 512))
    assert few[2:4] == many[2:4]  # what a node needs


def test_tables_and_plots_have_all_figures(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(scale, "OUTPUT", str(tmp_path / "scale"))
    scale.show(json.loads(json.dumps(FOUND)))
    assert (tmp_path / "scale.png").stat().st_size > 10_000
    printed = capsys.readouterr().out
    assert "512 GPUs" in printed and "8 (79.000 MB)" in printed
    assert printed.count("\n\n") == 4


def test_a_listing_has_its_images_and_boxes(tmp_path, monkeypatch):
    monkeypatch.setattr(scale_records, "PER_FOLDER", 4)
    monkeypatch.setattr(scale_records, "LINKS", 3)
    scale_records.write_listing(tmp_path, 10, 5)
    images = sorted((tmp_path / "train").glob("*/*.png"))
    assert len(images) == 10 and len({path.stat().st_ino for path in images}) == 4
    content = json.loads((tmp_path / "train_5.json").read_text())
    names = [f"{tmp_path}/train/{image['file_name']}" for image in content["images"]]
    assert len(set(names)) == 5 and set(names) <= set(map(str, images))
    assert [a["image_id"] for a in content["annotations"]] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


def test_kept_records_are_those_that_the_reader_returns(tmp_path, monkeypatch):
    """A listing too long to read is kept with what the reader would leave for validation."""
    monkeypatch.setattr(scale_records, "PER_FOLDER", 4)
    monkeypatch.setattr(scale_records, "LINKED", 2)
    monkeypatch.setattr(record_cache, "MIN_RECORDS", 1)
    small, root = tmp_path / "10", tmp_path / "20"
    scale_records.write_listing(small, 10, 5)
    scale_records.link_listing(root, 20, 10)
    scale_records.keep_listing(str(root), 20, 10)
    read, kept = (_start_records(folder, n) for folder, n in ((small, 5), (root, 10)))
    read_boxes, kept_boxes = (
        [x.pop("annotations") for x in found if "annotations" in x] for found in (read, kept)
    )
    assert kept == [x | _names(x, root, part) for part in range(2) for x in read]
    assert kept_boxes == 2 * read_boxes and len(kept_boxes) == 10


def _start_records(root, labeled):
    """The records of a start, which are those of the cache where there is one."""
    pairs = scale_records._keys(str(root), labeled) | {"DATALOADER.NUM_WORKERS": 0}
    register_datasets(resolve_config(scale_records.CONFIG, [x for p in pairs.items() for x in p]))
    return list(get_records(["coco_style_train"]))


def _names(record, root, part):
    name = f"{part}/{record['image_id']}"
    return {"image_id": name, "file_name": f"{root}/train/{name}"}
