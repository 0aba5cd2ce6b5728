"""Where this package is: in a checkout with its scripts and studies, or installed without them."""

import re
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent
IN_CHECKOUT = not (PACKAGE / "configs").is_dir()  # an installed package contains its configs
CONFIGS = (PACKAGE.parent if IN_CHECKOUT else PACKAGE) / "configs"
PROJECTS = PACKAGE.parent / "projects"  # the scripts and studies of a checkout

# Scripts in projects/ whose command has another name.
COMMAND_OF = {
    "check_data": "check",
    "train_net": "train",
    "run_study": "study",
    "replay_step": "replay",
}
_SCRIPT = re.compile(r"(?:python )?projects/(\w+)\.py")


def spell_commands(text: str) -> str:
    """Spell the commands in a text as the user types them.

    Args:
        text: any text; it names the scripts of a checkout, such as "python projects/publish.py".

    Returns:
        the text; if the package is installed without a checkout, it names the installed command
        instead, such as "mtfixmatch publish".
    """
    if IN_CHECKOUT:
        return text
    return _SCRIPT.sub(lambda match: f"mtfixmatch {COMMAND_OF.get(match[1], match[1])}", text)


def config_path(name: str, folder: str | Path = "") -> Path:
    """Return the path of a config file: in `folder`, else among the configs of this package.

    Args:
        name: a path, relative to `folder`, or the name of a config such as "street/resnet18.yaml".
        folder: "" for the working directory.

    Returns:
        the path in `folder` if there is neither of the two files.
    """
    own, packaged = Path(folder, name), CONFIGS / name
    return packaged if packaged.is_file() and not own.is_file() else own
