"""Checkpoints: what was trained, written whole or not at all."""
