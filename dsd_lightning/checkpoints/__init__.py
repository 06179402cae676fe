"""Checkpoints and trained adapters, written atomically and verified when they are read."""
