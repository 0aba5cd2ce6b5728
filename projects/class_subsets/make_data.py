#!/usr/bin/env python3
"""Write the label files of this study for generated scenes.

all.json has the boxes of all classes, vehicles.json and people.json those of one half of the
classes on one half of the scenes each, merged.json the boxes of these two in one file.

projects/class_subsets/make_data.py --root datasets/seed7/street
"""

import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter

from mtfixmatch.street.instances import write_instances
from mtfixmatch.utils.errors import InputError


def parse_args(argv=None):
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--root", default="datasets/seed7/street", help="folder of the scenes")
    add("--output", default="datasets/class_subsets", help="folder to write")
    return parser.parse_args(argv)


def main(args):
    for name, content in write_instances(args.root, args.output).items():
        classes = ", ".join(x["name"] for x in content["categories"])
        counts = f"{len(content['images'])} images, {len(content['annotations'])} boxes"
        print(f"{args.output}/{name}: {counts} of {classes}")


if __name__ == "__main__":
    try:
        main(parse_args())
    except InputError as error:
        sys.exit(f"error: {error}")
