"""Architectures: one file for each answer to "where does the reference enter the transformer?"."""
