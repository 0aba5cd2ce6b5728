#!/usr/bin/env python3
"""Publish the best teacher of a training in a model zoo, see MODEL_ZOO.md.

projects/publish.py output/quickstart --name street/quickstart
projects/publish.py --table
"""

import os
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from pathlib import Path

from mtfixmatch.model_zoo.publish import publish, zoo_table
from mtfixmatch.runtime.zoo_files import zoo_root
from mtfixmatch.utils.errors import InputError


def parse_args(argv=None):
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
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


def main(args):
    root = zoo_root(args.output)
    if args.run:
        facts = publish(Path(args.run), args.name, root)
        print(f"{facts['name']}: {os.path.join(root, facts['weights'])}")
    if args.table:
        print(zoo_table(root))


if __name__ == "__main__":
    try:
        main(parse_args())
    except InputError as error:
        sys.exit(f"error: {error}")
