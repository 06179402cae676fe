"""Architectures: one file for each way in which the reference enters the transformer."""
