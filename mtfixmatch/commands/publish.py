"""Publish the best teacher of a training in a model zoo, see MODEL_ZOO.md.

projects/publish.py output/quickstart --name street/quickstart
projects/publish.py --table
"""

import os
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from ..model_zoo.publish import publish, zoo_table
from ..runtime.zoo_files import zoo_root
from . import command_parser, exit_at_input_error


def parse_args(argv: Sequence[str] | None = None) -> Namespace:
    """Parse the arguments; None: those of the process."""
    parser = command_parser(__doc__)
    parser.add_argument("run", nargs="?", metavar="RUN", help="output folder of a training")
    parser.add_argument("--name", default="", help="of the model or of a config; default: RUN's")
    default = "$MTFIXMATCH_MODEL_ZOO or output/model_zoo"
    parser.add_argument("--output", help=f"folder of the zoo; default: {default}")
    text = "print the table of all models; --output may be an address"
    parser.add_argument("--table", action="store_true", help=text)
    args = parser.parse_args(argv)
    if not (args.run or args.table):
        parser.error("RUN or --table is needed")
    return args


def main(args: Namespace) -> None:
    """Publish a run, print the table of all models, or both."""
    root = zoo_root(args.output)
    if args.run:
        facts = publish(Path(args.run), args.name, root)
        print(f"{facts['name']}: {os.path.join(root, facts['weights'])}")
    if args.table:
        print(zoo_table(root))


def run() -> None:
    """Run the command."""
    with exit_at_input_error():
        main(parse_args())
