#!/usr/bin/env python3
"""Look at the data of a config before training: tables, leaks, broken files, a contact sheet.

It takes the config of a training and prints a report. Into the output folder it writes the same as
check_data.md, the pictures contact_sheet.png, and a cache that makes the next check faster. The
exit status is 1 if there is an error, such as an image that is in training and in validation.
"""

import argparse
import os
import sys
import warnings

# PyTorch says at every import that a function which Detectron2 uses will go away.
warnings.filterwarnings("ignore", category=FutureWarning, module="torch")

from mtfixmatch.check.files import ReaderMessages  # noqa: E402
from mtfixmatch.check.findings import check_data, first_lines  # noqa: E402
from mtfixmatch.check.report import check_report  # noqa: E402
from mtfixmatch.engine import load_config  # noqa: E402
from mtfixmatch.utils.errors import InputError, InputErrors  # noqa: E402


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", default="", metavar="FILE", help="of a training")
    parser.add_argument("--output", metavar="FOLDER", help="default: <OUTPUT_DIR>/check_data")
    parser.add_argument(
        "--decode", action="store_true", help="decode every image instead of a sample of 200"
    )
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="override the config")
    return parser.parse_intermixed_args()


def main(args):
    with ReaderMessages() as said:
        cfg = load_config(args.config_file, args.opts)
        cfg.freeze()
        folder = args.output or os.path.join(cfg.OUTPUT_DIR, "check_data")
        found = check_data(cfg, folder, decode_all=args.decode)
    report = check_report(found, said.messages)
    print(report)
    with open(os.path.join(folder, "check_data.md"), "w", encoding="utf-8") as file:
        file.write(report)
    for kind, lines in (("warning", found.warnings), ("error", found.errors)):
        for line in lines:
            print(f"{kind}: {line}", file=sys.stderr)
    return 1 if found.errors else 0


if __name__ == "__main__":
    try:
        sys.exit(main(parse_args()))
    except InputError as error:  # of the config, or of all files that a reader could not read
        lines = error.messages if isinstance(error, InputErrors) else [str(error)]
        sys.exit("\n".join(f"error: {line}" for line in first_lines(lines)))
