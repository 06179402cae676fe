"""Sources of pairs: the miniature world, pair shards, and pools of encodings."""
