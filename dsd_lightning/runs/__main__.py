"""Shows runs from the command line.

python -m dsd_lightning.runs plot RUN [--out FILE.png]      losses and metrics of a run, finished or not, as one PNG
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from dsd_lightning.cli.errors import REFUSED
from dsd_lightning.cli.flags import Flags
from dsd_lightning.runs.folder import NoRunError
from dsd_lightning.runs.plot import plot_run


def build_parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = Flags(prog="python -m dsd_lightning.runs", description="Shows runs.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    plot = commands.add_parser("plot", help="plot losses and metrics of a run, finished or not, as one PNG")
    plot.add_argument("run", type=Path, help="the run's folder")
    plot.add_argument("--out", type=Path, help="the file; default: curves.png in the run's folder")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 fine, 2 refused."""
    options = build_parser().parse_args(arguments)
    try:
        print(plot_run(options.run, options.out))
    except (NoRunError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return REFUSED
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "matplotlib":
            raise
        sys.stderr.write("error: plots need matplotlib: pip install -c constraints.txt -e '.[report]'\n")
        return REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(main())
