#!/usr/bin/env python3
from setuptools import find_packages, setup

SUBMITIT = "submitit>=1.5,<2"  # submits the runs of a study to SLURM
AV = "av>=12,<19"  # writes videos as H.264
TIMM = "timm>=1.0,<2"  # networks for build_timm_fpn_backbone
RUNTIME = "onnxruntime>=1.20,<2"  # runs exported networks, see mtfixmatch_runtime
ONNX = (RUNTIME, "onnx>=1.17,<2", "onnxscript>=0.5,<1")  # writes them

setup(
    name="mtfixmatch",
    version="0.1.0",
    description="One network for several vision tasks, trained on partially labeled datasets "
    "with FixMatch* and Dense FixMatch. A Detectron2 project.",
    license="Apache-2.0",
    packages=[
        *find_packages(include=["mtfixmatch", "mtfixmatch.*", "mtfixmatch_runtime"]),
        "mtfixmatch.configs",
    ],
    package_dir={"mtfixmatch.configs": "configs"},  # mtfixmatch.model_zoo reads them
    package_data={
        "mtfixmatch.configs": ["**/*.yaml"],
        "mtfixmatch.inference": ["page.html"],
    },
    entry_points={"console_scripts": ["mtfixmatch = mtfixmatch.commands.cli:main"]},
    python_requires=">=3.10",
    # detectron2 is not on PyPI under its own name: tools/setup_env.sh installs it.
    install_requires=[
        "torch>=2.4,<3",
        "torchvision>=0.19,<1",
        "numpy>=1.26,<3",
        "kornia>=0.9,<0.10",
        "kornia-rs>=0.2,<0.3",  # decodes PNG and JPEG
        "opencv-python-headless>=5,<6",  # before 5, its warp is less exact
        "pillow>=10.1",
        "fvcore>=0.1.5.post20221221,<0.2",
        "pycocotools>=2.0.7,<3",
        "hotcoco>=1.3,<2",  # the same AP, faster
        "msgspec>=0.18.6,<1",
        "cityscapesscripts>=2.2.2,<3",
        "tensorboard>=2.15,<3",
        "matplotlib>=3.8,<4",
        "tqdm>=4.66,<5",
        "pyyaml>=6,<7",
        "tabulate>=0.9,<1",
    ],
    extras_require={
        "slurm": [SUBMITIT],
        "video": [AV],
        "timm": [TIMM],
        "onnx": [*ONNX],
        # With `pip install --no-deps mtfixmatch`, all that mtfixmatch_runtime needs.
        "runtime": [RUNTIME, "numpy>=1.26,<3", "pillow>=10"],
        "dev": [
            *(AV, SUBMITIT, TIMM, *ONNX),
            *("pytest>=8,<10", "pytest-xdist>=3.5,<4", "hypothesis>=6.100,<7", "psutil>=5.9"),
            *("ruff>=0.6", "mypy>=1.11"),
        ],
    },
)
