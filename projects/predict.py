#!/usr/bin/env python3
"""Predict images and videos with a trained network: see --help."""

import sys

from mtfixmatch.commands.predict import main, parse_args, run

__all__ = ["main", "parse_args"]

if __name__ == "__main__":
    sys.exit(run())
