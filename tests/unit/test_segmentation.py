import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.postprocessing import sem_seg_postprocess
from PIL import Image

from mtfixmatch.augmentation import geometry
from mtfixmatch.tasks import segmentation_head
from mtfixmatch.tasks.config import set_classes
from mtfixmatch.tasks.mean_iou import MeanIoUEvaluator, count_pairs
from mtfixmatch.tasks.segmentation import Segmentation
from mtfixmatch.tasks.segmentation_head import SegmentationHead, most_likely
from mtfixmatch.utils.errors import InputError
from mtfixmatch.utils.labels import IGNORE_LABEL
from tests.support.helpers import tiny_config

K = 3
SHAPES = {"res2": ShapeSpec(channels=16, stride=4), "res5": ShapeSpec(channels=32, stride=32)}
SIZE = (8, 12)


@pytest.fixture(scope="module")
def cfg(street_root):
    return tiny_config(street_root)


@pytest.fixture(scope="module")
def make_head(cfg):
    return lambda: SegmentationHead(cfg, ["a", "b", "c"], SHAPES)


@pytest.fixture(scope="module")
def task(cfg):
    return Segmentation(cfg, "segmentation")


def constant(*logits):
    """Raw output (1, K, 2, 3) with the same logits everywhere."""
    return (torch.tensor(logits).view(1, K, 1, 1).repeat(1, 1, 2, 3),)


ONE = torch.ones(1)  # weight of one image


def label_map(fill=IGNORE_LABEL, size=SIZE):
    return torch.full(size, fill, dtype=torch.uint8)


def whole(count=1):
    return torch.tensor([[0.0, 0, SIZE[1], SIZE[0]]]).repeat(count, 1)


def test_loss_by_hand(make_head):
    target = label_map()
    target[0, :5], target[3, 2] = 1, 2  # six valid pixels
    head = make_head()
    assigned = head.assign([target], [False], SIZE)
    assert assigned[0].count == 6
    losses = head.losses(constant(0.5, -1.0, 2.0), assigned, SIZE, ONE)
    log_sum = math.log(math.exp(0.5) + math.exp(-1) + math.exp(2))
    expected = 5 * (log_sum + 1) + (log_sum - 2)
    assert set(losses) == {"ce"}
    assert float(losses["ce"]) == pytest.approx(expected, rel=1e-5)


def test_loss_is_taken_at_the_resolution_of_the_image(make_head):
    head = make_head()
    raw = torch.zeros(1, K, 1, 2)
    raw[0, 0, 0] = torch.tensor([0.0, 8.0])
    # Bilinear between the two centres at 2 and 6: at 2.5, 3.5, 4.5, 5.5 an 8th more each.
    logits = [0, 0, 1, 3, 5, 7, 8, 8]
    target = label_map(0, (4, 8))
    found = head.losses((raw,), head.assign([target], [False], (4, 8)), (4, 8), ONE)
    expected = 4 * sum(math.log(math.exp(x) + 2) - x for x in logits)
    assert float(found["ce"]) == pytest.approx(expected, rel=1e-5)


def test_ignored_pixels_have_no_gradient(make_head):
    head = make_head()
    targets = [label_map(), label_map(1)]
    raw = torch.randn(2, K, 2, 3, requires_grad=True)
    head.losses((raw,), head.assign(targets, [True, True], SIZE), SIZE, torch.ones(2))[
        "ce"
    ].backward()
    assert (raw.grad[0] == 0).all()
    assert (raw.grad[1] != 0).all()


def test_a_map_without_valid_pixels(make_head):
    head = make_head()
    assigned = head.assign([label_map()], [True], SIZE)
    assert assigned[0].count == 0
    raw = torch.randn(1, K, 2, 3, requires_grad=True)
    loss = head.losses((raw,), assigned, SIZE, ONE)["ce"]
    loss.backward()
    assert float(loss.detach()) == 0
    assert (raw.grad == 0).all()


def test_no_images(make_head):
    assert make_head().assign([], [], SIZE) == []


def soft_labels(*weights):
    """The same weight of each class at every pixel, (K, *SIZE)."""
    return torch.tensor(weights).view(K, 1, 1).repeat(1, *SIZE)


def test_soft_labels_by_hand(make_head):
    """Cross-entropy with probabilities; a pixel whose weights are all 0 takes no part."""
    head, target = make_head(), soft_labels(0.5, 0.3, 0.2)
    target[:, 2:] = 0
    assigned = head.assign([target], [True], SIZE)
    assert assigned[0].count == 2 * SIZE[1]
    loss = head.losses(constant(0.5, -1.0, 2.0), assigned, SIZE, ONE)["ce"]
    log_sum = math.log(math.exp(0.5) + math.exp(-1) + math.exp(2))
    expected = log_sum - (0.5 * 0.5 + 0.3 * -1.0 + 0.2 * 2.0)
    assert float(loss) == pytest.approx(2 * SIZE[1] * expected, rel=1e-5)
    assert head.agreement(constant(1.0, 0.0, 0.0), assigned) == 1


def test_soft_labels_move_bilinearly(task):
    target = torch.zeros(K, 2, 4)
    target[0, :, :2], target[1, :, 2:] = 1.0, 0.5
    moved = task.warp_target(target, geometry.translation(0.5, 0), (2, 4))
    # What comes from outside weighs nothing.
    assert moved[0].tolist() == [[0.5, 1.0, 0.5, 0.0]] * 2
    assert moved[1].tolist() == [[0.0, 0.0, 0.25, 0.5]] * 2
    erased = torch.tensor([[False] * 4, [True] * 4])
    moved = task.warp_target(target, geometry.identity(), (2, 4), erased)
    assert torch.equal(moved[:, 0], target[:, 0]) and (moved[:, 1] == 0).all()
    assert task.count_classes([target])[:2] == [4, 4]
    assert task.diagnose([target], [None]) == {"valid_pixels": 1.0}


def pseudo_maps(make_head, task, outputs, valid, threshold=0.0):
    """As a method makes them."""
    return task.pseudo_labels(make_head().predict(outputs, SIZE, threshold), threshold, valid)


def test_pseudo_maps_are_the_argmax(make_head, task):
    raw = torch.full((2, K, 2, 3), -3.0)
    raw[0, 1] = 0.1
    raw[1, 2, :, 0], raw[1, 0, :, 1:] = 4.0, 4.0
    first, second = pseudo_maps(make_head, task, (raw,), whole(2))
    assert first.dtype == torch.uint8 and first.shape == SIZE
    assert (first == 1).all()
    assert second[3].tolist() == [2] * 4 + [0] * 8


def test_pseudo_maps_without_threshold_keep_what_is_unsure(make_head, task):
    (found,) = pseudo_maps(make_head, task, constant(0.0, 0.01, 0.0), whole())
    assert (found == 1).all()


@pytest.mark.parametrize(("threshold", "kept"), [(0.6, True), (0.7, False)])
def test_pseudo_maps_over_a_threshold(make_head, task, threshold, kept):
    raw = constant(math.log(0.65), math.log(0.25), math.log(0.1))
    (found,) = pseudo_maps(make_head, task, raw, whole(), threshold)
    assert (found == (0 if kept else IGNORE_LABEL)).all()


def test_a_threshold_for_each_class(make_head, task):
    raw = torch.zeros(1, K, 2, 3)
    raw[0, 0], raw[0, 1, :, 2], raw[0, 0, :, 2] = 1.0, 1.0, 0.0  # probability .576 of 0, then of 1
    (found,) = pseudo_maps(make_head, task, (raw,), whole(), torch.tensor([0.5, 0.6, 0.5]))
    assert found[0, 0] == 0 and found[0, 11] == IGNORE_LABEL


@pytest.mark.parametrize("strip", [1, 4 * K * 21 * 5, 2**40])  # 1, 5 and 13 of 13 rows
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_pseudo_maps_are_the_same_in_strips_of_any_size(task, monkeypatch, strip, layout):
    logits = 2 * torch.randn(4, K, 13, 21, generator=torch.Generator().manual_seed(0))
    threshold = torch.tensor([0.5, 0.6, 0.7])
    best, classes = logits.softmax(dim=1).max(dim=1)
    expected = classes.masked_fill(best <= threshold[classes], IGNORE_LABEL)
    assert 0.2 < (expected == IGNORE_LABEL).float().mean() < 0.8
    monkeypatch.setattr("mtfixmatch.tasks.segmentation.STRIP_LOGITS", strip)
    valid = torch.tensor([[0.0, 0.0, 21.0, 13.0]] * 4)
    found = task.pseudo_labels(logits.contiguous(memory_format=layout), threshold, valid)
    assert torch.equal(torch.stack(found), expected.to(torch.uint8))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("most_threads", [0, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_most_likely_is_the_first_of_the_largest(monkeypatch, layout, most_threads, dtype):
    """In runs of pixels, in both layouts, for parts of images, and by PyTorch's own way."""
    monkeypatch.setattr(segmentation_head, "RUN", 50)
    monkeypatch.setattr(segmentation_head, "MOST_THREADS", most_threads)
    logits = torch.randn(3, 5, 11, 21, generator=torch.Generator().manual_seed(0))
    logits = logits.mul(3).round().div(3).to(dtype).contiguous(memory_format=layout)
    logits[0, :, 2] = -torch.inf
    expected = logits.float().numpy().argmax(axis=1)
    found = most_likely(logits)
    assert found.dtype == torch.uint8 and np.array_equal(found, expected)
    assert np.array_equal(most_likely(logits[1]), expected[1])
    assert np.array_equal(most_likely(logits[..., 2:9, 3:]), expected[..., 2:9, 3:])
    assert most_likely(logits[:0]).shape == (0, 11, 21)
    logits[0, 1, 0], logits[1, :, 0] = torch.nan, torch.nan
    assert most_likely(logits).max() < 5


def test_probability_has_to_be_over_the_threshold_itself(make_head, task):
    raw = constant(0.0, 0.0, -200.0)  # .5 exactly
    (found,) = pseudo_maps(make_head, task, raw, whole(), 0.5)
    assert (found == IGNORE_LABEL).all()


def test_padding_has_no_pseudo_label(make_head, task):
    valid = torch.tensor([[2.0, 1, 11, 6], [2.4, 0, 12, 7.6]])
    raw = (constant(0.0, 1.0, 0.0)[0].repeat(2, 1, 1, 1),)
    first, second = pseudo_maps(make_head, task, raw, valid)
    expected = label_map()
    expected[1:6, 2:11] = 1
    assert torch.equal(first, expected)
    # A pixel counts by its centre: 2.5 and 7.5 lie inside.
    expected = label_map()
    expected[0:8, 2:12] = 1
    assert torch.equal(second, expected)


def test_agreement_by_hand(make_head):
    head = make_head()
    target = label_map()
    target[0, :3], target[1, :1] = 2, 1
    assigned = head.assign([target], [True], SIZE)
    assert head.agreement(constant(0.0, 0.0, 1.0), assigned) == 0.75
    nothing = head.assign([label_map()], [True], SIZE)
    assert math.isnan(head.agreement(constant(0.0, 0.0, 1.0), nothing))


def test_results_at_the_size_of_the_image(make_head):
    raw = constant(0.0, 2.0, 1.0)
    (found,) = make_head().inference(raw, SIZE, (6, 10), [(30, 50)])
    assert found.shape == (K, 30, 50)
    torch.testing.assert_close(found[:, 17, 4], torch.tensor([0.0, 2.0, 1.0]))


def test_padding_is_cut_off_before_resizing(make_head):
    raw = torch.zeros(1, K, 2, 3)
    raw[0, 1, :, :2], raw[0, 2, :, 2] = 5.0, 50.0  # the last 4 of 12 columns are padding
    (found,) = make_head().inference((raw,), SIZE, (8, 6), [(16, 12)])
    assert (found.argmax(0) == 1).all()


def plain_head(stride):
    head = torch.nn.Identity()
    head.in_features = []
    return SegmentationHead(head=head, stride=stride)


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("ties", [True, False])
@pytest.mark.parametrize(
    ("stride", "rows", "columns"),
    [
        (4, 200, 40),
        (4, 131, 5),
        (4, 64, 3),
        (4, 63, 20),
        (8, 97, 9),
        (3, 90, 30),
        (4, 5, 6),
        (2, 150, 10),
        (1, 300, 9),
    ],
)
def test_strips_have_the_classes_of_whole_logits(channels_last, ties, stride, rows, columns):
    """Bit by bit, also where classes tie, as bfloat16 makes them."""
    logits = torch.randn(2, 7, rows, columns, generator=torch.Generator().manual_seed(rows))
    if ties:
        logits = (logits * 2).round() / 2
    if channels_last:
        logits = logits.contiguous(memory_format=torch.channels_last)
    size = (rows * stride, columns * stride)
    image_size = (size[0] - 3, size[1] - 5)
    head = plain_head(stride)
    arguments = ((logits,), size, image_size, [image_size] * 2)
    expected = [x.argmax(dim=0) for x in head.inference(*arguments)]
    found = head.inference_for_evaluator(*arguments)
    assert all(x.dtype == torch.uint8 and x.shape == image_size for x in found)
    assert all(torch.equal(a.long(), b) for a, b in zip(found, expected, strict=True))


def test_logits_at_the_size_of_the_image_are_not_resized_again():
    """Detectron2's resizing to the same size gives the same logits."""
    logits, head = torch.randn(1, 7, 9, 11), plain_head(4)
    arguments = ((logits,), (36, 44), (33, 40))
    (found,) = head.inference(*arguments, [(33, 40)])
    full = torch.nn.functional.interpolate(logits, scale_factor=4, mode="bilinear")[0]
    assert torch.equal(found, sem_seg_postprocess(full, (33, 40), 33, 40))
    (larger,) = head.inference(*arguments, [(66, 80)])
    assert torch.equal(larger, sem_seg_postprocess(full, (33, 40), 66, 80))
    (classes,) = head.inference_for_evaluator(*arguments, [(66, 80)])
    assert torch.equal(classes.long(), larger.argmax(dim=0))


def test_moved_maps_ignore_what_comes_from_outside_and_what_is_erased(task):
    target = torch.arange(12, dtype=torch.uint8).view(3, 4)
    erased = torch.zeros(3, 4, dtype=torch.bool)
    erased[1, 2:] = True
    moved = task.warp_target(target, geometry.translation(1, 0), (3, 4), erased)
    x = IGNORE_LABEL
    assert moved.tolist() == [[x, 0, 1, 2], [x, 4, x, x], [x, 8, 9, 10]]
    flip = geometry.horizontal_flip(4)
    assert torch.equal(task.warp_target(target, flip, (3, 4)), target.flip(1))


def test_ignored_pixels_stay_ignored(task):
    target = label_map()
    moved = task.warp_target(target, geometry.rotation(20), SIZE)
    assert (moved == IGNORE_LABEL).all()


def make_record(folder, labels, name="map.png", **changes):
    Image.fromarray(np.asarray(labels, np.uint8)).save(folder / name)
    lut = bytearray([IGNORE_LABEL] * 256)
    lut[10], lut[20], lut[30] = 0, 1, 2
    height, width = np.asarray(labels).shape
    record = {
        "image_id": name,
        "file_name": str(folder / "image.png"),
        "sem_seg_file_name": str(folder / name),
        "sem_seg_lut": bytes(lut),
        "height": height,
        "width": width,
    }
    return record | changes


def test_raw_ids_become_classes(tmp_path, task):
    record = make_record(tmp_path, [[10, 20, 30], [0, 255, 11]])
    assert task.load_map(record).tolist() == [[0, 1, 2], [IGNORE_LABEL] * 3]
    found = task.load_target(record)
    assert found.dtype == torch.uint8 and found.tolist() == task.load_map(record).tolist()


def test_a_map_of_another_size_names_both_files(tmp_path, task):
    record = make_record(tmp_path, [[10, 20]], height=3)
    with pytest.raises(InputError) as error:
        task.load_map(record)
    message = str(error.value)
    assert record["sem_seg_file_name"] in message and record["file_name"] in message
    assert "(1, 2)" in message and "(3, 2)" in message


def test_a_map_of_16_bits_needs_ids_of_8(tmp_path, task):
    record = make_record(tmp_path, [[10, 20]])
    Image.fromarray(np.array([[20, 30]], np.uint16)).save(record["sem_seg_file_name"])
    assert task.load_map(record).tolist() == [[1, 2]]
    Image.fromarray(np.array([[20, 300]], np.uint16)).save(record["sem_seg_file_name"])
    with pytest.raises(InputError, match=r"map\.png: has the value 300, expected .* 0 to 255"):
        task.load_map(record)


def test_the_reader_of_a_record_reads_its_map(tmp_path, task):
    record = make_record(tmp_path, [[10, 20]])
    del record["sem_seg_lut"]
    record |= {"sem_seg_file_name": "maps.txt", "sem_seg_reader": SimpleNamespace()}
    record["sem_seg_reader"].read = lambda path, size: np.full(size, len(path), np.uint8)
    assert task.load_map(record).tolist() == [[8, 8]]
    record["sem_seg_reader"].read = lambda path, size: np.zeros((7, 2), np.uint8)
    with pytest.raises(InputError, match=r"maps\.txt is \(7, 2\), but its image .*\(1, 2\)"):
        task.load_map(record)


@pytest.mark.parametrize("content", ["missing", "empty", "truncated"])
def test_an_unreadable_map_is_named(tmp_path, task, content):
    noise = np.random.default_rng(0).integers(0, 255, (50, 50))
    record = make_record(tmp_path, noise)
    path = tmp_path / "map.png"
    data = path.read_bytes()
    path.write_bytes(data[:900] if content == "truncated" else b"")
    if content == "missing":
        path.unlink()
    with pytest.raises(InputError, match=r"cannot read the image .*map\.png"):
        task.load_map(record)


def logits_of(prediction, classes=4):
    onehot = torch.nn.functional.one_hot(torch.tensor(prediction), classes)
    return {"sem_seg": onehot.permute(2, 0, 1).float()}


NAMES = ["road", "sky", "tree", "train"]


def test_mean_iou_by_hand(tmp_path, task):
    first = make_record(tmp_path, [[10, 10, 20, 0]], "a.png")
    second = make_record(tmp_path, [[20, 20], [30, 10]], "b.png")
    unlabeled = {"image_id": "c.png"}
    evaluator = MeanIoUEvaluator([first, second, unlabeled], NAMES, task.load_map)
    evaluator.process([{"image_id": "c.png"}], [logits_of([[1, 1]])])
    evaluator.process(
        [{"image_id": "a.png"}, {"image_id": "b.png"}],
        [logits_of([[0, 1, 1, 2]]), logits_of([[1, 2], [2, 0]])],
    )
    found = evaluator.evaluate()
    # road: 2 of 3; sky: 2 of 4; tree: 1 of 2; no train anywhere.
    iou = found["per_class"]
    assert list(iou) == NAMES and math.isnan(iou["train"])
    assert (iou["road"], iou["sky"], iou["tree"]) == pytest.approx((2 / 3, 1 / 2, 1 / 2))
    assert found["mIoU"] == pytest.approx((2 / 3 + 1 / 2 + 1 / 2) / 3)


def test_a_class_that_is_only_predicted_has_iou_0(tmp_path, task):
    record = make_record(tmp_path, [[10, 10]])
    evaluator = MeanIoUEvaluator([record], NAMES, task.load_map)
    evaluator.process([{"image_id": "map.png"}], [logits_of([[0, 3]])])
    found = evaluator.evaluate()
    assert (found["per_class"]["road"], found["per_class"]["train"]) == (0.5, 0)
    assert found["mIoU"] == 0.25
    evaluator.reset()
    evaluator.process([{"image_id": "map.png"}], [logits_of([[0, 0]])])
    assert evaluator.evaluate()["mIoU"] == 1


def test_classes_and_a_map_from_a_data_worker_count_as_logits_and_a_file_do(tmp_path, task):
    record = make_record(tmp_path, [[10, 10, 20, 0], [30, 20, 10, 10]])
    prediction = [[0, 1, 1, 2], [1, 1, 2, 0]]
    plain = MeanIoUEvaluator([record], NAMES, task.load_map)
    plain.process([record], [logits_of(prediction)])
    ready = MeanIoUEvaluator([record], NAMES, lambda record: pytest.fail("read again"))
    item = {"image_id": "map.png", "labels": {"sem_seg_file_name": task.evaluation_label(record)}}
    ready.process([item], [{"sem_seg": torch.tensor(prediction, dtype=torch.uint8)}])
    expected = plain.evaluate()
    assert repr(ready.evaluate()) == repr(expected) == repr(ready.evaluate())
    assert expected["mIoU"] == pytest.approx((2 / 4 + 2 / 4 + 0 / 3) / 3)


def test_pairs_by_hand():
    x = IGNORE_LABEL
    classes = torch.tensor([[0, 1, 1], [2, 2, 0]], dtype=torch.uint8)
    labels = torch.tensor([[0, 1, 0], [x, 2, x]], dtype=torch.uint8)
    found = count_pairs(classes, labels, 3)
    assert found.tolist() == [[1, 0, 0, 1], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 0, 0]]
    many = torch.full((5, 5), 253, dtype=torch.uint8)
    assert count_pairs(many, many, 254)[253, 253] == 25


class OnDevice(torch.Tensor):
    """Tensors as of a GPU: those of an image's size cannot be brought back."""

    LEAVING = ("cpu", "numpy", "tolist", "item", "__array__", "nonzero", "__getitem__")
    is_cuda = True

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        to_host = function.__name__ == "to" and "cpu" in map(str, args[1:])
        if (function.__name__ in cls.LEAVING or to_host) and args[0].numel() >= 1000:
            raise AssertionError(f"{function.__name__} of {tuple(args[0].shape)}")
        return super().__torch_function__(function, types, args, kwargs or {})


@pytest.mark.parametrize("count", [5, 19, 255])
def test_a_cpu_counts_the_pairs_of_a_gpu_in_parts_of_any_size(monkeypatch, count):
    rng = torch.Generator().manual_seed(count)
    classes, labels = torch.randint(0, count, (2, 23, 31), generator=rng).to(torch.uint8)
    labels[3:5] = IGNORE_LABEL
    on_device = count_pairs(classes.as_subclass(OnDevice), labels.as_subclass(OnDevice), count)
    expected = on_device.as_subclass(torch.Tensor)
    assert expected.sum() == 23 * 31 and expected[:, count].sum() == 62
    for most in (2**24, 100, 1):
        monkeypatch.setattr("mtfixmatch.tasks.mean_iou.MOST_COUNTED", most)
        found = count_pairs(classes, labels, count)
        assert found.dtype == torch.int64 and torch.equal(found, expected)
    assert count_pairs(classes[:, ::2], labels[:, ::2], count).sum() == 23 * 16


def test_nothing_of_the_size_of_an_image_leaves_the_device(tmp_path, task):
    record = make_record(tmp_path, np.full((40, 60), 10))
    item = {"image_id": "map.png", "labels": {"sem_seg_file_name": task.evaluation_label(record)}}
    classes = torch.zeros(40, 60, dtype=torch.uint8).as_subclass(OnDevice)
    logits = torch.eye(4)[0].view(4, 1, 1).expand(4, 40, 60).as_subclass(OnDevice)
    evaluator = MeanIoUEvaluator([record], NAMES, task.load_map)
    for result in (classes, logits):
        evaluator.process([item], [{"sem_seg": result}])
    assert isinstance(evaluator._counts, OnDevice)
    assert evaluator.evaluate()["mIoU"] == 1
    for leave in (lambda: classes.cpu(), lambda: classes.to("cpu"), classes.tolist):
        with pytest.raises(AssertionError, match=r"of \(40, 60\)"):
            leave()


def test_no_labeled_pixel_has_no_figure(tmp_path, task):
    record = make_record(tmp_path, [[0, 0]])
    evaluator = MeanIoUEvaluator([record], NAMES, task.load_map)
    evaluator.process([{"image_id": "map.png"}], [logits_of([[0, 3]])])
    found = evaluator.evaluate()
    assert math.isnan(found["mIoU"]) and all(map(math.isnan, found["per_class"].values()))


def test_diagnosis_by_hand(task):
    x = IGNORE_LABEL
    pseudo = [torch.tensor([[0, 1], [x, 2]]).byte(), torch.tensor([[x, x], [x, 1]]).byte()]
    known = [torch.tensor([[0, 2], [1, x]]).byte(), None]
    assert task.diagnose(pseudo, known) == {"valid_pixels": 0.5, "accuracy": 0.5}
    assert task.diagnose(pseudo, [None, None]) == {"valid_pixels": 0.5}


# A map that is not finished: the teacher labels what it ignores


def test_a_pseudo_map_is_restricted_to_the_pixels_without_a_label(make_head, task):
    x = IGNORE_LABEL
    label, pseudo = label_map(0), label_map(1)
    label[0, :3], pseudo[0, 2] = x, x  # three pixels without a label; of one nothing is known
    found = task.restrict_pseudo_label(pseudo, label)
    assert found[0].tolist() == [1, 1, x] + [x] * 9 and (found[1:] == x).all()
    head = make_head()
    assigned = head.assign([label, found], [False, True], SIZE)
    assert [int(a.count) for a in assigned] == [93, 2]
    losses = [head.losses(constant(0.5, -1.0, 2.0), [a], SIZE, ONE)["ce"] for a in assigned]
    log_sum = math.log(math.exp(0.5) + math.exp(-1) + math.exp(2))
    assert [float(loss) for loss in losses] == pytest.approx(
        [93 * (log_sum - 0.5), 2 * (log_sum + 1)], rel=1e-5
    )
    # Nothing is known of what the teacher adds to the label itself.
    assert task.diagnose([found], [label]) == {"valid_pixels": pytest.approx(2 / 96)}


def test_soft_labels_are_restricted_too(task):
    label = label_map(0)
    label[0, 0] = IGNORE_LABEL
    found = task.restrict_pseudo_label(soft_labels(0.25, 0.75, 0.0), label)
    assert found[:, 0, 0].tolist() == [0.25, 0.75, 0.0] and found.sum() == 1


def test_records_of_partial_maps(cfg, task):
    record = {"file_name": "a.png"}
    assert not task.is_partial(record) and not task.is_partial(record | {"sem_seg_partial": False})
    assert task.is_partial(record | {"sem_seg_partial": True})
    assert not task.is_partial(record | {"labeled_classes": [0]})  # those of the boxes
    own = cfg.clone()
    own.TASKS.DRIVABLE = own.TASKS.SEGMENTATION.clone()
    drivable = Segmentation(own, "drivable")
    assert drivable.is_partial(record | {"drivable_sem_seg_partial": True})
    assert not drivable.is_partial(record | {"sem_seg_partial": True})
    with pytest.raises(InputError, match=r"record of a\.png: sem_seg_partial is 'yes': it must"):
        task.is_partial(record | {"sem_seg_partial": "yes"})


def test_results_as_targets_for_pictures(task):
    found = task.result_target(logits_of([[3, 1], [0, 2]]), 0.5)
    assert found.dtype == torch.uint8 and found.tolist() == [[3, 1], [0, 2]]


def test_number_of_classes_comes_from_the_data(cfg):
    own = cfg.clone()
    assert len(own.TASKS.SEGMENTATION.CLASSES) == 19
    own.TASKS.SEGMENTATION.CLASSES, own.MODEL.SEM_SEG_HEAD.NUM_CLASSES = [], 19
    with pytest.raises(InputError, match=r"MODEL\.SEM_SEG_HEAD\.NUM_CLASSES is 19, but .* has 3"):
        set_classes(own, "segmentation", ["a", "b", "c"])
