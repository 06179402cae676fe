"""What do the runs of a sweep say together? `python -m dsd_lightning.ablation SWEEP` makes the report; see docs/ablation.md."""
