"""Models: built from a configuration, or restored from a run, a checkpoint, an exported adapter or official files."""
