"""Lightning callbacks: EMA weights, checkpoints, sample sheets, probes, metrics."""
