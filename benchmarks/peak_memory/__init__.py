"""Compares the planned peak of memory with that of a training step."""
