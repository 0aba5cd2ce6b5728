"""What a network answers to images as users have them: the right result or one clear error."""

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model

from mtfixmatch.utils.errors import InputError
from tests.support.helpers import tiny_config


@pytest.fixture(scope="module")
def model(street_root):
    # Boxes of an untrained network have low scores.
    cfg = tiny_config(street_root, "MODEL.RETINANET.SCORE_THRESH_TEST", 0.0)
    torch.manual_seed(0)
    return build_model(cfg).eval()


def values(output):
    return output if isinstance(output, torch.Tensor) else output.pred_boxes.tensor


HWC = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
CHW = torch.from_numpy(HWC.transpose(2, 0, 1).copy())
SAME = {
    "uint8 tensor": CHW,
    "float tensor": CHW.float(),
    "double tensor": CHW.double(),
    "half tensor": CHW.half(),
    "uint8 array": CHW.numpy(),
    "float64 array": CHW.numpy().astype(np.float64),
    "BGR array of OpenCV, turned into RGB": HWC[..., ::-1][..., ::-1].transpose(2, 0, 1),
    "tensor that is not contiguous": torch.from_numpy(HWC).permute(2, 0, 1),
}


@pytest.mark.parametrize("name", SAME)
def test_images_of_other_types_have_the_same_result(model, name):
    (result,), (expected,) = model([{"image": SAME[name]}]), model([{"image": CHW}])
    for key in ("sem_seg", "instances"):
        assert torch.equal(values(result[key]), values(expected[key]))


def test_a_black_image_of_floats_is_no_image_in_0_to_1(model):
    (result,) = model([{"image": torch.zeros(3, 32, 32)}])
    (expected,) = model([{"image": torch.zeros(3, 32, 32, dtype=torch.uint8)}])
    assert torch.equal(result["sem_seg"], expected["sem_seg"])


@pytest.mark.parametrize("size", [(1, 1), (1, 33), (5, 400), (400, 1), (31, 2)])
def test_tiny_and_narrow_images(model, size):
    (result,) = model([{"image": torch.randint(0, 256, (3, *size)).byte()}])
    assert result["sem_seg"].shape[1:] == size and result["sem_seg"].isfinite().all()
    boxes = result["instances"].pred_boxes.tensor
    assert boxes.isfinite().all()
    assert (boxes[:, 2:] <= torch.tensor([size[1], size[0]])).all()


CHANNELS = r"uint8 or floating point with values in 0-255 \(channels first, .*; found"
NORMAL = (CHW.float() - 120) / 60
WRONG = {
    "HWC array": (HWC, rf"{CHANNELS} uint8 ndarray of shape \(50, 70, 3\)$"),
    "HWC tensor": (torch.from_numpy(HWC), rf"{CHANNELS} uint8 Tensor of shape \(50, 70, 3\)$"),
    "grey": (CHW[:1], rf"{CHANNELS} uint8 Tensor of shape \(1, 50, 70\)$"),
    "without channels": (CHW[0], rf"{CHANNELS} uint8 Tensor of shape \(50, 70\)$"),
    "RGBA": (torch.cat([CHW, CHW[:1]]), rf"{CHANNELS} uint8 Tensor of shape \(4, 50, 70\)$"),
    "a batch": (CHW[None], rf"{CHANNELS} uint8 Tensor of shape \(1, 3, 50, 70\)$"),
    "no pixels": (CHW[:, :0], rf"{CHANNELS} uint8 Tensor of shape \(3, 0, 70\)$"),
    "values in 0-1": (CHW / 255, r"\(multiply values in 0-1 by 255\); .* \(3, 50, 70\) up to 1$"),
    "array in 0-1": (CHW.numpy() / 255, r"by 255\); found float64 ndarray of .* up to 1$"),
    "a normalized image": (NORMAL, r"\(clip values, undo a normalization.* from -2 to 2.25$"),
    "16 bits as floats": (CHW.float() * 257, r"or scale 16 bits\); .* from 0 to 6.554e\+04$"),
    "16 bits": (CHW.numpy().astype(np.uint16), r"; found uint16 ndarray of shape"),
    "whole numbers": (CHW.long(), r"; found int64 Tensor of shape \(3, 50, 70\)$"),
    "flags": (CHW > 9, "; found bool Tensor of shape"),
    "not finite": (CHW.float() * float("nan"), "from nan to nan$"),
    "infinite": (CHW.float() + float("inf"), "from inf to inf$"),
    "a path": ("image.png", "; found str$"),
    "nothing": (None, "; found NoneType$"),
}


@pytest.mark.parametrize("name", WRONG)
def test_an_image_of_another_form_is_an_error(model, name):
    image, message = WRONG[name]
    with pytest.raises(InputError, match=rf"^an image is \(3, H, W\), RGB, .*{message}") as error:
        model([{"image": CHW}, {"image": image}])
    assert "\n" not in str(error.value)


def test_inputs_that_are_no_dicts_are_errors(model):
    with pytest.raises(InputError, match="a list of dicts, not a tensor; found float32 Tensor of"):
        model(torch.zeros(1, 3, 32, 32))
    with pytest.raises(
        InputError, match="the model takes a list of dicts, not a tensor; found dict"
    ):
        model({"image": CHW})
    with pytest.raises(InputError, match='list of dicts with "image"; found float32 Tensor'):
        model([torch.zeros(3, 32, 32)])
    with pytest.raises(InputError, match='list of dicts with "image"; found dict'):
        model([{"pixels": torch.zeros(3, 32, 32)}])
