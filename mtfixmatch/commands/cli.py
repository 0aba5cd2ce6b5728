"""The installed command `mtfixmatch NAME ...`, which calls a command of this package by its name.

Each command is a module in this folder. Its function `run` reads the arguments from sys.argv, does
the work, and returns the exit status, or None for 0.
"""

import sys
from importlib import import_module

# The modules are imported when they are called: most of them import much.
COMMANDS = {  # name of the module: what it does
    "check": "check a dataset before a training, or write the config of your own data",
    "train": "train or evaluate a network",
    "predict": "predict images and videos, and write boxes, maps, pictures and a page",
    "autolabel": "label the unlabeled part of a dataset by a trained network",
    "export": "write a network as one .onnx file that needs no PyTorch",
    "study": "run the experiments of a study and report their results",
    "publish": "publish a trained network in a model zoo",
    "replay": "repeat a training step that was not finite",
}


def main() -> int:
    """Call the command that sys.argv names and return its exit status.

    Without a known command print the list of all, and return 2; with -h or --help 0.
    """
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name in ("-h", "--help"):
        print(usage())
        return 0
    if name not in COMMANDS:
        problem = f"{name} is no command" if name else "the name of a command is missing"
        print(f"error: {problem}\n\n{usage()}", file=sys.stderr)
        return 2
    # Parsers take their name for usage and errors from here.
    sys.argv = [f"mtfixmatch {name}", *sys.argv[2:]]
    return import_module(f".{name}", __package__).run() or 0


def usage() -> str:
    """Return what `mtfixmatch --help` prints."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {text}" for name, text in COMMANDS.items()]
    end = "`mtfixmatch COMMAND --help` lists the arguments of a command."
    return "\n".join(["usage: mtfixmatch COMMAND ...", "", *lines, "", end])
