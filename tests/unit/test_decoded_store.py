"""The store of decoded images: the pixels of a read, whatever has happened to its files."""

import os
import shutil
from collections import namedtuple

import numpy as np
import pytest
import torch
from PIL import Image

from mtfixmatch.data import decoded_store
from mtfixmatch.data.decoded_store import DecodedStore
from mtfixmatch.data.loader import (
    build_eval_loader,
    build_train_loader,
    eval_records,
    train_records,
)
from mtfixmatch.tasks import build_tasks
from mtfixmatch.utils.errors import InputError
from tests.support.disk_faults import FAULTS, at_byte, raising
from tests.support.helpers import tiny_config

SIZE = [20, 31]
PIXELS = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "image.png"
    Image.fromarray(PIXELS).save(path)
    return path


@pytest.fixture
def store(tmp_path):
    return DecodedStore(str(tmp_path / "store"))


@pytest.fixture
def decoded(monkeypatch):
    """The paths that are decoded."""
    paths, read = [], decoded_store.read_rgb_pixels

    def read_and_note(path, *args):
        paths.append(path)
        return read(path, *args)

    monkeypatch.setattr(decoded_store, "read_rgb_pixels", read_and_note)
    return paths


def files_of(store):
    return [os.path.join(root, x) for root, _, names in os.walk(store.folder) for x in names]


def read(store, image, *options):
    pixels = store.read(str(image), SIZE, *options)
    assert pixels.dtype == np.uint8
    return pixels


def test_an_image_is_decoded_once(store, image, decoded):
    for _ in range(3):
        assert np.array_equal(read(store, image), PIXELS)
    assert np.array_equal(read(DecodedStore(store.folder), image), PIXELS)
    assert decoded == [str(image)] and len(files_of(store)) == 1


def test_the_folder_may_be_deleted(store, image, decoded, caplog):
    pixels = read(store, image)
    mapped = read(store, image)
    shutil.rmtree(store.folder)
    assert np.array_equal(read(store, image), pixels) and np.array_equal(mapped, pixels)
    assert len(decoded) == 2 and len(files_of(store)) == 1 and not caplog.messages


def test_a_changed_image_is_decoded_again(store, image, decoded):
    read(store, image)
    status = os.stat(image)
    os.utime(image, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    read(store, image)
    Image.fromarray(255 - PIXELS).save(image)
    image.write_bytes(image.read_bytes() + b"another size")
    os.utime(image, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert np.array_equal(read(store, image), 255 - PIXELS)
    assert len(decoded) == 3 and len(files_of(store)) == 1


def test_another_range_of_16_bits_is_decoded_again(store, image, decoded):
    values = np.arange(SIZE[0] * SIZE[1], dtype=np.uint16).reshape(SIZE)
    Image.fromarray(values).save(image)
    assert read(store, image).max() == values.max() // 256
    assert np.array_equal(read(store, image, (0, 1023))[..., 0], values // 4)
    assert np.array_equal(read(store, image, (0, 1023))[..., 0], values // 4)
    assert len(decoded) == 2


@pytest.mark.parametrize("content", [b"", b"mtfixmatch", "header", "cut off", "longer"])
def test_a_damaged_file_is_replaced(store, image, decoded, content):
    read(store, image)
    (file,) = files_of(store)
    with open(file, "rb") as opened:
        whole = opened.read()
    parts = {"header": b"x" + whole[1:], "cut off": whole[:-1], "longer": whole + b"x"}
    with open(file, "wb") as opened:
        opened.write(parts.get(content, content))
    for _ in range(2):
        assert np.array_equal(read(store, image), PIXELS)
    assert len(decoded) == 2
    with open(file, "rb") as opened:
        assert opened.read() == whole


@pytest.mark.parametrize("content", [None, b"", "cut off"])
def test_a_broken_image_has_the_error_of_before_and_is_not_kept(store, image, content):
    whole = image.read_bytes()
    if content is None:
        image.unlink()
    else:
        image.write_bytes(whole[:300] if content == "cut off" else content)
    for _ in range(2):
        with pytest.raises(InputError, match=f"cannot read the image {image}"):
            read(store, image)
    assert files_of(store) == []


def test_another_size_than_recorded_is_an_error_also_of_a_kept_image(store, image):
    read(store, image)
    with pytest.raises(InputError, match=r"is \(20, 31\), not \(31, 20\)"):
        store.read(str(image), SIZE[::-1])
    assert np.array_equal(read(store, image), PIXELS)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_full_disk_is_one_warning(store, image, caplog, fault):
    for offset in (0, 70):
        with at_byte(offset, raising(FAULTS[fault])):
            assert np.array_equal(read(store, image), PIXELS)
    assert files_of(store) == []
    (message,) = caplog.messages
    assert message.startswith("DATALOADER.DECODED_STORE: no more images are kept (")


def test_the_last_twentieth_of_the_disk_stays_free(store, image, caplog, monkeypatch):
    usage = namedtuple("usage", "total free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(1000, 49))
    assert np.array_equal(read(store, image), PIXELS)
    assert files_of(store) == []
    assert caplog.messages == [
        "DATALOADER.DECODED_STORE: no more images are kept (less than 5% of the disk is free)"
    ]


def test_a_folder_that_cannot_be_is_named(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match=r"^DATALOADER.DECODED_STORE .*file/store: the folder"):
        DecodedStore(str(tmp_path / "file" / "store"))


def batch_of(cfg):
    tasks = build_tasks(cfg)
    (image, *_) = build_eval_loader(cfg, eval_records(cfg, tasks)[:1])
    batch = next(iter(build_train_loader(cfg, tasks, train_records(cfg, tasks))))
    views = [(item["image"], item["valid"], item["targets"]["segmentation"]) for item in batch]
    return [image[0]["image"], *(x for view in views for x in view if x is not None)]


def test_views_and_whole_images_are_the_same_with_a_store(street_root, tmp_path):
    opts = ("DATALOADER.NUM_WORKERS", 1, "DATALOADER.DECODED_STORE", str(tmp_path / "store"))
    sampling = ("DATALOADER.SAMPLING", "implicit")
    plain = batch_of(tiny_config(street_root, *sampling))
    for _ in range(2):  # an empty store and one with the images
        kept = batch_of(tiny_config(street_root, *sampling, *opts))
        assert len(kept) == len(plain) and all(map(torch.equal, kept, plain))
        assert len(os.listdir(tmp_path / "store")) > 1
