"""Packs a user's own images as pair shards, from folders, metadata tables and Parquet sets; see `__main__`."""

from dsd_lightning.packing.candidates import Candidate, Orphan, PackingError, Source
from dsd_lightning.packing.pack import PackingReport, pack
from dsd_lightning.packing.sources import open_source

__all__ = ["Candidate", "Orphan", "PackingError", "PackingReport", "Source", "open_source", "pack"]
