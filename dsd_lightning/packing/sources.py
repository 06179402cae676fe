"""Opens a user's data: from a path and a few options to the `Source` that yields its pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from dsd_lightning.files.listing import list_files
from dsd_lightning.files.rows import SUFFIXES, Table
from dsd_lightning.packing.candidates import PackingError, Source
from dsd_lightning.packing.folders import PairedFolders
from dsd_lightning.packing.masks import Masked
from dsd_lightning.packing.subjects200k import Subjects200K, is_composite_table
from dsd_lightning.packing.tables import PairTables

Format = Literal["auto", "folders", "metadata", "parquet", "subjects200k"]
FORMATS: tuple[Format, ...] = ("auto", "folders", "metadata", "parquet", "subjects200k")
TASK_WITHOUT_REFERENCE = "text_to_image"
_METADATA_NAMES = tuple(f"metadata{suffix}" for suffix in SUFFIXES)


def _metadata_in(source: Path) -> list[Path]:
    return [path for name in _METADATA_NAMES if (path := source / name).is_file()]


def _parquet_in(source: Path) -> list[Path]:
    return [path for path in list_files(source, [".parquet"]) if path.name not in _METADATA_NAMES]


def _table_paths(source: Path, source_format: Format) -> list[Path]:
    """Return the tables of `source` under `source_format`; none where it is a folder of images."""
    if source.is_file():
        return [source]
    metadata = _metadata_in(source) if source_format in ("auto", "metadata") else []
    if len(metadata) > 1:
        names = " and ".join(path.name for path in metadata)
        raise PackingError(f"{source} holds {names}; give the one to be read as SOURCE")
    if metadata or source_format in ("folders", "metadata"):
        return metadata
    return _parquet_in(source)


def open_source(
    source: str | Path,
    *,
    task: str,
    source_format: Format = "auto",
    reference_dir: str | Path | None = None,
    mask_dir: str | Path | None = None,
    columns: Mapping[str, str | None] | None = None,
    min_quality: int = 0,
) -> Source:
    """Open a user's data.

    Args:
        source: a folder of targets (or with `target` and `reference` in it), a folder with a table named metadata, a folder
            of Parquet files, or one table.
        task: the task's name; "text_to_image" needs no references.
        source_format: the kind of `source`; "auto" goes by its content.
        reference_dir: folder of references, for folders of images.
        mask_dir: folder of the targets' masks, for folders of images; see `Masked`.
        columns: names of a table's columns by part; the usual names need not be given.
        min_quality: for Subjects200K, the lowest score (0 to 5) that each of a row's three must reach.

    Raises:
        PackingError: nothing of that kind is there.
        TableError, TextError, FolderError: a table or folder that cannot be read.
    """
    source = Path(source)
    with_reference = task != TASK_WITHOUT_REFERENCE
    if not source.exists():
        raise PackingError(f"there is no {source}")
    if source_format == "folders" and source.is_file():
        raise PackingError(f"{source} is a file; --format folders needs a folder of target images")
    as_folders = source_format == "folders" or (source_format == "auto" and reference_dir is not None)
    paths = [] if as_folders else _table_paths(source, source_format)
    if not paths:
        if source_format not in ("auto", "folders"):
            what = " or ".join(_METADATA_NAMES) if source_format == "metadata" else "parquet file"
            raise PackingError(f"{source} holds no {what}, which --format {source_format} needs")
        return _open_folders(source, reference_dir, mask_dir, with_reference)
    if mask_dir is not None:
        raise PackingError(f"--mask-dir is for folders of images, but {paths[0]} is a table: name its --mask-column")
    if reference_dir is not None:
        raise PackingError(
            f"--reference-dir is for folders of images, but {paths[0]} is a table of pairs; leave it out"
        )
    return _open_tables([Table(path) for path in paths], source_format, columns or {}, with_reference, min_quality)


def _open_folders(
    source: Path, reference_dir: str | Path | None, mask_dir: str | Path | None, with_reference: bool
) -> Source:
    def masked(targets: Path, references: Path | None) -> Source:
        pairs = PairedFolders(targets, references)
        return pairs if mask_dir is None else Masked(pairs, targets, Path(mask_dir))

    if not with_reference:
        return masked(source, None)
    if reference_dir is not None:
        return masked(source, Path(reference_dir))
    if (source / "target").is_dir() and (source / "reference").is_dir():
        return masked(source / "target", source / "reference")
    raise PackingError(
        f"where are the references of {source}? Give their folder with --reference-dir, or put the images into "
        f"{source / 'target'} and {source / 'reference'}, pair the images of one subject with each other by --all-pairs, "
        f"or use --task {TASK_WITHOUT_REFERENCE} for images without"
    )


def _open_tables(
    tables: Sequence[Table],
    source_format: Format,
    columns: Mapping[str, str | None],
    with_reference: bool,
    min_quality: int,
) -> Source:
    composites = source_format == "subjects200k" or (source_format == "auto" and all(map(is_composite_table, tables)))
    if not composites:
        if min_quality:
            raise PackingError("--min-quality is for Subjects200K, whose rows carry quality scores; leave it out")
        return PairTables(tables, columns, with_reference)
    for table in tables:
        if not is_composite_table(table):
            raise PackingError(
                f"{table.path} is not a table of Subjects200K: it needs the columns image, description and "
                f"quality_assessment, and has: {', '.join(table.columns)}"
            )
    return Subjects200K(tables, min_quality)
