#!/usr/bin/env python3
"""Repeat a training step that was not finite, from its file bad_step_<step>.pth.

The output is the first place with such a value: an image, or a module in the forward or backward
pass. Some bfloat16 kernels read unwritten memory and fail in some tries only.
"""

import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter

from mtfixmatch.engine.replay import read_step, replay
from mtfixmatch.utils.errors import InputError


def main(path, tries):
    dump = read_step(path)
    print(f"step {dump['step']}, rank {dump['rank']}, seed {dump['seed']}")
    print("images: " + ", ".join(dump["files"]))
    print("not finite in the training: " + ", ".join(dump["nonfinite"]))
    place = next(filter(None, (replay(dump) for _ in range(tries))), "")
    if place:
        print(f"first value that is not finite: {place}")
    else:
        print(f"all values were finite in {tries} tries")


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("file", metavar="FILE")
    parser.add_argument("--tries", type=int, default=3, help="maximum number of repetitions")
    args = parser.parse_args()
    try:
        main(args.file, args.tries)
    except InputError as error:
        sys.exit(f"error: {error}")
