"""Run folders: their files, the recorded configuration, resuming, sweeps."""
