"""Pair shards, the format between making pairs and training: write, read by position, verify, index."""

from dsd_lightning.shards.format import DamagedSample, SampleRecord, ShardEntry, ShardError, ShardIndex
from dsd_lightning.shards.inspection import index_shards, verify_shards
from dsd_lightning.shards.reader import PairShards, RawPair
from dsd_lightning.shards.writer import ShardWriter, encode_image

__all__ = [
    "DamagedSample",
    "PairShards",
    "RawPair",
    "SampleRecord",
    "ShardEntry",
    "ShardError",
    "ShardIndex",
    "ShardWriter",
    "encode_image",
    "index_shards",
    "verify_shards",
]
