"""A wheel, installed without a checkout: its content, and its commands as a user types them."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest
import yaml

from mtfixmatch.commands.cli import COMMANDS
from mtfixmatch.runtime.zoo_files import find_model
from tests.support.helpers import CONFIGS, REPOSITORY, SMALL
from tests.support.layouts import LAYOUTS, copy_photos

COCO_SMALL = REPOSITORY.parent / "shared" / "data" / "coco_small"
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check")
OPTS = {**SMALL, "SOLVER.WARMUP_ITERS": 0, "SOLVER.AMP.ENABLED": False, "TEST.PICTURES": 1}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    source = tmp_path_factory.mktemp("source")  # pip writes beside what it builds
    for name in ("configs", "mtfixmatch", "mtfixmatch_runtime"):
        shutil.copytree(REPOSITORY / name, source / name)
    for name in ("setup.py", "pyproject.toml"):
        shutil.copy(REPOSITORY / name, source)
    build = (*PIP, "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", "out", ".")
    subprocess.run(build, cwd=source, check=True, capture_output=True)
    (path,) = (source / "out").iterdir()
    return path


class Installed:
    """The wheel in a folder of its own, and a working directory outside of the checkout."""

    def __init__(self, wheel: Path, folder: Path) -> None:
        self.site, self.folder = folder / "site", folder / "work"
        self.folder.mkdir()
        install = (*PIP, "install", "-q", "--no-deps", "--target", str(self.site), str(wheel))
        subprocess.run(install, check=True, capture_output=True)
        self.env = os.environ | {"PYTHONPATH": str(self.site), "OMP_NUM_THREADS": "1"}
        self.env |= {"PYTHONWARNINGS": "ignore"}
        self.env.pop("MTFIXMATCH_MODEL_ZOO", None)

    def run(self, *command: object) -> str:
        """Return what a command prints; it must succeed."""
        done = subprocess.run(
            [*map(str, command)],
            cwd=self.folder, env=self.env, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def mtfixmatch(self, *words: object) -> str:
        """Run the installed command."""
        return self.run(self.site / "bin" / "mtfixmatch", *words)

    def options(self, **changed: object) -> list[str]:
        """KEY VALUE pairs of a tiny training; `changed` has keys with __ for the dot."""
        opts = OPTS | {"DATASETS.CACHE_DIR": self.folder / "cache"}
        opts |= {key.replace("__", "."): value for key, value in changed.items()}
        return [str(x) for pair in opts.items() for x in pair]


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    installed = Installed(wheel, tmp_path_factory.mktemp("installed"))
    # An editable installation of the checkout comes later in the path.
    code = "import importlib.util as util; print(util.find_spec('mtfixmatch').origin)"
    place = installed.run(sys.executable, "-c", code).strip()
    assert place == str(installed.site / "mtfixmatch" / "__init__.py")
    return installed


@pytest.fixture(scope="module")
def checked(installed):
    """What the check of a folder with labels printed, and the config that it wrote."""
    data = installed.folder / "data"
    if COCO_SMALL.is_dir():
        copy_photos(COCO_SMALL, data)
    else:
        LAYOUTS["detectron2"](data)
    printed = installed.mtfixmatch("check", *installed.options(), "--images", "data")
    return printed, installed.folder / "check_data" / "config.yaml"


@pytest.fixture(scope="module")
def trained(installed, checked):
    """The folder of a training of two steps, started as the check says."""
    start = shlex.split(checked[0].splitlines()[-1].removeprefix("Next: "))
    assert start == ["mtfixmatch", "train", "--config-file", str(checked[1])]
    installed.mtfixmatch(*start[1:], *installed.options(SOLVER__MAX_ITER=2))
    return checked[1].parent / "training"


def test_it_has_the_configs_and_all_packages(wheel):
    files = {path.relative_to(REPOSITORY).as_posix() for path in CONFIGS.rglob("*.yaml")}
    files = {f"mtfixmatch/{name}" for name in files}
    folders = [REPOSITORY / name for name in ("mtfixmatch", "mtfixmatch_runtime")]
    modules = {p.relative_to(REPOSITORY) for folder in folders for p in folder.rglob("*.py")}
    files |= {path.as_posix() for path in modules} | {"mtfixmatch/inference/page.html"}
    assert files <= {*ZipFile(wheel).namelist()}
    # Without it find_packages would leave a folder out.
    assert all((REPOSITORY / path.parent / "__init__.py").is_file() for path in modules)


def test_help_lists_the_commands(installed):
    lines = installed.mtfixmatch("--help").splitlines()
    assert lines[0] == "usage: mtfixmatch COMMAND ..."
    assert [line.split()[0] for line in lines if line.startswith("  ")] == list(COMMANDS)


def test_the_check_writes_a_config_on_a_base_of_the_wheel(installed, checked):
    printed, config = checked
    assert printed.startswith("# What was seen\n") and "projects" not in printed
    text = config.read_text()
    assert text.startswith("# Written by mtfixmatch check; ")
    assert f'_BASE_: "{installed.site}/mtfixmatch/configs/Base-Small.yaml"' in text


def test_a_training_leaves_its_results(trained):
    names = {path.name for path in trained.iterdir()}
    assert {"model_final.pth", "model_best.pth", "report.md", "predictions.png"} <= names


def test_a_published_model_names_the_installed_command(installed, trained):
    printed = installed.mtfixmatch("publish", trained, "--name", "pets", "--table")
    zoo = installed.folder / "output" / "model_zoo"
    model = find_model("pets", str(zoo))
    assert model.facts["command"].startswith("mtfixmatch train --config-file street/")
    line, table = printed.split("\n", 1)
    assert line == f"pets: output/model_zoo/{model.facts['weights']}"
    assert f"`{model.facts['command']}`" in table


def test_images_are_predicted(installed, trained):
    printed = installed.mtfixmatch("predict", trained, "data", "--output", "out", "--num-gpus", 0)
    first, *files = printed.splitlines()
    assert first.endswith(" files predicted, 0 could not be read")
    assert "out/index.html" in files and all((installed.folder / x).is_file() for x in files)


RUN_ONNX = """
import sys
sys.modules["torch"] = sys.modules["detectron2"] = None  # an import of them fails
from mtfixmatch_runtime import Network
print(sorted(Network(sys.argv[1])(sys.argv[2])))
"""


def test_a_network_is_exported_and_needs_no_pytorch(installed, trained):
    images = ("--images", "data", "--limit", 1)
    printed = installed.mtfixmatch("export", trained, "--output", "pets.onnx", *images)
    assert "pets.onnx" in printed.splitlines()[-1]
    image = next((installed.folder / "data").rglob("*.jpg"))
    names = installed.run(sys.executable, "-c", RUN_ONNX, "pets.onnx", image)
    with_maps = ["detection", "segmentation"] if COCO_SMALL.is_dir() else ["detection"]
    assert names.strip() == str(with_maps)


def test_a_study_starts_its_trainings(installed, checked):
    pairs = installed.options(SOLVER__MAX_ITER=1)
    study = {"title": "Seeds", "config": str(checked[1]), "output": "runs"}
    study |= {"common": dict(zip(pairs[::2], pairs[1::2], strict=True))}
    study |= {"factors": {"seed": ["SEED"]}, "runs": [{"seed": 3}]}
    folder = installed.folder / "seeds"
    folder.mkdir()
    (folder / "study.yaml").write_text(yaml.safe_dump(study))
    assert "1 of 1 runs, in runs" in installed.mtfixmatch("study", "seeds")
    assert (installed.folder / "runs" / "seed3" / "model_final.pth").is_file()
