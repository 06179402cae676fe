"""Where are partitions run? In this process, on a cluster, or as tasks of an array."""
