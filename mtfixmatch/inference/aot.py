"""Compile a network with PyTorch's AOTInductor into a .pt2 file.

`torch._inductor.aoti_load_package` runs it in Python after `import mtfixmatch`, on a machine of the
same kind.
"""

import os
import shutil
import tempfile
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..tasks.exported import Difference, Exports
from ..utils.errors import InputError
from .export import Source, naming, quiet, trace, writing
from .verify import check_differences, compare

COMPILERS = ("g++", "clang++", "c++")


def export_aot(
    source: Source, output: str, images: Sequence[np.ndarray]
) -> dict[str, list[Difference]]:
    """Write a compiled network that gives the results of PyTorch on these images.

    Arguments, result and errors are those of `export_onnx`; without a C++ compiler there is an
    InputError, too.
    """
    compiler = os.environ.get("CXX", "")
    if not any(shutil.which(x) for x in (compiler or "c++", *COMPILERS)):
        raise InputError(f"--aot needs a C++ compiler: install {COMPILERS[0]}, or set $CXX to one")
    with writing(output) as temporary, tempfile.TemporaryDirectory() as folder:
        package = os.path.join(folder, "model.pt2")
        with torch.no_grad(), quiet(), naming(source):
            torch._inductor.aoti_compile_and_package(trace(source), package_path=package)
            compiled = torch._inductor.aoti_load_package(package)

        def run(images: Tensor) -> dict[str, Exports]:
            return dict(source.net.split(compiled(images)))

        differences = compare(source.tasks, source.net.run, run, images)
        check_differences(differences, output)
        shutil.copyfile(package, temporary)
    return differences
