"""Verifies, lists and indexes sets of shards from the command line.

python -m dsd_lightning.shards verify FOLDER     read everything; exit code 0: whole, 1: problems, 2: no set
python -m dsd_lightning.shards list FOLDER       what is in it
python -m dsd_lightning.shards view FOLDER       its pairs as one HTML page, FOLDER.html
python -m dsd_lightning.shards index FOLDER      write index.json for webdataset tars that have none
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from dsd_lightning.cli.flags import Flags, whole
from dsd_lightning.shards.contact_sheet import write_contact_sheet
from dsd_lightning.shards.format import INDEX_NAME, DamagedSample, ShardError
from dsd_lightning.shards.inspection import describe_shards, index_shards, verify_shards
from dsd_lightning.shards.reader import PairShards


def build_parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = Flags(prog="python -m dsd_lightning.shards", description="Verify, list, show or index pair shards.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    verify = commands.add_parser("verify", help="compare sizes and sha256 with index.json and read every sample")
    verify.add_argument("--quick", action="store_true", help="sizes and sha256 only; do not decode the samples")
    listing = commands.add_parser("list", help="print what the set holds")
    listing.add_argument("--all", action="store_true", help="every sample, not only the first 20")
    view = commands.add_parser("view", help="write its pairs as one HTML page")
    view.add_argument("--out", type=Path, help="the page (default: FOLDER.html, beside the folder)")
    view.add_argument("--count", type=whole(1), default=200, help="pairs on it at most (default: %(default)s)")
    index = commands.add_parser("index", help="write index.json for tars that have none")
    index.add_argument("--task", help="the task's name (default: as in the samples' records)")
    index.add_argument("--overwrite", action="store_true", help="replace an index.json that is there")
    for command in (verify, listing, view, index):
        command.add_argument("folder", help="folder that holds the tar files")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 fine, 1 problems, 2 refused."""
    options = build_parser().parse_args(arguments)
    try:
        if options.command == "verify":
            problems = verify_shards(options.folder, decode=not options.quick, progress=sys.stderr.isatty())
            for problem in problems:
                print(problem)
            unchecked = (
                "" if (Path(options.folder) / INDEX_NAME).exists() else f" (no {INDEX_NAME}: no sha256 to compare)"
            )
            print(f"{options.folder}: " + (f"{len(problems)} problems" if problems else f"whole{unchecked}"))
            return 1 if problems else 0
        if options.command == "list":
            shards = PairShards(options.folder)
            print("\n".join(describe_shards(shards, None if options.all else 20)))
            for line in (*shards.damage, *shards.passed_over):
                print(f"problem: {line}")
            return 1 if shards.damage or shards.passed_over else 0
        if options.command == "view":
            folder = Path(options.folder)
            page = options.out or folder.with_name(folder.resolve().name + ".html")
            print(write_contact_sheet(PairShards(folder), page, max(1, options.count)))
            return 0
        index = index_shards(options.folder, task=options.task, overwrite=options.overwrite)
        print(f"{options.folder}: {index.samples} pairs in {len(index.shards)} tars, task {index.task or 'unknown'}")
        for reason, count in index.rejections.items():
            print(f"left out, {reason}: {count}")
        return 0
    except (ShardError, DamagedSample) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
