"""Generates images: `python generate.py --image_path a.png --text "this character, ..."`. See `--help`."""

from __future__ import annotations

import sys

from dsd_lightning.generation.command import main

if __name__ == "__main__":
    sys.exit(main())
