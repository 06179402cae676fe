"""Exports a run: `python -m dsd_lightning.export RUN_DIR OUT --format official`."""

import sys

from dsd_lightning.export.command import main

if __name__ == "__main__":
    sys.exit(main())
