"""Repeat a training step that was not finite, from its file bad_step_<step>.pth.

The output is the first place with such a value: an image, or a module in the forward or backward
pass. Some bfloat16 kernels read unwritten memory and fail in some tries only.
"""

from ..engine.replay import read_step, replay
from . import command_parser, exit_at_input_error


def main(path: str, tries: int) -> None:
    """Print what is in the file of a step, and the first place that is not finite."""
    dump = read_step(path)
    print(f"step {dump['step']}, rank {dump['rank']}, seed {dump['seed']}")
    print("images: " + ", ".join(dump["files"]))
    print("not finite in the training: " + ", ".join(dump["nonfinite"]))
    place = next(filter(None, (replay(dump) for _ in range(tries))), "")
    if place:
        print(f"first value that is not finite: {place}")
    else:
        print(f"all values were finite in {tries} tries")


def run() -> None:
    """Run the command."""
    parser = command_parser(__doc__)
    parser.add_argument("file", metavar="FILE")
    parser.add_argument("--tries", type=int, default=3, help="maximum number of repetitions")
    args = parser.parse_args()
    with exit_at_input_error():
        main(args.file, args.tries)
