"""Pairs for training: one file a task, and the sources that any task can draw from."""
