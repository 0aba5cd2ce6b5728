"""`python -m mtfixmatch.street`: generate a dataset of street scenes."""

import sys

from .generate import main

sys.exit(main())
