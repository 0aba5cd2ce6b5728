#!/usr/bin/env python3
"""Repeat a training step that was not finite: see --help."""

from mtfixmatch.commands.replay import run

if __name__ == "__main__":
    run()
