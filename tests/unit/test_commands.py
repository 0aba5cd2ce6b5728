"""The dispatcher of the installed commands, and what depends on a checkout."""

import sys
from importlib import import_module

import pytest

from mtfixmatch.commands import command_parser, exit_at_input_error
from mtfixmatch.commands.cli import COMMANDS, main
from mtfixmatch.commands.study import find
from mtfixmatch.engine.setup import resolve_config
from mtfixmatch.utils import checkout
from mtfixmatch.utils.checkout import COMMAND_OF, config_path, spell_commands
from mtfixmatch.utils.errors import InputError
from tests.support.helpers import CONFIGS, REPOSITORY


@pytest.fixture
def call(monkeypatch, capsys):
    """Call `mtfixmatch` with words; return the exit status, stdout and stderr."""

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["/somewhere/bin/mtfixmatch", *words])
        try:
            status = main()
        except SystemExit as end:
            status = end.code
        return status, *capsys.readouterr()

    return call


@pytest.fixture
def installed(monkeypatch):
    """As if the package was installed without a checkout."""
    monkeypatch.setattr(checkout, "IN_CHECKOUT", False)


def test_help_lists_the_commands(call):
    status, out, err = call("--help")
    assert (status, err) == (0, "") and call("-h") == (0, out, "")
    rows = [line.split(maxsplit=1) for line in out.splitlines() if line.startswith("  ")]
    assert dict(rows) == COMMANDS


@pytest.mark.parametrize(
    "words, line",
    [
        ((), "error: the name of a command is missing"),
        (("tran", "--help"), "error: tran is no command"),
    ],
)
def test_without_a_known_command_the_list_is_an_error(call, words, line):
    status, out, err = call(*words)
    assert (status, out) == (2, "")
    assert err == f"{line}\n\n{call('--help')[1]}"


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_its_help_and_a_script(call, name):
    status, out, err = call(name, "--help")
    assert (status, err) == (0, "") and out.startswith(f"usage: mtfixmatch {name} ")
    scripts = {command: script for script, command in COMMAND_OF.items()}
    script = (REPOSITORY / "projects" / f"{scripts.get(name, name)}.py").read_text()
    assert f"from mtfixmatch.commands.{name} import" in script


def test_a_wrong_argument_names_the_command(call):
    status, _, err = call("publish")
    assert status == 2
    assert err.splitlines()[-1] == "mtfixmatch publish: error: RUN or --table is needed"


def test_the_status_of_a_command_is_passed_on(call, monkeypatch):
    for returned, status in ((None, 0), (0, 0), (1, 1)):
        monkeypatch.setattr(import_module("mtfixmatch.commands.study"), "run", lambda x=returned: x)
        assert call("study") == (status, "", "")


def test_input_that_cannot_be_used_is_one_line(call, tmp_path):
    status, out, _ = call("replay", str(tmp_path / "none.pth"))
    assert status.startswith(f"error: {tmp_path / 'none.pth'} cannot be read: ") and out == ""
    with pytest.raises(SystemExit, match="^error: no$"), exit_at_input_error():
        raise InputError("no")


def test_commands_are_spelled_as_the_user_types_them(monkeypatch):
    text = "python projects/train_net.py x; projects/publish.py --table; tools/bench.py"
    assert spell_commands(text) == text
    monkeypatch.setattr(checkout, "IN_CHECKOUT", False)
    expected = "mtfixmatch train x; mtfixmatch publish --table; tools/bench.py"
    assert spell_commands(text) == expected


def test_help_has_examples_of_installed_commands(installed):
    assert command_parser("projects/run_study.py a").description == "mtfixmatch study a"
    assert command_parser(None).description == ""


def test_a_study_is_found_by_its_folder_alone_without_a_checkout(tmp_path, monkeypatch):
    assert find("street") == REPOSITORY / "projects" / "street"
    monkeypatch.setattr("mtfixmatch.commands.study.PROJECTS", tmp_path / "projects")
    with pytest.raises(InputError, match=r"^STUDY street: no folder with study\.yaml$"):
        find("street")


def test_a_config_of_the_package_is_found_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "street/resnet18.yaml"
    assert config_path(name) == CONFIGS / name
    assert resolve_config(name, []).dump() == resolve_config(str(CONFIGS / name), []).dump()
    own = tmp_path / name
    own.parent.mkdir()
    own.write_text("SEED: 7")
    assert config_path(name).resolve() == own
    assert resolve_config(name, []).SEED == 7
    folder = tmp_path / "study"
    assert config_path(name, folder) == CONFIGS / name
    assert config_path("none.yaml", folder) == folder / "none.yaml"
    with pytest.raises(InputError, match=r"^--config-file none\.yaml: the file does not exist, "):
        resolve_config("none.yaml", [])
