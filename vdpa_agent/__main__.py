"""Lets `python -m vdpa_agent` do what the console script does."""

import sys

from vdpa_agent.cli import main

if __name__ == "__main__":
    sys.exit(main())
