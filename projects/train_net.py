#!/usr/bin/env python3
"""Train or evaluate a multi-task network: see --help."""

from mtfixmatch.commands.train import launch_main, run

__all__ = ["launch_main"]

if __name__ == "__main__":
    run()
