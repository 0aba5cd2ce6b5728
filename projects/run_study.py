#!/usr/bin/env python3
"""Run the experiments of a study and report the results: see --help."""

import sys

from mtfixmatch.commands.study import find, main, pairs, parse, run

__all__ = ["find", "main", "pairs", "parse"]

if __name__ == "__main__":
    sys.exit(run())
