#!/usr/bin/env python3
"""Label the unlabeled part of a dataset by a trained network: see --help."""

from mtfixmatch.commands.autolabel import parse_args, run

__all__ = ["parse_args"]

if __name__ == "__main__":
    run()
