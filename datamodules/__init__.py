"""Pairs for training: one file a task, and the sources that every task shares."""
