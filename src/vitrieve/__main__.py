"""``python -m vitrieve``: the command line."""

from __future__ import annotations

import sys

from vitrieve.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
