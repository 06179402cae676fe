"""Executors run partitions: in this process, as tasks of an array, or on a Ray cluster."""
