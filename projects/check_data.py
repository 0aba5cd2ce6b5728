#!/usr/bin/env python3
"""Check datasets before a training, or write the config of your own data: see --help."""

import sys

from mtfixmatch.commands.check import main, parse_args, run

__all__ = ["main", "parse_args"]

if __name__ == "__main__":
    sys.exit(run())
