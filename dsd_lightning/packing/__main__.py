"""Packs a user's own images from the command line.

python -m dsd_lightning.packing IMAGES OUT --task identity --reference-dir REFERENCES
python -m dsd_lightning.packing FOLDER_WITH_METADATA_JSONL OUT --task identity --resolution 512
python -m dsd_lightning.packing FOLDER_OF_PARQUET_FILES OUT --task identity
python -m dsd_lightning.packing IMAGES_OF_A_SUBJECT OUT --all-pairs
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from dsd_lightning.agents import AgentFailure
from dsd_lightning.agents.presets import HELP, PresetError, find_agent
from dsd_lightning.cli.flags import Flags, number, whole
from dsd_lightning.files.listing import FolderError, together
from dsd_lightning.files.rows import TableError
from dsd_lightning.files.text import TextError
from dsd_lightning.packing.candidates import PackingError, Source
from dsd_lightning.packing.image_captions import caption_images
from dsd_lightning.packing.masks import Masked
from dsd_lightning.packing.own_images import CAPTIONS, AllPairs, read_images, write_captions
from dsd_lightning.packing.pack import PackingReport, listed, pack
from dsd_lightning.packing.sources import FORMATS, open_source
from dsd_lightning.packing.tables import KNOWN_COLUMNS
from dsd_lightning.shards import PairShards, ShardError
from dsd_lightning.shards.split import split_pairs

VALIDATION = 64
"""Pairs that training sets aside at most, as conf/data/shards.yaml has it."""

_REFUSALS = (AgentFailure, PresetError, PackingError, ShardError, TableError, TextError, FolderError, OSError)


def build_parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = Flags(
        prog="python -m dsd_lightning.packing",
        description="Pack your own pairs of images as shards to train from.",
        epilog="Exit code 2: something is missing or cannot be read, and nothing was written.",
    )
    parser.add_argument("source", help="folder of target images, folder with a metadata table, or a table")
    parser.add_argument("out", help="folder for the shards")
    parser.add_argument(
        "--task", default="identity", help="identity (default), depth, relighting, or text_to_image (no references)"
    )
    own = parser.add_argument_group("images of a subject without pairs")
    own.add_argument(
        "--all-pairs", action="store_true", help="pair every two images of a subject; subfolders are subjects"
    )
    own.add_argument("--caption", choices=("vlm",), help=f"write missing captions by --agents into {CAPTIONS}, to edit")
    own.add_argument("--caption-from-name", action="store_true", help="on_a_beach_02.png is captioned 'on a beach'")
    own.add_argument("--trigger", metavar="WORDS", help="put before every caption and instruction")
    own.add_argument("--agents", nargs="+", metavar=("PRESET", "OVERRIDE"), help=HELP)
    parser.add_argument("--reference-dir", help="folder of reference images with the targets' file stems")
    parser.add_argument("--mask-dir", help="folder of masks, white where a target of the same stem shows the subject")
    parser.add_argument("--format", choices=FORMATS, default="auto", help="kind of SOURCE (default: by its content)")
    for part, usual in KNOWN_COLUMNS.items():
        parser.add_argument(f"--{part}-column", metavar="NAME", help=f"the {part}'s column (default: {usual[0]}, ...)")
    parser.add_argument(
        "--resolution", type=whole(1), metavar="N", help="shrink to a short side of N pixels (default: keep)"
    )
    parser.add_argument(
        "--min-quality", type=whole(0, 5), default=0, metavar="0..5", help="Subjects200K: lowest score to keep"
    )
    parser.add_argument("--image-format", choices=("webp", "png"), default="webp", help="of converted images, lossless")
    parser.add_argument(
        "--max-bytes", type=number(1), default=1e9, metavar="BYTES", help="size of a tar (default: 1e9)"
    )
    parser.add_argument(
        "--workers", type=whole(1), default=min(8, os.cpu_count() or 1), help="threads (default: one a core)"
    )
    parser.add_argument("--allow-orphans", action="store_true", help="leave incomplete or unreadable pairs out")
    parser.add_argument("--overwrite", action="store_true", help="replace the set that is in OUT")
    return parser


def _own_images(options: argparse.Namespace) -> Source:
    """Return the pairs of a folder of images, after the captions that were asked for are written."""
    folder = Path(options.source)
    if not folder.is_dir():
        raise PackingError(f"--all-pairs needs a folder of images, but {folder} is none")
    images = read_images(folder, options.caption_from_name)
    lacking = sum(image.caption is None for image in images)
    if options.caption == "vlm" and lacking:
        with find_agent(options.agents) as agent:
            images, failed = caption_images(images, agent)
        table = write_captions(folder, images)
        written = lacking - len(failed)
        print(f"{table}: {written} captions written; edit them and pack again with --overwrite where they are wrong")
        if failed:
            print(together([f"not captioned: {name}: {why}" for name, why in failed.items()]), file=sys.stderr)
    source = AllPairs(images, options.trigger)
    count = sum(map(len, source.subjects.values()))
    print(f"{count} images of {len(source.subjects)} subjects: {len(source)} ordered pairs")
    return source if options.mask_dir is None else Masked(source, folder, Path(options.mask_dir))


def _print_report(report: PackingReport, out: Path) -> None:
    stream = sys.stdout if report.index is not None else sys.stderr
    for line in listed(report.orphans):
        print(line, file=stream)
    counts = report.summary()
    if report.index is None:
        print(
            f"error: refused, nothing was written: {counts}. Fix them, or leave them out with --allow-orphans",
            file=stream,
        )
    else:
        size = sum(shard.bytes for shard in report.index.shards)
        print(f"{out}: {report.index.samples} pairs in {len(report.index.shards)} tars, {size:,} bytes", file=stream)
        print(f"in training, unless validation_pairs changes: {split_pairs(PairShards(out), VALIDATION)}", file=stream)
        if counts:
            print(f"left out: {counts}", file=stream)


def main(arguments: Sequence[str] | None = None) -> int:
    """Pack, and return the exit code: 0 written, 2 refused, 130 interrupted."""
    options = build_parser().parse_args(arguments)
    try:
        source = (
            _own_images(options)
            if options.all_pairs
            else open_source(
                options.source,
                task=options.task,
                source_format=options.format,
                reference_dir=options.reference_dir,
                mask_dir=options.mask_dir,
                columns={part: getattr(options, f"{part}_column") for part in KNOWN_COLUMNS},
                min_quality=options.min_quality,
            )
        )
        report = pack(
            source,
            options.out,
            task=options.task,
            resolution=options.resolution,
            allow_orphans=options.allow_orphans,
            overwrite=options.overwrite,
            image_format=options.image_format,
            max_bytes=options.max_bytes,
            workers=options.workers,
            progress=sys.stderr.isatty(),
        )
    except KeyboardInterrupt:
        print(f"interrupted; {options.out} is as it was", file=sys.stderr)
        return 130
    except _REFUSALS as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    _print_report(report, Path(options.out))
    return 2 if report.index is None else 0


if __name__ == "__main__":
    sys.exit(main())
