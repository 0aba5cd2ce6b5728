#!/usr/bin/env python3
"""Check the datasets of a training config: counts, leaks, broken files, a contact sheet.

The report is printed and written to the output folder as check_data.md, together with the pictures
labels.png and contact_sheet.png and a cache that makes the next check faster. The exit status is 1
if there is an error, such as an image that is both in training and in validation.
"""

import os
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from pathlib import Path

from mtfixmatch.check.dataset import check_data
from mtfixmatch.check.findings import ReaderWarnings, limit_lines
from mtfixmatch.check.report import check_report
from mtfixmatch.engine import load_config
from mtfixmatch.utils.errors import InputError


def parse_args():
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--config-file", default="", metavar="FILE", help="training config")
    add("--output", metavar="FOLDER", help="default: <OUTPUT_DIR>/check_data")
    add("--decode", action="store_true", help="decode every image instead of a sample of 200")
    add("opts", nargs="*", metavar="KEY VALUE", help="override the config")
    return parser.parse_intermixed_args()


def main(args):
    with ReaderWarnings() as reader_warnings:
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
    return 1 if findings.errors else 0


if __name__ == "__main__":
    try:
        sys.exit(main(parse_args()))
    except InputError as error:  # of the config, or one line for each broken file of a dataset
        sys.exit("\n".join(f"error: {line}" for line in limit_lines(error.messages)))
