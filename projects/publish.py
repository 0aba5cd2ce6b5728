#!/usr/bin/env python3
"""Publish the best teacher of a training in a model zoo: see --help."""

from mtfixmatch.commands.publish import main, parse_args, run

__all__ = ["main", "parse_args"]

if __name__ == "__main__":
    run()
