"""`python -m mtfixmatch.street`: generate a dataset of street scenes."""

from .generate import main

raise SystemExit(main())
