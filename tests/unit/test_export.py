"""The results in tensors alone are those of inference; how differences are measured."""

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes
from torch import nn

from mtfixmatch.inference.aot import export_aot
from mtfixmatch.inference.export import Source
from mtfixmatch.tasks.dense_export import box_differences, suppress
from mtfixmatch.tasks.exported import tensor_difference
from mtfixmatch.tasks.segmentation_head import logits_of
from mtfixmatch.utils.errors import InputError
from tests.support.exporting import small_predictor


@pytest.mark.parametrize("head", ["RetinaNetHead", "FCOSHead"])
@pytest.mark.parametrize("size", [(96, 128), (61, 35), (1, 1)])
def test_exports_are_the_results_of_inference(head, size):
    predictor = small_predictor("TASKS.DETECTION.HEAD", head)
    source = Source.of(predictor)
    images = torch.from_numpy(np.random.default_rng(3).integers(0, 256, (2, 3, *size), np.uint8))
    exports = source.net.run(images)
    expected = predictor.model([{"image": image} for image in images])
    for i, result in enumerate(expected):
        own = {t: {k: x[i] for k, x in outputs.items()} for t, outputs in exports.items()}
        boxes, classes = (t.exported_result(own[t.name], size) for t in predictor.tasks)
        others = result["instances"]
        assert len(boxes) == len(others) and (len(others) > 20 or size == (1, 1))
        assert torch.equal(boxes.scores, others.scores)
        assert torch.equal(boxes.pred_boxes.tensor, others.pred_boxes.tensor)
        assert torch.equal(boxes.pred_classes, others.pred_classes)
        assert torch.equal(classes.argmax(dim=0), result["sem_seg"].argmax(dim=0))
        likely = result["sem_seg"].softmax(dim=0).amax(dim=0)
        assert torch.allclose(own["segmentation"]["confidence"], likely, atol=1e-6)


def test_rows_without_a_box():
    """A score over 1 is never reached, so no row has a box."""
    predictor = small_predictor("MODEL.RETINANET.SCORE_THRESH_TEST", 1.0)
    exports = Source.of(predictor).net.run(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
    own = exports["detection"]
    assert own["boxes"].shape == (2, 100, 4) and not own["boxes"].any()
    assert (own["scores"] == 0).all() and (own["classes"] == -1).all()
    (task, _) = predictor.tasks
    assert len(task.exported_result({k: x[0] for k, x in own.items()}, (32, 32))) == 0


def test_suppression_within_class_and_image():
    """Boxes of 10 x 10 moved by 2 overlap by 80 / 120 = .67, moved by 5 by 50 / 150 = .33."""
    box = torch.tensor([0.0, 0, 10, 10])
    boxes = torch.stack(
        [box, box + torch.tensor([2.0, 0, 2, 0]), box + torch.tensor([5.0, 0, 5, 0])]
    )
    boxes, scores = boxes.expand(2, 3, 4), torch.tensor([[0.9, 0.8, 0.7], [0.5, 0.6, 0.0]])
    same, other = torch.zeros(2, 3, dtype=torch.long), torch.tensor([[0, 1, 0], [0, 0, 0]])
    kept = suppress(boxes, scores, same, 2, 0.5, 100)
    assert torch.equal(kept, torch.tensor([[0.9, 0, 0.7], [0, 0.6, 0]]))
    assert torch.equal(suppress(boxes, scores, other, 2, 0.5, 100)[0], scores[0])
    assert torch.equal(suppress(boxes, scores, same, 2, 0.7, 100), scores)


def test_logits_of_a_map():
    """Of three classes, the others share what .4 leaves: .3 each."""
    classes, confidence = torch.tensor([[2, 0]], dtype=torch.uint8), torch.tensor([[0.4, 1.0]])
    shares = logits_of(classes, confidence, 3).softmax(dim=0)
    assert shares[:, 0, 0].tolist() == pytest.approx([0.3, 0.3, 0.4], abs=1e-6)
    assert shares[:, 0, 1].tolist() == pytest.approx([1, 0, 0], abs=1e-6)
    third = torch.full((1, 2), 1 / 3)  # rounding may not make another class the most likely
    assert torch.equal(logits_of(classes, third, 3).argmax(dim=0), classes.long())
    assert logits_of(torch.zeros(1, 2, dtype=torch.uint8), third, 1).shape == (1, 1, 2)


def test_differences_of_tensors():
    a = torch.tensor([1.0, 100.0])
    assert tensor_difference("x", a, a + torch.tensor([0, 0.5])).value == pytest.approx(0.005)
    assert not tensor_difference("x", a, a + 1).is_rounding
    assert not tensor_difference("x", a, a * float("nan")).is_rounding
    ids = torch.arange(1000)
    one, two = ids.clone(), ids.clone()
    one[:1], two[:2] = -1, -1
    difference = tensor_difference("x", ids, two)
    assert difference.value == pytest.approx(0.002) and not difference.is_rounding
    assert tensor_difference("x", ids, one).is_rounding
    both = difference + tensor_difference("x", ids, ids)
    assert both.value == pytest.approx(0.001) and both.total == 2000


def exports(boxes, scores, classes):
    return {
        "boxes": Boxes(torch.tensor(boxes)).tensor[None],
        "scores": torch.tensor([scores]),
        "classes": torch.tensor([classes]),
    }


def test_differences_of_boxes():
    a, b = [0.0, 0.0, 10.0, 10.0], [20.0, 20.0, 40.0, 40.0]
    ours = exports([a, b], [0.9, 0.8], [1, 1])
    share, error = box_differences(ours, exports([b, a], [0.8, 0.9], [1, 1]))
    assert share.value == error.value == 0 and share.total == error.total == 2
    share, error = box_differences(ours, exports([a, b], [0.9, 0.5], [1, 1]))
    assert share.value == 0 and error.value == pytest.approx(0.3) and not error.is_rounding
    share, _ = box_differences(ours, exports([a, b], [0.9, 0.8], [1, 2]))
    assert share.value == 0.5
    nothing = exports([a], [0.0], [-1])
    assert box_differences(ours, nothing)[0].value == 1
    assert box_differences(nothing, nothing)[0].total == 0


def test_tasks_are_chosen_by_name():
    predictor = small_predictor()
    assert [task.name for task in Source.of(predictor, ["segmentation"]).tasks] == ["segmentation"]
    with pytest.raises(InputError, match="--tasks is 'depth': it must be one of detection, segm"):
        Source.of(predictor, ["depth"])


def test_outputs_belong_to_the_task_with_the_longest_name():
    net = Source.of(small_predictor()).net
    net.tasks = ["map", "map_2"]
    split = net.split({"map_boxes": torch.zeros(1), "map_2_boxes": torch.ones(1)})
    assert split["map"]["boxes"] == 0 and split["map_2"]["boxes"] == 1


def test_a_network_that_cannot_be_exported(tmp_path):
    class Branches(nn.Module):
        size_divisibility = 32

        def forward(self, images):
            return {"res2": images} if images.sum() > 0 else {}

    from mtfixmatch.inference.export import trace

    predictor = small_predictor()
    predictor.model.backbone = Branches()
    with pytest.raises(InputError, match="^tiny: PyTorch cannot export its network") as error:
        trace(Source.of(predictor))
    assert "\n" not in str(error.value)


def test_ahead_of_time_without_a_compiler(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(InputError, match=r"--aot needs a C\+\+ compiler: install g\+\+"):
        export_aot(Source.of(small_predictor()), str(tmp_path / "model.pt2"), [])
    assert not list(tmp_path.iterdir())
