"""Check datasets before a training: counts, leaks, broken files, a contact sheet.

They are those of a training config, or with --images those in folders of your own: then formats and
classes are guessed, what was seen is printed, and a config to start from is written as config.yaml.

The report is printed and written to the output folder as check_data.md, together with the pictures
labels.png and contact_sheet.png and a cache that makes the next check faster. The exit status is 1
if there is an error, such as an image that is both in training and in validation.
"""

import os
import shlex
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import torch

from ..check.dataset import check_data, make_folder
from ..check.findings import ReaderWarnings, limit_lines
from ..check.guess import guess_data, seen_table
from ..check.report import check_report
from ..check.write_config import write_config
from ..engine import load_config
from ..engine.setup import resolve_config
from ..model_zoo import get_config_file
from ..utils.checkout import spell_commands
from ..utils.errors import InputError
from . import command_parser

BASE = "Base-Small.yaml"


def parse_args(argv: Sequence[str] | None = None) -> Namespace:
    """Parse the arguments; None: those of the process."""
    parser = command_parser(__doc__)
    add = parser.add_argument
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--config-file", default="", metavar="FILE", help="training config")
    what = "folders, globs or text files of training images, instead of a config"
    source.add_argument("--images", nargs="+", default=[], metavar="PATH", help=what)
    what = "files and folders of their labels (default: looked for beside and inside)"
    add("--labels", nargs="+", default=[], metavar="PATH", help=what)
    what = "those of validation (default: found by the usual names, such as train and val)"
    add("--val-images", nargs="+", default=[], metavar="PATH", help=what)
    add("--val-labels", nargs="+", default=[], metavar="PATH", help="labels of validation")
    what = "default: <OUTPUT_DIR>/check_data, with --images ./check_data"
    add("--output", metavar="FOLDER", help=what)
    add("--decode", action="store_true", help="decode every image instead of a sample of 200")
    add("opts", nargs="*", metavar="KEY VALUE", help="override the config; before --images")
    args = parser.parse_intermixed_args(argv)
    if not args.images and (args.labels or args.val_images or args.val_labels):
        parser.error("--labels, --val-images and --val-labels need --images")
    return args


def guess_config(args: Namespace) -> str:
    """Guess what is in the folders, print it, and return the path of the config it writes."""
    args.output = args.output or "check_data"
    make_folder(args.output)
    paths = (args.images, args.labels, args.val_images, args.val_labels)
    cache_dir = resolve_config("", args.opts).DATASETS.CACHE_DIR
    guess = guess_data(*paths, output=args.output, cache_dir=cache_dir)
    print(seen_table(guess) + "\n")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return write_config(guess, args.output, get_config_file(BASE), device)


def main(args: Namespace) -> int:
    """Check the data, print the report and write it; return 1 if there is an error, else 0."""
    with ReaderWarnings() as reader_warnings:
        if args.images:
            args.config_file = guess_config(args)
        cfg = load_config(args.config_file, args.opts)
        cfg.freeze()
        folder = args.output or os.path.join(cfg.OUTPUT_DIR, "check_data")
        findings = check_data(cfg, folder, decode_all=args.decode)
    report = check_report(findings, reader_warnings.messages)
    print(report)
    Path(folder, "check_data.md").write_text(report, encoding="utf-8")
    for kind, lines in (("warning", findings.warnings), ("error", findings.errors)):
        for line in lines:
            print(f"{kind}: {line}", file=sys.stderr)
    if args.images and not findings.errors:
        train = spell_commands("python projects/train_net.py")
        print(f"Next: {train} --config-file {shlex.quote(args.config_file)}")
    return 1 if findings.errors else 0


def run() -> int:
    """Run the command and return its exit status."""
    try:
        return main(parse_args())
    except InputError as error:  # of the config, or one line for each broken file of a dataset
        sys.exit("\n".join(f"error: {line}" for line in limit_lines(error.messages)))
