#!/usr/bin/env python3
"""Take a step again that was not finite, from the bad_step_<step>.pth that a training left.

It prints where the first such value appears: an image, or a module in the forward or backward pass.
What reads unwritten memory, as some bfloat16 kernels do, fails in some tries only.
"""

import argparse
import sys
import warnings

# PyTorch says at every import that a function which Detectron2 uses will go away.
warnings.filterwarnings("ignore", category=FutureWarning, module="torch")

from mtfixmatch.engine.replay import read_step, replay  # noqa: E402
from mtfixmatch.utils.errors import InputError  # noqa: E402


def main(path, tries):
    dump = read_step(path)
    print(f"step {dump['step']}, rank {dump['rank']}, seed {dump['seed']}")
    print("images: " + ", ".join(dump["files"]))
    print("not finite in the training: " + ", ".join(dump["nonfinite"]))
    place = next(filter(None, (replay(dump) for _ in range(tries))), "")
    finite = f"all values were finite in {tries} tries"
    print(f"first value that is not finite: {place}" if place else finite)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", metavar="FILE")
    parser.add_argument("--tries", type=int, default=3, help="until it is found again")
    args = parser.parse_args()
    try:
        main(args.file, args.tries)
    except InputError as error:
        sys.exit(f"error: {error}")
