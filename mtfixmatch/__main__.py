"""`python -m mtfixmatch NAME ...`: the same as the installed command `mtfixmatch NAME ...`."""

import sys

from .commands.cli import main

if __name__ == "__main__":  # the processes of a training on several GPUs import this module, too
    sys.exit(main())
