"""Batches that a data worker hands over as one block per data type."""

import io

import pytest
import torch
from detectron2.structures import Boxes, Instances
from torch.utils.data import DataLoader
from torch.utils.data._utils.pin_memory import pin_memory

from mtfixmatch.data.packed import PackedBatch
from mtfixmatch.data.samplers import Draw
from mtfixmatch.utils.devices import stack
from mtfixmatch.utils.errors import InputError


def make_item(i, boxes=2):
    generator = torch.Generator().manual_seed(i)
    objects = Instances((6, 8))
    objects.gt_boxes = Boxes(torch.rand(boxes, 4, generator=generator))
    objects.gt_classes = torch.arange(boxes)
    objects.gt_ignore = torch.arange(boxes) > 1
    image = torch.randint(0, 256, (3, 6, 8), generator=generator, dtype=torch.uint8)
    return {
        "image": image,
        "targets": {"detection": objects, "segmentation": image[0].T, "depth": None},
        "weights": (torch.tensor(i / 3, dtype=torch.float64), [torch.zeros(0, 5)]),
        "draw": Draw(i, 7, i),
        "file_name": f"{i}.png",
    }


def assert_equal(item, expected):
    assert item.keys() == expected.keys()
    for key in ("draw", "file_name"):
        assert item[key] == expected[key]
    boxes, others = item["targets"]["detection"], expected["targets"]["detection"]
    assert boxes.image_size == (6, 8) and type(boxes.gt_boxes) is Boxes
    pairs = [
        (item["image"], expected["image"]),
        (item["targets"]["segmentation"], expected["targets"]["segmentation"]),
        (item["weights"][0], expected["weights"][0]),
        (item["weights"][1][0], expected["weights"][1][0]),
        (boxes.gt_boxes.tensor, others.gt_boxes.tensor),
        (boxes.gt_classes, others.gt_classes),
        (boxes.gt_ignore, others.gt_ignore),
    ]
    assert all(a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs)


class Items(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, i):
        return InputError("3.png is broken") if i == 3 else make_item(i, boxes=i)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("batch_size", [1, 4])  # the first item alone has no box at all
def test_items_come_out_as_they_went_in(workers, batch_size):
    options = {"num_workers": workers, "collate_fn": PackedBatch.of}
    batches = list(DataLoader(Items(), batch_size, **options))
    assert {str(dtype) for dtype in batches[0].blocks} == {
        *("torch.uint8", "torch.float32", "torch.float64", "torch.int64", "torch.bool")
    }
    *items, error = [item for packed in batches for item in packed.items()]
    for i, item in enumerate(items):
        assert_equal(item, make_item(i, boxes=i))
    assert type(error) is InputError and str(error) == "3.png is broken"


def test_the_images_are_stacked_without_a_copy():
    items = PackedBatch.of([make_item(i) for i in range(4)]).items()
    images = [item["image"] for item in items]
    stacked = stack(images)
    assert stacked.data_ptr() == images[0].data_ptr()
    assert torch.equal(stacked, torch.stack(images))


@pytest.mark.parametrize("change", ["order", "gap", "other memory", "transposed"])
def test_images_elsewhere_are_copied(change):
    images = [item["image"] for item in PackedBatch.of([make_item(i) for i in range(4)]).items()]
    changed = {
        "order": images[::-1],
        "gap": images[::2],
        "other memory": [*images[:3], images[3].clone()],
        "transposed": [image.transpose(1, 2) for image in images],
    }[change]
    stacked = stack(changed)
    assert torch.equal(stacked, torch.stack(changed))
    assert stacked.data_ptr() != changed[0].data_ptr()


def test_items_can_be_saved_with_a_bad_step():
    """`torch.save` refuses tensors of several types in one memory."""
    items = PackedBatch.of([make_item(i) for i in range(2)]).items()
    file = io.BytesIO()
    torch.save(items, file)
    file.seek(0)
    for i, item in enumerate(torch.load(file, weights_only=False)):
        assert_equal(item, make_item(i))


def test_pytorch_pins_the_blocks_alone(monkeypatch):
    """As its loader does for a GPU; a pinned block is a copy."""
    pinned = []

    def pin(tensor):
        pinned.append(tensor.dtype)
        return tensor.clone()

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    packed = PackedBatch.of([make_item(i) for i in range(3)])
    result = pin_memory(packed)
    assert sorted(map(str, pinned)) == sorted(map(str, packed.blocks))
    for i, item in enumerate(result.items()):
        assert_equal(item, make_item(i))
        assert item["image"].data_ptr() != packed.items()[i]["image"].data_ptr()
