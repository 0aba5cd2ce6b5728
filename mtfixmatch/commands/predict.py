"""Predict images and videos with a trained network, see docs/predict.md.

projects/predict.py output/quickstart my/images --output predictions

The same command again goes on after an interruption. A file that cannot be read is a line on stderr
and is left out; the exit status is 1 if none can be read, or if a file cannot be written.
"""

import sys
from argparse import Namespace
from collections.abc import Sequence

import torch

from ..inference.predict import predict
from ..runtime.memory import keep_freed_memory
from ..utils.errors import InputError
from . import command_parser, exit_at_input_error

INTERRUPTED = 130  # as a shell reports SIGINT


def parse_args(argv: Sequence[str] | None = None) -> Namespace:
    """Parse the arguments; None: those of the process."""
    parser = command_parser(__doc__)
    add = parser.add_argument
    add("model", metavar="MODEL", help="folder of a run, checkpoint, or name of a published model")
    what = "images, videos, folders, globs, or text files of paths"
    add("sources", nargs="+", metavar="SOURCE", help=what)
    add("--output", required=True, metavar="DIR", help="folder of the results")
    what = "least score of a box that is saved or drawn (default: .5)"
    add("--threshold", type=float, default=0.5, metavar="SCORE", help=what)
    what = "such as boxes,maps,pictures,confidence (default: all but confidence)"
    add("--save", type=lambda x: x.split(","), metavar="NAMES", help=what)
    place = parser.add_mutually_exclusive_group()
    what = "such as cpu or cuda:1 (default: a GPU if there is one)"
    place.add_argument("--device", metavar="NAME", help=what)
    what = "use N GPUs, each for a part of the files; 0: the CPU"
    place.add_argument("--num-gpus", type=int, metavar="N", help=what)
    return parser.parse_args(argv)


def devices(args: Namespace) -> list[str | None]:
    """Return the device of each process; raise InputError if there are too few GPUs."""
    if not args.num_gpus:
        return ["cpu" if args.num_gpus == 0 else args.device]
    if not 0 < args.num_gpus <= torch.cuda.device_count():
        there = f"this machine has {torch.cuda.device_count()}"
        raise InputError(f"--num-gpus is {args.num_gpus}, but {there}")
    return [f"cuda:{i}" for i in range(args.num_gpus)]


def main(args: Namespace) -> None:
    """Predict, and print what was done."""
    keep_freed_memory()
    options = {"threshold": args.threshold, "save": args.save, "devices": devices(args)}
    summary = predict(args.model, args.sources, args.output, **options)
    for line in summary.notes:
        print(f"note: {line}", file=sys.stderr)
    before = f", {summary.before} were finished before" if summary.before else ""
    print(f"{summary.new} files predicted{before}, {summary.broken} could not be read")
    print("\n".join(summary.files))


def run() -> int:
    """Run the command and return its exit status."""
    try:
        with exit_at_input_error():
            main(parse_args())
    except KeyboardInterrupt:
        print("interrupted: the same command goes on", file=sys.stderr)
        return INTERRUPTED
    return 0
