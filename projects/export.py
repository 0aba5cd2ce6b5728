#!/usr/bin/env python3
"""Write a trained network as one .onnx file: see --help."""

from mtfixmatch.commands.export import main, parse_args, run

__all__ = ["main", "parse_args"]

if __name__ == "__main__":
    run()
