"""Commands that write pair shards."""
