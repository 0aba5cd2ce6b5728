"""The documents: commands parse or run, snippets run, keys, files and links exist."""

import argparse
import importlib.util
import re
import runpy
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import default_argument_parser
from torch.distributed.run import get_args_parser

from mtfixmatch.commands.cli import COMMANDS as COMMANDS_OF_WHEEL
from mtfixmatch.config import add_mtfixmatch_config
from mtfixmatch.data.datasets import get_records
from mtfixmatch.engine.setup import resolve_config
from mtfixmatch.methods import METHOD_REGISTRY
from mtfixmatch.street import generate as street
from mtfixmatch.study.plan import load_study
from mtfixmatch.study.show import check_configs
from mtfixmatch.utils.checkout import COMMAND_OF
from tests.support.engine_helpers import build_trainer, run_config
from tests.support.helpers import CONFIGS, REPOSITORY, SMALL
from tools import bench_launches

README = REPOSITORY / "README.md"
PAGES = [README, *(REPOSITORY / name for name in ("CONTRIBUTING.md", "MODEL_ZOO.md"))]
PAGES += sorted((REPOSITORY / "docs").glob("*.md"))
STUDIES = sorted((REPOSITORY / "projects").glob("*/*.md"))
LANGUAGES = ("sh", "python", "yaml", "text")
FOLDERS = ("configs", "docs", "mtfixmatch", "projects", "tests", "tools")
CITYSCAPES = str(CONFIGS / "cityscapes" / "dense_fixmatch.yaml")

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
KEY = re.compile(r"(?<![\w$])[A-Z][A-Z0-9_]*(?:\.(?:<[A-Z]+>|[A-Z][A-Z0-9_]*))+(?![\w.])")
CODE_FILE = re.compile(r"[\w./-]*\w\.(?:py|sbatch|sh)\b")
TASK_NAMES = ("DETECTION", "SEGMENTATION")


def relative(path: Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


def blocks(page: Path) -> list[tuple[str, str]]:
    """The fenced blocks of a page, each with its language."""
    return FENCE.findall(page.read_text())


def prose(page: Path) -> str:
    return FENCE.sub("", page.read_text())


def commands(page: Path) -> Iterator[str]:
    """All lines of sh blocks; elsewhere, in a span or a line, what starts with a known program."""
    for language, text in blocks(page):
        for line in text.replace("\\\n", " ").splitlines():
            starts = line.split(" ")[0] in PROGRAMS and page in STUDIES
            if (language == "sh" and shlex.split(line, comments=True)) or starts:
                yield line
    for span in SPAN.findall(prose(page)):
        if " " in span and span.split(" ")[0] in PROGRAMS:
            yield span


# Commands


def load_script(name: str) -> ModuleType:
    path = REPOSITORY / "projects" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# What `check_data.py --images` writes, without --output.
WRITTEN = "check_data/config.yaml"


def check_training(words: list[str]) -> None:
    args = default_argument_parser().parse_args(words)
    resolve_config("" if args.config_file == WRITTEN else args.config_file, args.opts)


def check_data(words: list[str]) -> None:
    module = load_script("check_data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["check_data.py", *words])
        args = module.parse_args()
    resolve_config(args.config_file, args.opts)


def check_autolabel(words: list[str]) -> None:
    module = load_script("autolabel")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["autolabel.py", *words])
        args = module.parse_args()
    resolve_config(args.config_file, args.opts)


def check_study(words: list[str]) -> None:
    module = load_script("run_study")
    args = module.parse(words)
    folder = module.find(args.study)
    study = load_study(folder, output=args.output, seeds=args.seeds, opts=args.opts)
    only = module.pairs(args.only, "--only")
    check_configs(study, study.select({k: v.split(",") for k, v in only.items()})[:1])
    module.pairs((args.slurm or [])[1:], "--slurm")


def check_export(words: list[str]) -> None:
    load_script("export").parse_args(words)


def check_publish(words: list[str]) -> None:
    load_script("publish").parse_args(words)


def check_predict(words: list[str]) -> None:
    load_script("predict").parse_args(words)


def check_class_subsets(words: list[str]) -> None:
    load_script("class_subsets/make_data").parse_args(words)


def check_replay(words: list[str]) -> None:
    """Its parser is in the script: past it, the file is missing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["replay_step.py", *words])
        with pytest.raises(SystemExit, match=f"error: .*{re.escape(words[0])}"):
            runpy.run_path("projects/replay_step.py", run_name="__main__")


SCRIPTS = {
    "projects/train_net.py": check_training,
    "projects/check_data.py": check_data,
    "projects/autolabel.py": check_autolabel,
    "projects/run_study.py": check_study,
    "projects/publish.py": check_publish,
    "projects/export.py": check_export,
    "projects/predict.py": check_predict,
    "projects/replay_step.py": check_replay,
    "projects/class_subsets/make_data.py": check_class_subsets,
}


def check_bench(words: list[str]) -> None:
    assert words == ["data"]


def check_scale(words: list[str]) -> None:
    _, most = words
    assert int(most) == 10_000_000


MODULES = {
    "mtfixmatch.street": street._parse_args,
    "tools.bench": check_bench,
    "tools.bench_launches": bench_launches.parse_args,
    "tools.scale": check_scale,
}


def check_installed(words: list[str]) -> None:
    """An installed command takes the arguments of its script."""
    assert words[0] in COMMANDS_OF_WHEEL
    scripts = {command: script for script, command in COMMAND_OF.items()}
    SCRIPTS[f"projects/{scripts.get(words[0], words[0])}.py"](words[1:])


def check_python(words: list[str]) -> None:
    if words[0] == "-m":
        MODULES[words[1]](words[2:])
    else:
        SCRIPTS[words[0]](words[1:])


def check_make(words: list[str]) -> None:
    (target,) = words
    assert re.search(rf"^{target}:", Path("Makefile").read_text(), re.MULTILINE)


def check_pip(words: list[str]) -> None:
    assert words[0] == "install" and words[1:-1] in ([], ["-e"])
    extra = re.fullmatch(r"\.(?:\[(\w+)\])?", words[-1])[1]
    assert not extra or f'"{extra}": [' in Path("setup.py").read_text()


def check_torchrun(words: list[str]) -> None:
    args = get_args_parser().parse_args(words)
    if args.module:
        assert (args.training_script, args.training_script_args[0]) == ("mtfixmatch", "train")
        check_training(args.training_script_args[1:])
    else:
        assert args.training_script == "projects/train_net.py"
        check_training(args.training_script_args)


def check_sbatch(words: list[str]) -> None:
    script = words.index("projects/train.sbatch")
    options = words[:script]
    assert all(name.startswith("--") for name in options[::2]) and len(options) % 2 == 0
    check_training(words[script + 1 :])


def check_pytest(words: list[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("tests", nargs="*")
    for option in ("-n", "--dist", "-m", "-k"):
        parser.add_argument(option, default="")
    args = parser.parse_intermixed_args(words)
    for test in args.tests:
        path, _, name = test.partition("::")
        assert Path(path).exists()
        assert not name or f"def {name}(" in Path(path).read_text()
    markers = Path("pyproject.toml").read_text()
    for marker in args.m.replace("not ", "").split():
        assert f'"{marker}: ' in markers


PROGRAMS = {
    "make": check_make,
    "mtfixmatch": check_installed,
    "pip": check_pip,
    "pytest": check_pytest,
    "python": check_python,
    "sbatch": check_sbatch,
    "torchrun": check_torchrun,
}
COMMANDS = {
    f"{relative(page)}: {command}": command
    for page in (*PAGES, *STUDIES)
    for command in commands(page)
}


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch):
    monkeypatch.chdir(REPOSITORY)


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_a_command_parses(command):
    program, *words = shlex.split(command, comments=True)
    assert program in PROGRAMS, f"nothing here parses {program}"
    PROGRAMS[program](words)


def test_all_pages_are_seen():
    programs = {command.split(" ")[0] for command in COMMANDS.values()}
    assert programs == set(PROGRAMS)
    pages = {name.split(": ")[0] for name in COMMANDS}
    assert {relative(page) for page in PAGES} - pages == {"docs/extending.md"}


# Snippets, on a training of two steps


@pytest.fixture(scope="module")
def workshop(street_root, tmp_path_factory):
    """A folder with what the snippets name: a run, the zoo it is published in, photos."""
    folder = tmp_path_factory.mktemp("workshop")
    run = folder / "output" / "quickstart"
    run.mkdir(parents=True)
    cfg = run_config(street_root, run, "SOLVER.MAX_ITER", 2)
    (run / "config.yaml").write_text(cfg.dump())
    build_trainer(cfg).train()
    image = next((street_root / "street").rglob("*_leftImg8bit.png"))
    for name in ("photo.png", "photo2.png"):
        shutil.copy(image, folder / name)
    return folder


@pytest.fixture
def clean_registries():
    """Take out afterwards what a snippet registers."""
    methods, datasets = set(METHOD_REGISTRY._obj_map), set(DatasetCatalog)
    yield methods, datasets
    for name in set(METHOD_REGISTRY._obj_map) - methods:
        del METHOD_REGISTRY._obj_map[name]
    for name in set(DatasetCatalog) - datasets:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)


@pytest.mark.parametrize(
    "page", [p for p in PAGES if "python" in dict(blocks(p))], ids=lambda page: page.name
)
def test_python_runs(workshop, clean_registries, monkeypatch, page):
    monkeypatch.chdir(workshop)
    monkeypatch.delenv("MTFIXMATCH_MODEL_ZOO", raising=False)
    publish = load_script("publish")
    publish.main(publish.parse_args(["output/quickstart", "--name", "street/quickstart"]))
    if page.name == "export.md":
        export = load_script("export")
        export.main(export.parse_args(["output/quickstart", "--output", "model.onnx"]))
    for language, text in blocks(page):
        if language == "python":
            exec(compile(text, str(page), "exec"), {"__name__": "snippet"})
    methods, datasets = clean_registries
    for name in set(METHOD_REGISTRY._obj_map) - methods:
        resolve_config(CITYSCAPES, ["FIXMATCH.METHOD", name])
    for name in set(DatasetCatalog) - datasets:
        assert get_records([name])


@pytest.mark.parametrize(
    "page", [p for p in PAGES if "yaml" in dict(blocks(p))], ids=lambda page: page.name
)
def test_yaml_is_a_config_or_a_study(tmp_path, page):
    shutil.copytree(CONFIGS, tmp_path / "configs")
    for language, text in blocks(page):
        if language != "yaml":
            continue
        is_study = "factors" in yaml.safe_load(text)
        path = tmp_path / ("projects/own/study.yaml" if is_study else "configs/own/own.yaml")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        if is_study:
            study = load_study(path.parent)
            assert check_configs(study, study.runs)
        else:
            resolve_config(str(path), [])


def test_the_check_of_the_data_runs(street_root, tmp_path, capsys):
    start = "docs/data.md: python projects/check_data.py --config-file"
    (command,) = [c for name, c in COMMANDS.items() if name.startswith(start)]
    opts = {**SMALL, "DATASETS.ROOT": street_root, "DATASETS.CACHE_DIR": tmp_path / "cache"}
    opts |= {"OUTPUT_DIR": tmp_path, "TASKS.DETECTION.LABELS": 4, "TASKS.SEGMENTATION.LABELS": 4}
    module = load_script("check_data")
    words = [*shlex.split(command)[2:], *(str(x) for pair in opts.items() for x in pair)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["check_data.py", *words])
        assert module.main(module.parse_args()) == 0
    printed = capsys.readouterr().out
    assert "| traffic light |" in printed and "- never occurs in training: " in printed
    assert {"check_data.md", "contact_sheet.png", "labels.png"} <= {
        path.name for path in (tmp_path / "check_data").iterdir()
    }


# Keys, files, links


def test_every_fence_names_its_language():
    for page in PAGES:
        assert page.read_text().count("```") == 2 * len(blocks(page)), page
        assert {language for language, _ in blocks(page)} <= set(LANGUAGES), page


@pytest.fixture(scope="module")
def cfg():
    cfg = get_cfg()
    add_mtfixmatch_config(cfg)
    return cfg


def has_key(node, key: str) -> bool:
    for name in key.split("."):
        if name not in node:
            return False
        node = node[name]
    return True


@pytest.mark.parametrize("page", (*PAGES, *STUDIES), ids=relative)
def test_every_key_exists(cfg, page):
    keys = KEY.findall(page.read_text())
    tried = {key: [re.sub("<[A-Z]+>", name, key) for name in TASK_NAMES] for key in keys}
    unknown = [key for key, names in tried.items() if not any(has_key(cfg, x) for x in names)]
    assert not unknown


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_key_value_pairs_are_valid(page):
    for span in SPAN.findall(prose(page)):
        words = shlex.split(span) if KEY.match(span) else []
        if len(words) > 1:
            resolve_config(CITYSCAPES, words)


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_every_file_that_is_named_exists(page):
    folders = [REPOSITORY / folder for folder in FOLDERS]
    files = [path.as_posix() for folder in folders for path in folder.rglob("*.*")]
    files += [path.as_posix() for path in REPOSITORY.glob("*.*")]
    text = page.read_text()
    for name in CODE_FILE.findall(re.sub(r"https?://\S+", "", text)):
        assert any(path.endswith(f"/{name.lstrip('./')}") for path in files), name
    for span in SPAN.findall(prose(page)):
        if re.fullmatch(rf"({'|'.join(FOLDERS)})/[\w./-]*", span):
            assert (REPOSITORY / span).exists(), span


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes of the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings}


@pytest.mark.parametrize("page", (*PAGES, *STUDIES), ids=relative)
def test_every_link_leads_somewhere(page):
    for link in LINK.findall(prose(page)):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists() and target.is_relative_to(REPOSITORY), link
        assert not anchor or anchor in anchors(target), link


# The first page


def sentences(text: str) -> Iterator[str]:
    """The sentences of paragraphs, list items and cells of tables; code counts as one word."""
    text = LINK.sub("Link", SPAN.sub("Code", text))
    text = re.sub(r"^(?=[|#-])", "\n", text, flags=re.MULTILINE)
    for paragraph in re.split(r"\n\s*\n|\|", text):
        yield from re.split(r"(?<=[.!?])\s+(?=[A-Z*])", " ".join(paragraph.split()))


def test_sentences_are_split():
    text = "One `a b` two. See Eq. 3\nof [it](x).\n- Item one\n- Item two\n| a | b c |"
    expected = ["One Code two.", "See Eq. 3 of it.", "- Item one", "- Item two", "a", "b c"]
    expected[1] = "See Eq. 3 of Link."
    assert [x for x in sentences(text) if x] == expected


def test_the_first_page_is_short():
    lines = README.read_text().splitlines()
    assert len(lines) <= 110
    assert not [line for line in lines if len(line) > 160]
    assert not [x for x in sentences(prose(README)) if len(x.split()) > 25]
