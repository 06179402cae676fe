"""How do a user's own images become pair shards? Folders, metadata tables and parquet sets; see `__main__`."""

from dsd_lightning.packing.candidates import Candidate, Orphan, PackingError, Source
from dsd_lightning.packing.pack import PackingReport, pack
from dsd_lightning.packing.sources import open_source

__all__ = ["Candidate", "Orphan", "PackingError", "PackingReport", "Source", "open_source", "pack"]
